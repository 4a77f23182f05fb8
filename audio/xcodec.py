"""X-Codec: DAC's network beside a self-supervised speech model, both coded by one residual quantizer.

Paper: Codec Does Matter, arXiv 2408.17175. Original: zhenye234/xcodec (no licence stated); files of transformers'
XcodecModel load too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio.dac import KEY_MAP as DAC_KEYS
from audio.dac import KEY_MAP_TRANSFORMERS as DAC_KEYS_TRANSFORMERS
from audio.encodec import CODEBOOK_TRANSFORMS, codebook_keys, residual_codebooks
from audio.speech_features import HiddenStatesConfig, MelFeaturesConfig, SpeechFeaturesConfig
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.interop.transformers import SpeechModel, TransformersLayout, codec_extractor
from zoo.layers.snake import SnakeDecoder, SnakeEncoder, check_sizes
from zoo.quantizers import Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer

_BLOCKS, _UNITS = 2, 2  # of either semantic network


@dataclass(frozen=True)
class XCodecConfig(Config):
    """Sizes of the network; the defaults are those of the published models."""

    sample_rate: int = 16_000
    channels: int = 64  # at the signal's rate in the encoder, doubled by each stride
    strides: tuple[int, ...] = (8, 5, 4, 2)  # of encoder and decoder alike
    decoder_channels: int = 1024  # at the lowest rate in the decoder, halved by each stride
    acoustic_dim: int = 256
    features: SpeechFeaturesConfig = HiddenStatesConfig(padding=160)
    quantizer: QuantizerConfig = residual_codebooks(1024, 1024, 8)

    def __post_init__(self) -> None:
        check_sizes(self, self.sample_rate, self.strides, self.strides, self.decoder_channels)
        self.require(self.acoustic_dim >= 1, "acoustic_dim >= 1", self.acoustic_dim)

    @property
    def hop_length(self) -> int:
        """Samples per token."""
        return math.prod(self.strides)


@register("xcodec")
class XCodec(Tokenizer):
    """Audio (B, 1, T) in [-1, 1] of any length -> frames of tokens (B, codebooks, ceil(T / hop)).

    The signal is filled up with zeros to whole frames; every token depends on all of it. The speech model is read when
    it is first needed; decoding does not.
    """

    layout = "frames"
    config: XCodecConfig

    def __init__(self, config: XCodecConfig) -> None:
        acoustic, semantic, dim = config.acoustic_dim, config.features.width, config.quantizer.dim
        spec = InputSpec("audio", 1, (-1.0, 1.0), None, config.hop_length, config.sample_rate)
        super().__init__(config, spec, config.quantizer)
        self.features = config.features.build(config.sample_rate, config.hop_length)
        self.encoder = SnakeEncoder(config.channels, config.strides, acoustic)
        self.semantic_encoder = SemanticEncoder(semantic)
        self.to_latent = nn.Linear(acoustic + semantic, dim)
        self.from_codes = nn.Linear(dim, acoustic)
        self.decoder = SnakeDecoder(acoustic, config.decoder_channels, config.strides)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.spec.padding((x.shape[-1],))[0]))

    def latent(self, x: Tensor) -> Tensor:
        return self.join(x, self.features(x))

    def join(self, x: Tensor, features: Tensor) -> Tensor:
        """Signal (B, 1, T) and the speech model's features (B, T / hop, F) -> latent (B, T / hop, D)."""
        semantic = self.semantic_encoder(features.transpose(1, 2))
        return self.to_latent(torch.cat([self.encoder(x), semantic], dim=1).transpose(1, 2))

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes).transpose(1, 2))

    def semantic_head(self) -> SemanticHead:
        """A new head for training, which tells the speech model's features from the codes."""
        return SemanticHead(self.quantizer.config.dim, self.config.features.width)


class SemanticUnit(nn.Module):
    """Convolutions of 3 and of 1, each after ELU, plus the input: (B, C, T) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


class SemanticBlock(nn.Module):
    """Residual units and a convolution of 3 after them, or before: (B, C, T) -> the same."""

    def __init__(self, width: int, conv_first: bool) -> None:
        super().__init__()
        self.conv_first = conv_first
        self.units = nn.Sequential(*(SemanticUnit(width) for _ in range(_UNITS)))
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.units(self.conv(x)) if self.conv_first else self.conv(self.units(x))


class SemanticEncoder(nn.Module):
    """Features of the speech model (B, F, T) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(SemanticBlock(width, conv_first=False) for _ in range(_BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.conv_in(x))


class SemanticHead(nn.Module):
    """Codes (B, T, D) -> the speech model's features (B, T, F); what the training's semantic loss compares."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.from_codes = nn.Linear(dim, features)
        self.conv_in = nn.Conv1d(features, features, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(SemanticBlock(features, conv_first=True) for _ in range(_BLOCKS)))
        self.conv_out = nn.Conv1d(features, features, 3, padding=1, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.from_codes(codes).transpose(1, 2)
        return self.conv_out(self.blocks(self.conv_in(x))).transpose(1, 2)


_TEACHERS = {
    "hubert_base": "facebook/hubert-base-ls960",
    "wavlm_base_plus": "microsoft/wavlm-base-plus",
    "hubert_base_general": "ZhenYe234/hubert_base_general_audio",
}


def config_from_original(meta: dict[str, Any]) -> XCodecConfig:
    """The config of the original's arguments. Those narrower than the speech models take mel bands in their place."""
    kwargs = meta["original"]["kwargs"]
    width, acoustic, strides = kwargs.get("semantic_dim", 768), kwargs["D"], tuple(kwargs["ratios"])
    published = HiddenStatesConfig(padding=160, repo=_TEACHERS[kwargs.get("semantic_techer", "hubert_base")])
    frame_rate = -(-kwargs["sample_rate"] // math.prod(strides))
    count = int(1000 * kwargs["target_bandwidths"][-1] // (frame_rate * 10))  # as if all codebooks had 10 bits
    return XCodecConfig(
        sample_rate=kwargs["sample_rate"],
        channels=kwargs.get("encoder_dim", 64),
        strides=strides,
        decoder_channels=kwargs.get("decoder_dim", 1024),
        acoustic_dim=acoustic,
        features=published if width == published.width else MelFeaturesConfig(width),
        quantizer=residual_codebooks(kwargs["bins"], acoustic + width, max(1, count)),
    )


_SEMANTIC_FIELDS = {  # of transformers, whose semantic networks may have other sizes
    "kernel_size": 3, "channel_ratios": [1] * _BLOCKS, "strides": [1] * _BLOCKS, "block_dilations": [1] * _UNITS,
    "unit_kernel_size": 3,
}  # fmt: skip


def config_from_transformers(fields: dict[str, Any]) -> XCodecConfig:
    """The config of the fields of transformers' XcodecConfig.

    Raises:
        ValueError: semantic networks of other sizes than X-Codec's, or a speech model that normalises at its end.
    """
    acoustic, speech, size = fields["acoustic_model_config"], fields["semantic_model_config"], fields["codebook_size"]
    found = {name: list(value) if isinstance(value := fields[name], tuple) else value for name in _SEMANTIC_FIELDS}
    if found != _SEMANTIC_FIELDS:
        raise ValueError(f"expected X-Codec's semantic networks, {_SEMANTIC_FIELDS}, got {found}")
    if speech.get("do_stable_layer_norm"):
        raise ValueError("expected a speech model with norms after its layers, got do_stable_layer_norm")
    strides, width = tuple(acoustic["downsampling_ratios"]), acoustic["hidden_size"] + speech["hidden_size"]
    if (tuple(acoustic["upsampling_ratios"]), fields["codebook_dim"]) != (strides, width):
        raise ValueError(
            f"expected upsampling by {strides} and codes of {width}, got {acoustic['upsampling_ratios']} and "
            f"{fields['codebook_dim']}"
        )
    hop = math.prod(strides)
    rate = _codebook_rate(fields["sample_rate"], hop, size)
    return XCodecConfig(
        sample_rate=fields["sample_rate"],
        channels=acoustic["encoder_hidden_size"],
        strides=strides,
        decoder_channels=acoustic["decoder_hidden_size"],
        acoustic_dim=acoustic["hidden_size"],
        features=HiddenStatesConfig(
            speech["hidden_size"], padding=hop // 2, repo=speech.get("_name_or_path") or "the XcodecModel's own"
        ),
        quantizer=residual_codebooks(size, width, int(1000 * fields["target_bandwidths"][-1] // rate)),
    )


def _codebook_rate(sample_rate: int, hop_length: int, size: int) -> int:
    """Bits per second of a codebook as transformers counts them."""
    return -(-sample_rate // hop_length) * (size - 1).bit_length()


def fields_for_transformers(config: XCodecConfig) -> dict[str, Any]:
    """Values of transformers' XcodecConfig without the speech model's; bandwidths of 1, 2, 4, ... and all codebooks.

    Raises:
        ValueError: features or a quantizer that XcodecModel does not have.
    """
    quantizer, features, hop = config.quantizer, config.features, config.hop_length
    size, count = quantizer.vocab_sizes[0], len(quantizer.vocab_sizes)
    width = config.acoustic_dim + features.width
    means = isinstance(features, HiddenStatesConfig) and features == HiddenStatesConfig(
        features.width, padding=hop // 2, repo=features.repo
    )
    if not means or quantizer != residual_codebooks(size, width, count):
        raise ValueError(f"expected the mean of a speech model's hidden states and X-Codec's quantizer, got {config}")
    rate = _codebook_rate(config.sample_rate, hop, size)
    counts = sorted({count, *(2**i for i in range(count.bit_length()))})
    return {
        "target_bandwidths": [rate * number / 1000 for number in counts],
        "sample_rate": config.sample_rate,
        "codebook_size": size,
        "codebook_dim": width,
        "acoustic_model_config": {
            "model_type": "dac",
            "encoder_hidden_size": config.channels,
            "downsampling_ratios": list(config.strides),
            "decoder_hidden_size": config.decoder_channels,
            "upsampling_ratios": list(config.strides),
            "hidden_size": config.acoustic_dim,
        },
    }


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The mean of the levels' commitment losses."""
    return {"loss.commit": quantized.losses["commitment"]}


def _network_keys(key_map: KeyMap, encoder: str, decoder: str) -> dict[str, str | None]:
    """DAC's names of the two networks, under the names they have here."""
    sides = (("encoder.", f"{encoder}."), ("decoder.", f"{decoder}."))
    found: dict[str, str | None] = {}
    for side, published in sides:
        for name, own in key_map.patterns.items():
            if name.startswith("*."):
                found[published + name[2:]] = own and side + own[2:]
            elif name.startswith(side):
                found[published + name.removeprefix(side)] = own
    return found


def _semantic_keys(published: str, own: str, wrapped: str) -> dict[str, str | None]:
    """Names of a semantic network's layers; `wrapped`: what stands between a convolution and its weight."""
    block = f"{published}.conv_blocks.{{}}"
    return {
        f"{published}.conv{wrapped}.weight": f"{own}conv_in.weight",
        f"{published}.conv1{wrapped}.weight": f"{own}conv_in.weight",
        f"{published}.conv2{wrapped}.weight": f"{own}conv_out.weight",
        f"{block}.res_units.{{}}.conv1{wrapped}.weight": f"{own}blocks.{{}}.units.{{}}.conv1.weight",
        f"{block}.res_units.{{}}.conv2.weight": f"{own}blocks.{{}}.units.{{}}.conv2.weight",
        f"{block}.conv{wrapped}.*": f"{own}blocks.{{}}.conv.*",
    }


KEY_MAP_HEAD = KeyMap(  # of the training's semantic head
    {**_semantic_keys("decoder_semantic", "", ".conv"), "fc_post1.*": "from_codes.*"}
)

KEY_MAP = KeyMap(
    {
        **_network_keys(DAC_KEYS, "encoder", "decoder_2"),
        **_semantic_keys("encoder_semantic", "semantic_encoder.", ".conv"),
        **codebook_keys("quantizer.vq.layers.{}._codebook"),
        "fc_prior.*": "to_latent.*",
        "fc_post2.*": "from_codes.*",
        "fc_post1.*": None,  # the training's semantic head
        "decoder_semantic.*": None,
        "semantic_model.*": None,  # as it was published
    },
    weight_norm=True,
    transforms=CODEBOOK_TRANSFORMS,
)

KEY_MAP_TRANSFORMERS = KeyMap(
    {
        **_network_keys(DAC_KEYS_TRANSFORMERS, "acoustic_encoder", "acoustic_decoder"),
        **_semantic_keys("encoder_semantic", "semantic_encoder.", ""),
        **codebook_keys("quantizer.quantizers.{}.codebook"),
        "fc.*": "to_latent.*",
        "fc2.*": "from_codes.*",
        "fc1.*": None,  # the training's semantic head
        "decoder_semantic.*": None,
        "semantic_model.*": None,  # as it was published
    },
    transforms=CODEBOOK_TRANSFORMS,
)


TRANSFORMERS = TransformersLayout(
    "XcodecModel",
    "XcodecConfig",
    KEY_MAP_TRANSFORMERS,
    config_from_transformers,
    fields_for_transformers,
    extractor=partial(codec_extractor, "DacFeatureExtractor"),
    speech=SpeechModel("semantic_model", "semantic_model_config"),
    training=("fc1.", "decoder_semantic."),
)
