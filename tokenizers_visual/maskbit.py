"""MaskBit's tokenizers: one convolutional network without attention, "VQGAN+", with bits (LFQ) or a codebook (VQ).

Paper: arXiv 2409.16211. Original: markweberdev/maskbit (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.resnet import Downsample, Upsample
from zoo.quantizers import (
    BinaryConfig,
    BinaryEntropyConfig,
    Quantized,
    QuantizerConfig,
    SoftEntropyConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class MaskBitConfig(Config):
    """Sizes of the network; the defaults are those of the published 14 bit model."""

    channels: int = 128  # width of the first level
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level of the encoder
    decoder_blocks: int | None = None  # the same of the decoder; None: as many as the encoder
    strided_convolution: bool = True  # the encoder halves the size by a strided convolution, else by averaging
    norm_groups: int = 32
    quantizer: QuantizerConfig = BinaryConfig(bits=14, entropy=BinaryEntropyConfig(temperature=0.01, floor=1e-5))

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)


@register("maskbit")
class MaskBit(Tokenizer):
    """Images (B, 3, H, W) in [0, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: MaskBitConfig) -> None:
        stride = 2 ** (len(config.channel_multipliers) - 1)
        spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.movedim(-1, 1))


class _Block(nn.Module):
    """norm, SiLU, convolution, twice, without biases; plus the input.

    Where the width changes, the published weights add a 1x1 convolution of the block's own output and no skip at all.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return x + h if self.shortcut is None else h + self.shortcut(h)


def _blocks(in_channels: int, out_channels: int, count: int, groups: int) -> list[_Block]:
    widths = [in_channels] + [out_channels] * count
    return [_Block(a, b, groups) for a, b in pairwise(widths)]


class _Level(nn.Module):
    def __init__(self, blocks: list[_Block], resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class _Encoder(nn.Module):
    def __init__(self, config: MaskBitConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        groups = config.norm_groups
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        self.levels = nn.Sequential()
        for i, (before, width) in enumerate(zip([config.channels, *widths], widths)):
            halve = Downsample(width) if config.strided_convolution else nn.AvgPool2d(2)
            resample = halve if i < len(widths) - 1 else nn.Identity()
            self.levels.append(_Level(_blocks(before, width, config.blocks, groups), resample))
        self.mid = nn.Sequential(*_blocks(widths[-1], widths[-1], config.blocks, groups))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.quantizer.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.levels(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class _Decoder(nn.Module):
    def __init__(self, config: MaskBitConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        groups, blocks = config.norm_groups, config.decoder_blocks or config.blocks
        self.conv_in = nn.Conv2d(config.quantizer.dim, widths[0], 3, padding=1)
        self.mid = nn.Sequential(*_blocks(widths[0], widths[0], blocks, groups))
        self.levels = nn.Sequential()  # coarsest first
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths)):
            resample = Upsample(width) if i < len(widths) - 1 else nn.Identity()
            self.levels.append(_Level(_blocks(before, width, blocks, groups), resample))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.levels(self.mid(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


def config_from_original(meta: dict[str, Any]) -> MaskBitConfig:
    """The config of the original's `vq_model` section, as a fixture or a published listing states it."""
    kwargs = meta["original"]["kwargs"]
    temperature, gamma = kwargs["entropy_loss_temperature"], kwargs["entropy_gamma"]
    weighed = kwargs["entropy_loss_weight"] != 0
    quantizer: QuantizerConfig
    if kwargs["quantizer_type"] == "lookup-free":
        entropy = BinaryEntropyConfig(temperature, gamma, floor=1e-5) if weighed else None
        quantizer = BinaryConfig(kwargs["token_size"], entropy)
    else:
        quantizer = VectorConfig(
            codebook_size=kwargs["codebook_size"],
            dim=kwargs["token_size"],
            metric="cosine" if kwargs.get("use_l2_normalisation") else "euclidean",
            entropy=SoftEntropyConfig(temperature, gamma, clamp=1e-5) if weighed else None,
        )
    return MaskBitConfig(
        channels=kwargs["hidden_channels"],
        channel_multipliers=tuple(kwargs["channel_mult"]),
        blocks=kwargs["num_res_blocks"],
        decoder_blocks=kwargs.get("num_res_blocks_decoder"),
        strided_convolution=kwargs["sample_with_conv"],
        norm_groups=kwargs.get("norm_num_groups", 32),
        quantizer=quantizer,
    )


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing: the MaskGIT weights store the decoder the other way round."""
    return KEY_MAP_LEGACY if meta["original"]["kwargs"].get("legacy") else KEY_MAP


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names and weights; `loss.quantizer` is their sum."""
    kwargs, losses, statistics = meta["original"]["kwargs"], quantized.losses, quantized.statistics
    zero = losses["commitment"].new_zeros(())
    weighed = {
        "loss.commitment": kwargs["commitment_cost"] * losses["commitment"],
        "loss.codebook": losses.get("codebook", zero),
        "loss.entropy": kwargs["entropy_loss_weight"] * losses.get("entropy", zero),
    }
    return {
        "loss.quantizer": torch.stack(list(weighed.values())).sum(),
        **weighed,
        "statistic.per_sample_entropy": statistics.get("sample_entropy", zero),
        "statistic.avg_entropy": kwargs["entropy_gamma"] * statistics.get("codebook_entropy", zero),
    }


_SHARED = {
    "encoder.conv_in.*": "encoder.conv_in.*",
    "encoder.down.{}.res_blocks.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
    "encoder.down.{}.res_blocks.{}.*": "encoder.levels.{}.blocks.{}.*",
    "encoder.down.{}.down_conv.*": "encoder.levels.{}.resample.conv.*",
    "encoder.mid.res_blocks.{}.*": "encoder.mid.{}.*",
    "encoder.norm_out.*": "encoder.norm_out.*",
    "encoder.conv_out.*": "encoder.conv_out.*",
    "quantize.embedding.weight": "quantizer.codebook.weight",
    "quantize.bits_to_indices": None,  # powers of two
    "quantize.codebook": None,  # all sign vectors, which are computed
    "decoder.conv_in.*": "decoder.conv_in.*",
    "decoder.mid.res_blocks.{}.*": "decoder.mid.{}.*",
    "decoder.norm_out.*": "decoder.norm_out.*",
    "decoder.conv_out.*": "decoder.conv_out.*",
}

KEY_MAP = KeyMap(
    {
        **_SHARED,
        "decoder.up.{}.res_blocks.{}.nin_shortcut.*": "decoder.levels.{}.blocks.{}.shortcut.*",
        "decoder.up.{}.res_blocks.{}.*": "decoder.levels.{}.blocks.{}.*",
        "decoder.up.{}.upsample_conv.*": "decoder.levels.{}.resample.conv.*",
    }
)

KEY_MAP_LEGACY = KeyMap(
    {
        **_SHARED,
        "decoder.up.{i}.res_blocks.{j}.nin_shortcut.*": "decoder.levels.{-i}.blocks.{j}.shortcut.*",  # finest first
        "decoder.up.{i}.res_blocks.{j}.*": "decoder.levels.{-i}.blocks.{j}.*",
        "decoder.up.{i}.upsample_conv.*": "decoder.levels.{-i}.resample.conv.*",
    }
)
