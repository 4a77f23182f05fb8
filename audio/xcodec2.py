"""X-codec2, Llasa's speech tokenizer: BigCodec's encoder and a speech model, finite scalars, a Vocos decoder.

Paper: arXiv 2502.04128. Original: zhenye234/X-Codec-2.0 (MIT); files of transformers' Xcodec2Model load too.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio.bigcodec import SpareFrameSpec
from audio.speech_features import MelFeaturesConfig, SpeechFeaturesConfig, Wav2Vec2BertConfig, filter_banks
from audio.xcodec2_keys import KEY_MAP as KEY_MAP
from audio.xcodec2_keys import KEY_MAP_TRANSFORMERS
from zoo.config import Config
from zoo.interop.transformers import SpeechModel, TransformersLayout
from zoo.layers.alias_free import AliasFreeEncoder
from zoo.layers.resnet import ResBlock
from zoo.layers.transformer import MLP, RMSNorm, SelfAttention, TransformerBlock
from zoo.layers.vocos import SpectralHead
from zoo.quantizers import FiniteScalarConfig, ProjectedConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import Tokenizer


def scalars(dim: int) -> QuantizerConfig:
    """65536 codes: 8 dimensions of 4 values, between projections from and to `dim` where that is another number."""
    values = FiniteScalarConfig(levels=(4,) * 8, bound_twice=True)
    return values if dim == 8 else ProjectedConfig(dim, values)


@dataclass(frozen=True)
class XCodec2Config(Config):
    """Sizes of the network; the defaults are those of the published model."""

    channels: int = 48  # of the acoustic encoder at the signal's rate, doubled by each stride
    strides: tuple[int, ...] = (2, 2, 4, 4, 5)
    dilations: tuple[int, ...] = (1, 3, 9)
    features: SpeechFeaturesConfig = Wav2Vec2BertConfig()
    width: int = 1024  # of the acoustic features and the decoder, in multiples of 32
    layers: int = 12  # of the decoder's transformer
    heads: int = 16
    dropout: float = 0.1
    sample_rate: int = 16_000
    quantizer: QuantizerConfig = scalars(2048)

    def __post_init__(self) -> None:
        self.require(min(self.strides, default=0) >= 1, "strides >= 1", self.strides)
        fits = self.width % 32 == 0 and self.width % self.heads == 0
        self.require(fits, "a width in multiples of 32 and of the heads", (self.width, self.heads))

    @property
    def hop_length(self) -> int:
        """Samples per token."""
        return math.prod(self.strides)


@register("xcodec2")
class XCodec2(Tokenizer):
    """Speech (B, 1, T) in [-1, 1] -> frames of one token (B, 1, floor(T / hop) + 1); every token depends on all of T.

    The signal is filled up with zeros, and with a whole frame of them where it has whole frames. The speech model is
    read when it is first needed; decoding does not.
    """

    layout = "frames"
    config: XCodec2Config

    def __init__(self, config: XCodec2Config) -> None:
        dim, hop = config.quantizer.dim, config.hop_length
        super().__init__(
            config, SpareFrameSpec("audio", 1, (-1.0, 1.0), None, hop, config.sample_rate), config.quantizer
        )
        self.features = config.features.build(config.sample_rate, hop)
        self.encoder = AliasFreeEncoder(config.channels, config.strides, config.dilations, config.width)
        self.semantic_encoder = SemanticNetwork(config.features.width)
        self.to_latent = nn.Linear(config.features.width + config.width, dim)
        self.decoder = XCodec2Decoder(config)

    def latent(self, x: Tensor) -> Tensor:
        return self.join(x, self.features(x))

    def join(self, x: Tensor, features: Tensor) -> Tensor:
        """Signal (B, 1, T) and the speech model's features (B, T / hop, F) -> latent (B, T / hop, D)."""
        semantic = self.semantic_encoder(features.transpose(1, 2))
        return self.to_latent(torch.cat([semantic, self.encoder(x)], dim=1).transpose(1, 2))

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes)

    def semantic_head(self) -> SemanticHead:
        """A new head for training, which tells the speech model's features from the codes."""
        return SemanticHead(self.quantizer.config.dim, self.config.features.width)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.spec.padding((x.shape[-1],))[0]))


class SemanticNetwork(nn.Module):
    """Convolutions of 3 around a residual block: (B, C, T) -> the same.

    The first activation of the block replaces its input, so that the rectified signal is what the block adds to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.conv1 = nn.Conv1d(width, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)
        self.conv_out = nn.Conv1d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv_in(x))
        return self.conv_out(x + self.conv2(F.relu(self.conv1(x))))


class SemanticHead(nn.Module):
    """Codes (B, T, D) -> the speech model's features (B, T, F); what the training's semantic loss compares."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.from_codes = nn.Linear(dim, features)
        self.network = SemanticNetwork(features)

    def forward(self, codes: Tensor) -> Tensor:
        return self.network(self.from_codes(codes).transpose(1, 2)).transpose(1, 2)


class XCodec2Decoder(nn.Module):
    """Codes (B, T, D) -> waveform (B, 1, T x hop).

    The attention knows no positions: the original rotates queries and keys by the number of their head, which cancels.
    """

    def __init__(self, config: XCodec2Config) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.from_codes = nn.Linear(config.quantizer.dim, width)
        self.embed = nn.Conv1d(width, width, 7, padding=3)
        self.before = nn.Sequential(*(ResBlock(width, width, dropout=dropout, dims=1) for _ in range(2)))
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    width,
                    SelfAttention(width, config.heads, bias=False),
                    MLP(width, 4 * width, nn.SiLU, bias=False),
                    norm=RMSNorm,
                    eps=1e-6,
                )
                for _ in range(config.layers)
            )
        )
        self.after = nn.Sequential(*(ResBlock(width, width, dropout=dropout, dims=1) for _ in range(2)))
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.head = SpectralHead(width, 4 * config.hop_length, config.hop_length)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.backbone(self.from_codes(codes)))

    def backbone(self, x: Tensor) -> Tensor:
        """(B, T, width) -> the same, normalised."""
        x = self.before(self.embed(x.transpose(1, 2)))
        x = self.blocks(x.transpose(1, 2))
        return self.norm_out(self.after(x.transpose(1, 2)).transpose(1, 2))


def config_from_original(meta: dict[str, Any]) -> XCodec2Config:
    """The config of the original's arguments. Those narrower than the speech model take mel bands in its place.

    Raises:
        ValueError: an encoder of another width than the decoder.
    """
    kwargs = meta["original"]["kwargs"]
    encoder, decoder, width = kwargs["codec_encoder"], kwargs["codec_decoder"], kwargs["semantic_dim"]
    if encoder.get("hidden_dim", 1024) != decoder["hidden_dim"]:
        raise ValueError(f"expected an encoder of width {decoder['hidden_dim']}, got {encoder.get('hidden_dim', 1024)}")
    published = Wav2Vec2BertConfig()
    return XCodec2Config(
        channels=encoder["ngf"],
        strides=tuple(encoder["up_ratios"]),
        dilations=tuple(encoder["dilations"]),
        features=published if width == published.width else MelFeaturesConfig(width),
        width=decoder["hidden_dim"],
        layers=decoder["depth"],
        heads=decoder["heads"],
        quantizer=scalars(decoder["vq_dim"]),
    )


_FIXED_FIELDS = {  # of transformers, where they may be others
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "quantization_levels": [4] * 8,
}  # fmt: skip


def config_from_transformers(fields: dict[str, Any]) -> XCodec2Config:
    """The config of the fields of transformers' Xcodec2Config.

    Raises:
        ValueError: a network that is not X-codec2's.
    """
    speech, width, heads = fields["semantic_model_config"], fields["hidden_size"], fields["num_attention_heads"]
    latent = width + speech["hidden_size"]
    wanted = _FIXED_FIELDS | {
        "intermediate_size": 4 * width, "num_key_value_heads": heads, "head_dim": width // heads,
        "quantization_dim": latent,
    }  # fmt: skip
    found = {name: list(value) if isinstance(value := fields[name], tuple) else value for name in wanted}
    if found != wanted:
        raise ValueError(f"expected X-codec2's network, {wanted}, got {found}")
    plain = (speech["model_type"], speech["add_adapter"], (fields["rope_parameters"] or {}).get("rope_type", "default"))
    if plain != ("wav2vec2-bert", False, "default"):
        raise ValueError(f"expected w2v-BERT without an adapter and default rotations, got {plain}")
    repo = speech.get("_name_or_path") or "the Xcodec2Model's own"
    return XCodec2Config(
        channels=fields["encoder_hidden_size"],
        strides=tuple(fields["downsampling_ratios"]),
        features=Wav2Vec2BertConfig(speech["hidden_size"], speech["num_hidden_layers"], repo),
        width=width,
        layers=fields["num_hidden_layers"],
        heads=heads,
        dropout=fields["activation_dropout"],
        sample_rate=fields["sampling_rate"],
        quantizer=scalars(latent),
    )


def fields_for_transformers(config: XCodec2Config) -> dict[str, Any]:
    """Values of transformers' Xcodec2Config without the speech model's.

    Raises:
        ValueError: features, a network or a quantizer that Xcodec2Model does not have.
    """
    features, latent = config.features, config.width + config.features.width
    plain = isinstance(features, Wav2Vec2BertConfig) and features.layer >= 1 and config.dilations == (1, 3, 9)
    if not plain or config.quantizer != scalars(latent):
        raise ValueError(f"expected a layer of w2v-BERT, dilations of 1, 3 and 9 and X-codec2's scalars, got {config}")
    return {
        "hidden_size": config.width, "intermediate_size": 4 * config.width, "head_dim": config.width // config.heads,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads, "num_key_value_heads": config.heads,
        "encoder_hidden_size": config.channels, "downsampling_ratios": list(config.strides),
        "sampling_rate": config.sample_rate, "activation_dropout": config.dropout, "quantization_dim": latent,
    }  # fmt: skip


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer has none."""
    return {}


def weights_for_transformers(model: XCodec2) -> dict[str, Tensor]:
    """The weights under the names that `from_transformers` joins."""
    units, last = len(model.config.dilations), len(model.config.strides) + 1

    def apart(found: re.Match[str]) -> str:
        layer, number = int(found[1]), int(found[2] or 0)
        if layer == 0:
            return found[0]
        if layer >= last:
            return f"encoder.last.{layer - last}.{found[2] or ''}{found[3] or ''}"
        stage = f"encoder.stages.{layer - 1}"
        return f"{stage}.unit{number + 1}." if found[3] else f"{stage}.after.{number - units}."

    result: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key.endswith(".qkv.weight"):
            result |= {key.replace(".qkv.", f".{part}."): each for part, each in zip("qkv", value.chunk(3))}
        else:
            result[re.sub(r"^encoder\.layers\.(\d+)\.(?:(\d+)\.(block\.)?)?", apart, key)] = value
    return result


def _encode_there(peer: Any, x: Tensor) -> Tensor:
    padded = F.pad(x, (0, peer.hop_length - x.shape[-1] % peer.hop_length))
    codes: Tensor = peer.encode(padded, filter_banks(padded)).audio_codes
    return codes


TRANSFORMERS = TransformersLayout(
    "Xcodec2Model",
    "Xcodec2Config",
    KEY_MAP_TRANSFORMERS,
    config_from_transformers,
    fields_for_transformers,
    weights_for_transformers,
    encode=_encode_there,
    speech=SpeechModel("semantic_encoder", "semantic_model_config"),
)
