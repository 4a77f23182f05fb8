"""Open-MAGVIT2's image tokenizer: a convolutional autoencoder with bits (LFQ); its decoder is told the codes' moments.

Paper: arXiv 2409.04410. Original: TencentARC/SEED-Voken (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.inference import channels_last, norm_silu
from zoo.layers.resnet import ResBlock
from zoo.quantizers import BinaryConfig, BinaryEntropyConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class OpenMAGVIT2Config(Config):
    """Sizes of the network; the defaults are those of the published 256 px model."""

    channels: int = 128  # width of the first level
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 4  # residual blocks a level, and in the middle
    norm_groups: int = 32
    quantizer: QuantizerConfig = BinaryConfig(bits=18, entropy=BinaryEntropyConfig(temperature=0.01, shift=1e-5))
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)


@register("open_magvit2")
class OpenMAGVIT2(Tokenizer):
    """Images (B, C, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: OpenMAGVIT2Config) -> None:
        stride = 2 ** (len(config.channel_multipliers) - 1)
        spec = InputSpec("image", channels=config.in_channels, value_range=(-1.0, 1.0), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.movedim(-1, 1))


def _blocks(in_channels: int, out_channels: int, config: OpenMAGVIT2Config) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * config.blocks
    return nn.Sequential(*(ResBlock(a, b, config.norm_groups, bias=False) for a, b in pairwise(widths)))


class _EncoderLevel(nn.Module):
    def __init__(self, in_channels: int, width: int, config: OpenMAGVIT2Config, halve: bool) -> None:
        super().__init__()
        self.blocks = _blocks(in_channels, width, config)
        self.resample = nn.Conv2d(width, width, 3, stride=2, padding=1) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class _Encoder(nn.Module):
    def __init__(self, config: OpenMAGVIT2Config) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.channels, 3, padding=1, bias=False)
        self.levels = nn.Sequential(
            *(_EncoderLevel(a, b, config, i < last) for i, (a, b) in enumerate(pairwise([config.channels, *widths])))
        )
        self.mid = _blocks(widths[-1], widths[-1], config)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.quantizer.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.levels(self.conv_in(channels_last(x))))
        return self.conv_out(norm_silu(self.norm_out, x, spare=True))


class _AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift follow from the spread and the mean of the codes over all positions."""

    def __init__(self, channels: int, code_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.gamma = nn.Linear(code_channels, channels)
        self.beta = nn.Linear(code_channels, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        several = codes.shape[2] * codes.shape[3] > 1  # of a single position the unbiased variance would be NaN
        variance, mean = torch.var_mean(codes, dim=(2, 3), correction=int(several))
        scale, shift = self.gamma((variance + 1e-6).sqrt()), self.beta(mean)
        return torch.addcmul(shift[..., None, None], scale[..., None, None], self.norm(x))


class _DepthToSpace(nn.Module):
    """Doubles H and W: a 3x3 convolution to four times the channels, ordered (row, column, channel)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        corners = self.conv(x).unflatten(1, (2, 2, channels))
        rows = corners.permute(0, 4, 1, 5, 2, 3)  # (B, H, 2, W, 2, C)
        return rows.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class _DecoderLevel(nn.Module):
    def __init__(self, in_channels: int, width: int, config: OpenMAGVIT2Config, double: bool) -> None:
        super().__init__()
        self.adaptive = _AdaptiveNorm(in_channels, config.quantizer.dim, config.norm_groups)
        self.blocks = _blocks(in_channels, width, config)
        self.resample = _DepthToSpace(width) if double else nn.Identity()

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        return self.resample(self.blocks(self.adaptive(x, codes)))


class _Decoder(nn.Module):
    def __init__(self, config: OpenMAGVIT2Config) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.quantizer.dim, widths[0], 3, padding=1)
        self.mid = _blocks(widths[0], widths[0], config)
        self.levels = nn.ModuleList(
            _DecoderLevel(a, b, config, i < last) for i, (a, b) in enumerate(pairwise([widths[0], *widths]))
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.conv_in(channels_last(codes)))
        for level in self.levels:
            x = level(x, codes)
        return self.conv_out(norm_silu(self.norm_out, x, spare=True)).contiguous()


def config_from_original(meta: dict[str, Any]) -> OpenMAGVIT2Config:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    kwargs = meta["original"]["kwargs"]
    network = kwargs["ddconfig"]
    # the config holds the ratio of the two weights; `original_losses` has the first
    gamma = kwargs["batch_maximization_weight"] / kwargs["sample_minimization_weight"]
    return OpenMAGVIT2Config(
        in_channels=network.get("in_channels", 3),
        channels=network["ch"],
        channel_multipliers=tuple(network["ch_mult"]),
        blocks=network["num_res_blocks"],
        norm_groups=kwargs.get("norm_num_groups", 32),
        quantizer=BinaryConfig(network["z_channels"], BinaryEntropyConfig(temperature=0.01, gamma=gamma, shift=1e-5)),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names, unweighted; it has none in evaluation mode."""
    losses, statistics = quantized.losses, quantized.statistics
    if "entropy" not in losses:
        return {}
    return {
        "loss.commit": losses["commitment"],
        "loss.entropy": meta["original"]["kwargs"]["sample_minimization_weight"] * losses["entropy"],
        "statistic.sample_entropy": statistics["sample_entropy"],
        "statistic.batch_entropy": statistics["codebook_entropy"],
    }


KEY_MAP = KeyMap(
    {
        "encoder.conv_in.*": "encoder.conv_in.*",
        "encoder.down.{}.block.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
        "encoder.down.{}.block.{}.*": "encoder.levels.{}.blocks.{}.*",
        "encoder.down.{}.downsample.*": "encoder.levels.{}.resample.*",
        "encoder.mid_block.{}.*": "encoder.mid.{}.*",
        "encoder.norm_out.*": "encoder.norm_out.*",
        "encoder.conv_out.*": "encoder.conv_out.*",
        "decoder.conv_in.*": "decoder.conv_in.*",
        "decoder.mid_block.{}.*": "decoder.mid.{}.*",
        "decoder.adaptive.{i}.*": "decoder.levels.{-i}.adaptive.*",  # stored finest first
        "decoder.up.{i}.block.{j}.nin_shortcut.*": "decoder.levels.{-i}.blocks.{j}.shortcut.*",
        "decoder.up.{i}.block.{j}.*": "decoder.levels.{-i}.blocks.{j}.*",
        "decoder.up.{i}.upsample.conv1.*": "decoder.levels.{-i}.resample.conv.*",
        "decoder.norm_out.*": "decoder.norm_out.*",
        "decoder.conv_out.*": "decoder.conv_out.*",
        "loss.*": None,  # discriminator and perceptual network of the original's training
    },
    ema="model_ema.",  # the averaged weights, with which the original evaluates, stand beside the raw ones
)
