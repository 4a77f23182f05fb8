"""Descript Audio Codec: a convolutional codec with Snake activations and residual quantisation of projected vectors.

Paper: High-Fidelity Audio Compression with Improved RVQGAN, arXiv 2306.06546. Original:
descriptinc/descript-audio-codec (MIT); files of transformers' DacModel load too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.interop.transformers import TransformersLayout, codec_extractor
from zoo.layers.snake import SnakeDecoder, SnakeEncoder, check_sizes
from zoo.quantizers import (
    LevelDropoutConfig,
    ProjectedConfig,
    Quantized,
    QuantizerConfig,
    ResidualConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


def projected_codebook(size: int, dim: int, width: int) -> ProjectedConfig:
    """A codebook searched by direction in a space of few dimensions; its vectors are used with their lengths."""
    return ProjectedConfig(width, VectorConfig(size, dim, metric="cosine", unit_vectors=False))


def residual_codebooks(
    size: int, dim: int | tuple[int, ...], width: int, count: int, dropout: float = 0.0
) -> ResidualConfig:
    """DAC's quantizer; gradients pass through the levels and what they leave over. `dim`: of all levels, or of each."""
    drop = LevelDropoutConfig(share=float(dropout), per_item=True) if dropout else None
    level: ProjectedConfig | tuple[ProjectedConfig, ...] = (
        projected_codebook(size, dim, width)
        if isinstance(dim, int)
        else tuple(projected_codebook(size, own, width) for own in dim)
    )
    return ResidualConfig(level, num_levels=count, gradient="through", dropout=drop)


@dataclass(frozen=True)
class DACConfig(Config):
    """Sizes of the network; the defaults are those of the published 44.1 kHz model."""

    sample_rate: int = 44100
    channels: int = 64  # at the signal's rate in the encoder, doubled by each stride
    strides: tuple[int, ...] = (2, 4, 8, 8)
    decoder_channels: int = 1536  # at the lowest rate in the decoder, halved by each stride
    decoder_strides: tuple[int, ...] = (8, 8, 4, 2)
    quantizer: QuantizerConfig = residual_codebooks(1024, 8, 1024, 9, dropout=0.5)

    def __post_init__(self) -> None:
        check_sizes(self, self.sample_rate, self.strides, self.decoder_strides, self.decoder_channels)


@register("dac")
class DAC(Tokenizer):
    """Audio (B, 1, T) in [-1, 1] of any length -> frames of tokens, one in `spec.multiple` samples.

    Channels of stereo are items of a batch. Where a stride is odd (the 16 and 24 kHz models) the original's output ends
    a few samples early, 8 for those two; here zeros stand there, so that lengths agree.
    """

    layout = "frames"
    config: DACConfig

    def __init__(self, config: DACConfig) -> None:
        hop = math.prod(config.strides)
        super().__init__(
            config, InputSpec("audio", 1, (-1.0, 1.0), multiple=hop, sample_rate=config.sample_rate), config.quantizer
        )
        dim = config.quantizer.dim
        self.encoder = SnakeEncoder(config.channels, config.strides, dim)
        self.decoder = SnakeDecoder(dim, config.decoder_channels, config.decoder_strides, whole=False, bounded=True)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[-1] % self.spec.multiple))

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        signal = self.decoder(codes.movedim(-1, 1))
        return F.pad(signal, (0, codes.shape[1] * self.spec.multiple - signal.shape[-1]))


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "encoder_dim": 64, "encoder_rates": [2, 4, 8, 8], "latent_dim": None, "decoder_dim": 1536,
    "decoder_rates": [8, 8, 4, 2], "n_codebooks": 9, "codebook_size": 1024, "codebook_dim": 8,
    "quantizer_dropout": 0.0, "sample_rate": 44100,
}  # fmt: skip
_TRANSFORMERS_NAMES = {
    "encoder_hidden_size": "encoder_dim", "downsampling_ratios": "encoder_rates", "decoder_hidden_size": "decoder_dim",
    "sampling_rate": "sample_rate",
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> DACConfig:
    """The config of the constructor arguments of the original, or of transformers' DacConfig."""
    stated = meta["original"]["kwargs"]
    kwargs = {**_ORIGINAL_DEFAULTS, **{_TRANSFORMERS_NAMES.get(name, name): value for name, value in stated.items()}}
    if "downsampling_ratios" in stated:
        kwargs["decoder_rates"] = kwargs["encoder_rates"][::-1]
    channels, strides, dim = kwargs["encoder_dim"], tuple(kwargs["encoder_rates"]), kwargs["codebook_dim"]
    return DACConfig(
        sample_rate=kwargs["sample_rate"],
        channels=channels,
        strides=strides,
        decoder_channels=kwargs["decoder_dim"],
        decoder_strides=tuple(kwargs["decoder_rates"]),
        quantizer=residual_codebooks(
            kwargs["codebook_size"], dim if isinstance(dim, int) else tuple(dim),
            kwargs["latent_dim"] or channels * 2 ** len(strides), kwargs["n_codebooks"], kwargs["quantizer_dropout"],
        ),
    )  # fmt: skip


def fields_for_transformers(config: DACConfig) -> dict[str, Any]:
    """Values of transformers' DacConfig.

    Raises:
        ValueError: a network or quantizer that DacModel does not have.
    """
    quantizer = config.quantizer
    level = quantizer.levels[0] if isinstance(quantizer, ResidualConfig) else None
    inner = level.inner if isinstance(level, ProjectedConfig) else None
    width = config.channels * 2 ** len(config.strides)
    expected = isinstance(inner, VectorConfig) and quantizer == residual_codebooks(
        inner.codebook_size, inner.dim, width, len(quantizer.vocab_sizes), _dropout(quantizer)
    )
    if not isinstance(inner, VectorConfig) or not expected or config.decoder_strides != config.strides[::-1]:
        raise ValueError(f"expected DAC's network, the decoder mirroring the encoder, and its quantizer, got {config}")
    return {
        "encoder_hidden_size": config.channels,
        "downsampling_ratios": list(config.strides),
        "decoder_hidden_size": config.decoder_channels,
        "n_codebooks": len(quantizer.vocab_sizes),
        "codebook_size": inner.codebook_size,
        "codebook_dim": inner.dim,
        "quantizer_dropout": _dropout(quantizer),
        "sampling_rate": config.sample_rate,
    }


def _dropout(quantizer: QuantizerConfig) -> float:
    dropout = getattr(quantizer, "dropout", None)
    return 0.0 if dropout is None else float(dropout.share)


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original adds up the levels' losses, of which the quantizer gives the mean."""
    count = meta["original"]["kwargs"].get("n_codebooks", _ORIGINAL_DEFAULTS["n_codebooks"])
    return {
        "loss.commit": count * quantized.losses["commitment"],
        "loss.codebook": count * quantized.losses["codebook"],
    }


_QUANTIZER_KEYS = {
    "quantizer.quantizers.{}.in_proj.*": "quantizer.levels.{}.project_in.*",
    "quantizer.quantizers.{}.out_proj.*": "quantizer.levels.{}.project_out.*",
    "quantizer.quantizers.{}.codebook.weight": "quantizer.levels.{}.inner.codebook.weight",
}
_TRANSFORMS = {"quantizer.levels.*.project_*.weight": lambda weight: weight.squeeze(-1)}  # 1x1 convolutions
_MOST_STAGES = 9  # the original counts them from 1

KEY_MAP = KeyMap(
    {
        "encoder.block.0.weight": "encoder.conv_in.weight",
        "encoder.block.0.bias": "encoder.conv_in.bias",
        **{f"encoder.block.{i + 1}.block.{{}}.*": f"encoder.stages.{i}.{{}}.*" for i in range(_MOST_STAGES)},
        **{
            f"encoder.block.{i + 1}.block.{{}}.block.{{}}.*": f"encoder.stages.{i}.{{}}.layers.{{}}.*"
            for i in range(_MOST_STAGES)
        },
        "encoder.block.{i}.alpha": "encoder.snake.alpha",
        "encoder.block.{i}.weight": "encoder.conv_out.weight",
        "encoder.block.{i}.bias": "encoder.conv_out.bias",
        "decoder.model.0.weight": "decoder.conv_in.weight",
        "decoder.model.0.bias": "decoder.conv_in.bias",
        **{f"decoder.model.{i + 1}.block.{{}}.*": f"decoder.stages.{i}.{{}}.*" for i in range(_MOST_STAGES)},
        **{
            f"decoder.model.{i + 1}.block.{{}}.block.{{}}.*": f"decoder.stages.{i}.{{}}.layers.{{}}.*"
            for i in range(_MOST_STAGES)
        },
        "decoder.model.{i}.alpha": "decoder.snake.alpha",
        "decoder.model.{i}.weight": "decoder.conv_out.weight",
        "decoder.model.{i}.bias": "decoder.conv_out.bias",
        **_QUANTIZER_KEYS,
    },
    weight_norm=True,
    transforms=_TRANSFORMS,
)

_UNIT = ("snake1", "conv1", "snake2", "conv2")

KEY_MAP_TRANSFORMERS = KeyMap(
    {
        "*.conv1.*": "*.conv_in.*",
        "*.snake1.*": "*.snake.*",
        "*.conv2.*": "*.conv_out.*",
        **{
            f"encoder.block.{{}}.res_unit{unit + 1}.{part}.*": f"encoder.stages.{{}}.{unit}.layers.{i}.*"
            for unit in range(3)
            for i, part in enumerate(_UNIT)
        },
        "encoder.block.{}.snake1.*": "encoder.stages.{}.3.*",
        "encoder.block.{}.conv1.*": "encoder.stages.{}.4.*",
        "decoder.block.{}.snake1.*": "decoder.stages.{}.0.*",
        "decoder.block.{}.conv_t1.*": "decoder.stages.{}.1.*",
        **{
            f"decoder.block.{{}}.res_unit{unit + 1}.{part}.*": f"decoder.stages.{{}}.{unit + 2}.layers.{i}.*"
            for unit in range(3)
            for i, part in enumerate(_UNIT)
        },
        **_QUANTIZER_KEYS,
    },
    weight_norm=True,
    transforms=_TRANSFORMS,
)


TRANSFORMERS = TransformersLayout(
    "DacModel",
    "DacConfig",
    KEY_MAP_TRANSFORMERS,
    lambda fields: config_from_original({"original": {"kwargs": fields}}),
    fields_for_transformers,
    extractor=partial(codec_extractor, "DacFeatureExtractor"),
)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    return KEY_MAP_TRANSFORMERS if "transformers" in str(meta["original"].get("class")) else KEY_MAP
