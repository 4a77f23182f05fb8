"""Cosmos discrete image tokenizer: Haar patches, a convolutional autoencoder with attention in the middle, and FSQ.

Paper: arXiv 2501.03575. Original: NVIDIA/Cosmos-Tokenizer (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokenizers_visual import taming_vqgan
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.haar import Patch, Patching, Unpatch
from zoo.layers.vqgan import Decoder, Encoder, Level
from zoo.quantizers import FiniteScalarConfig, Quantized, QuantizerConfig, ResidualConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class CosmosDIConfig(Config):
    """Sizes of the network; the defaults are those of the published 16x16 model."""

    stride: int = 16  # pixels a side of one token
    patch_size: int = 4
    patching: Patching = "haar"
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 4, 4)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    latent_channels: int = 256
    resolution: int = 1024  # with attention_resolutions it places attention, whatever the size of the input
    attention_resolutions: tuple[int, ...] = (32,)
    norm_groups: int = 32
    dropout: float = 0.0
    quantizer: QuantizerConfig = FiniteScalarConfig(levels=(8, 8, 8, 5, 5, 5))
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        for name in ("stride", "patch_size"):
            value = getattr(self, name)
            self.require(value >= 1 and value & (value - 1) == 0, f"{name} to be a power of two", value)
        self.require(
            0 <= self.downsamples <= len(self.channel_multipliers),
            f"a stride of patch_size {self.patch_size} times at most 2 ** {len(self.channel_multipliers)}",
            self.stride,
        )

    @property
    def downsamples(self) -> int:
        """Levels that change the size; patching does the rest of the stride."""
        return int(math.log2(self.stride)) - int(math.log2(self.patch_size))


@register("cosmos_di")
class CosmosDI(Tokenizer):
    """Images (B, C, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: CosmosDIConfig) -> None:
        spec = InputSpec("image", channels=config.in_channels, value_range=(-1.0, 1.0), multiple=config.stride)
        super().__init__(config, spec, config.quantizer)
        patched = config.in_channels * config.patch_size**2
        groups, dropout = config.norm_groups, config.dropout
        self.patch = Patch(config.patch_size, config.patching)
        self.encoder = Encoder(
            patched, config.channels, _encoder_levels(config), config.latent_channels, groups, dropout
        )
        self.to_latent = nn.Conv2d(config.latent_channels, config.quantizer.dim, 1)
        self.from_codes = nn.Conv2d(config.quantizer.dim, config.latent_channels, 1)
        self.decoder = Decoder(config.latent_channels, _decoder_levels(config), patched, groups, dropout)
        self.unpatch = Unpatch(config.patch_size, config.patching)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(self.patch(x))).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.unpatch(self.decoder(self.from_codes(codes.movedim(-1, 1))))


def _encoder_levels(config: CosmosDIConfig) -> list[Level]:
    """Finest first; the first `downsamples` levels halve the size."""
    levels, resolution = [], config.resolution // config.patch_size
    for i, multiplier in enumerate(config.channel_multipliers):
        attention, halve = resolution in config.attention_resolutions, i < config.downsamples
        levels.append(Level(config.channels * multiplier, config.blocks, attention, halve))
        resolution = resolution // 2 if halve else resolution
    return levels


def _decoder_levels(config: CosmosDIConfig) -> list[Level]:
    """Coarsest first; the first `downsamples` levels double the size, so that with fewer of them than levels the
    decoder is no mirror image of the encoder. Its count of the resolution starts as if every level had halved it."""
    count = len(config.channel_multipliers)
    levels, resolution = [], config.resolution // config.patch_size // 2 ** (count - 1)
    for i, multiplier in enumerate(reversed(config.channel_multipliers)):
        attention, double = resolution in config.attention_resolutions, i < config.downsamples
        levels.append(Level(config.channels * multiplier, config.blocks + 1, attention, double))
        resolution = resolution * 2 if double else resolution
    return levels


def quantizer_from_original(kwargs: Mapping[str, Any]) -> FiniteScalarConfig | ResidualConfig:
    """The quantizer of the original's constructor arguments, of image and video tokenizers.

    Raises:
        ValueError: a quantizer other than FSQ and residual FSQ.
    """
    kind, level = kwargs.get("quantizer", "RESFSQ"), FiniteScalarConfig(levels=tuple(kwargs["levels"]))
    if kind not in ("FSQ", "RESFSQ"):
        raise ValueError(f"expected the quantizer FSQ or RESFSQ, got {kind}")
    if kind == "FSQ":
        return level
    return ResidualConfig(level, kwargs["num_quantizers"], gradient="per_level", refinement=1.0)


def fields_from_original(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the configs of image and video tokenizers share, of the original's constructor arguments."""
    return {
        "stride": kwargs["spatial_compression"],
        "patch_size": kwargs["patch_size"],
        "patching": kwargs["patch_method"],
        "channels": kwargs["channels"],
        "channel_multipliers": tuple(kwargs["channels_mult"]),
        "blocks": kwargs["num_res_blocks"],
        "latent_channels": kwargs["z_channels"],
        "resolution": kwargs["resolution"],
        "attention_resolutions": tuple(kwargs["attn_resolutions"]),
        "dropout": kwargs.get("dropout", 0.0),
        "quantizer": quantizer_from_original(kwargs),
    }


def config_from_original(meta: dict[str, Any]) -> CosmosDIConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    kwargs = meta["original"]["kwargs"]
    return CosmosDIConfig(
        in_channels=kwargs.get("in_channels", 3),
        norm_groups=kwargs.get("norm_num_groups", 32),
        **fields_from_original(kwargs),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """FSQ has none."""
    return {}


KEY_MAP = KeyMap(
    {
        **{name: own for name, own in taming_vqgan.KEY_MAP.patterns.items() if not name.startswith("quantize.")},
        # constants that TorchScript files list beside the weights
        "encoder.patcher.*": None,
        "decoder.unpatcher.*": None,
        "quantizer.*": None,
        "inv_quant.*": None,
    }
)
