"""BigCodec: a large convolutional codec with alias-free activations, recurrent networks and one small-width codebook.

Paper: arXiv 2409.05377. Original: Aria-K-Alethia/BigCodec (MIT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.alias_free import AliasFreeDecoder, AliasFreeEncoder
from zoo.quantizers import ProjectedConfig, Quantized, QuantizerConfig, ResidualConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


def codebooks(dim: int, size: int, width: int, count: int) -> ResidualConfig:
    """`count` codebooks of `width` dimensions, searched by direction, each between projections from and to `dim`."""
    vectors = VectorConfig(size, width, metric="cosine", unit_vectors=False)
    return ResidualConfig(ProjectedConfig(dim, vectors), num_levels=count, gradient="through")


@dataclass(frozen=True)
class BigCodecConfig(Config):
    """Sizes of the network; the defaults are those of the published model."""

    channels: int = 48  # of the encoder at the signal's rate, doubled by each stride
    decoder_channels: int = 1536  # of the decoder at the lowest rate, halved by each stride
    strides: tuple[int, ...] = (2, 2, 2, 5, 5)  # of the encoder
    decoder_strides: tuple[int, ...] = (5, 5, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 3, 9)
    decoder_dilations: tuple[int, ...] | None = None  # None: the encoder's
    lstm_layers: int = 2
    decoder_lstm_layers: int | None = None  # None: as many as the encoder has
    bidirectional: bool = False  # the recurrent networks
    sample_rate: int = 16_000
    quantizer: QuantizerConfig = codebooks(1024, 8192, 8, 1)

    def __post_init__(self) -> None:
        hops = math.prod(self.strides), math.prod(self.decoder_strides)
        self.require(min(self.strides, default=0) >= 1 and hops[0] == hops[1], "strides of one product", hops)
        halvings = 2 ** len(self.decoder_strides)
        self.require(self.decoder_channels % halvings == 0, f"a multiple of {halvings}", self.decoder_channels)


@dataclass(frozen=True)
class SpareFrameSpec(InputSpec):
    """A signal is always padded: one of whole frames by one more, as the published inference does."""

    def padding(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.multiple - side % self.multiple for side in size)


@register("bigcodec")
class BigCodec(Tokenizer):
    """Speech (B, 1, T) in [-1, 1] -> frames of tokens (B, codebooks, floor(T / hop) + 1); not causal.

    The signal is filled up with zeros, and with a whole frame of them where it has whole frames.
    """

    layout = "frames"

    def __init__(self, config: BigCodecConfig) -> None:
        dim, hop = config.quantizer.dim, math.prod(config.strides)
        super().__init__(
            config, SpareFrameSpec("audio", 1, (-1.0, 1.0), None, hop, config.sample_rate), config.quantizer
        )
        self.encoder = AliasFreeEncoder(
            config.channels, config.strides, config.dilations, dim, config.lstm_layers, config.bidirectional
        )
        layers = config.lstm_layers if config.decoder_lstm_layers is None else config.decoder_lstm_layers
        self.decoder = AliasFreeDecoder(
            config.decoder_channels, config.decoder_strides, config.decoder_dilations or config.dilations, dim, layers,
            config.bidirectional,
        )  # fmt: skip

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).transpose(1, 2)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.transpose(1, 2))

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.spec.padding((x.shape[-1],))[0]))


_NETWORK_DEFAULTS = {"use_rnn": True, "rnn_bidirectional": False, "rnn_num_layers": 2, "dilations": (1, 3, 9)}
_ENCODER_DEFAULTS = {"ngf": 48, "up_ratios": (2, 2, 2, 5, 5)}
_DECODER_DEFAULTS = {
    "upsample_initial_channel": 1536, "up_ratios": (5, 5, 2, 2, 2), "vq_num_quantizers": 1, "vq_dim": 1024,
    "vq_commit_weight": 0.25, "codebook_size": 8192, "codebook_dim": 8,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> BigCodecConfig:
    """The config of the arguments of the original's encoder and decoder, those not stated at their defaults.

    Raises:
        ValueError: one recurrent network in both directions and one that goes forwards.
    """
    stated = meta["original"]["kwargs"]
    encoder: dict[str, Any] = {**_NETWORK_DEFAULTS, **_ENCODER_DEFAULTS, **stated["codec_encoder"]}
    decoder: dict[str, Any] = {**_NETWORK_DEFAULTS, **_DECODER_DEFAULTS, **stated["codec_decoder"]}
    recurrent = [side for side in (encoder, decoder) if side["use_rnn"]]
    directions = {side["rnn_bidirectional"] for side in recurrent}
    if len(directions) > 1:
        raise ValueError("expected rnn_bidirectional of encoder and decoder alike, got one of each")
    layers, decoder_layers = (side["rnn_num_layers"] if side["use_rnn"] else 0 for side in (encoder, decoder))
    alike = list(decoder["dilations"]) == list(encoder["dilations"])
    return BigCodecConfig(
        channels=encoder["ngf"],
        decoder_channels=decoder["upsample_initial_channel"],
        strides=tuple(encoder["up_ratios"]),
        decoder_strides=tuple(decoder["up_ratios"]),
        dilations=tuple(encoder["dilations"]),
        decoder_dilations=None if alike else tuple(decoder["dilations"]),
        lstm_layers=layers,
        decoder_lstm_layers=None if decoder_layers == layers else decoder_layers,
        bidirectional=True in directions,
        quantizer=codebooks(
            decoder["vq_dim"], decoder["codebook_size"], decoder["codebook_dim"], decoder["vq_num_quantizers"]
        ),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original adds the codebooks' losses up, the commitment weighed."""
    decoder: dict[str, Any] = {**_DECODER_DEFAULTS, **meta["original"]["kwargs"]["codec_decoder"]}
    losses = quantized.losses
    each = decoder["vq_commit_weight"] * losses["commitment"] + losses["codebook"]
    return {"loss.vq": decoder["vq_num_quantizers"] * each}


def alias_free_keys(published: str, own: str) -> dict[str, str | None]:
    """The names of a sequence of layers; those of the filters, which are constants, are not needed."""
    names: dict[str, str | None] = {f"{published}.{{}}.lstm.*": f"{own}.{{}}.lstm.*"}
    for depth, nesting in enumerate(("{}", "{}.block.{}", "{}.block.{}.block.{}")):
        to = f"{own}.{('{}', '{}.{}', '{}.{}.block.{}')[depth]}"
        names |= {
            f"{published}.{nesting}.act.*": f"{to}.*",
            f"{published}.{nesting}.upsample.filter": None,
            f"{published}.{nesting}.downsample.lowpass.filter": None,
            **{f"{published}.{nesting}.{part}": f"{to}.{part}" for part in ("weight", "bias")},
        }
    return names


KEY_MAP = KeyMap(
    {
        **alias_free_keys("CodecEnc.block", "encoder.layers"),
        **alias_free_keys("generator.model", "decoder.layers"),
        "generator.quantizer.layers.{}.in_proj.*": "quantizer.levels.{}.project_in.*",
        "generator.quantizer.layers.{}._codebook.weight": "quantizer.levels.{}.inner.codebook.weight",
        "generator.quantizer.layers.{}.out_proj.*": "quantizer.levels.{}.project_out.*",
    },
    weight_norm=True,
)
