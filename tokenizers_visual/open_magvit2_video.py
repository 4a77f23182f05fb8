"""Open-MAGVIT2's video tokenizer: its image tokenizer with convolutions over time, which see no later frame.

Paper: arXiv 2409.04410. Original: TencentARC/SEED-Voken (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual import open_magvit2
from zoo.config import Config
from zoo.layers.in_place import added, silu
from zoo.layers.open_magvit2 import AdaptiveNorm
from zoo.quantizers import BinaryConfig, BinaryEntropyConfig, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class OpenMAGVIT2VideoConfig(Config):
    """Sizes of the network; the defaults are those of the published model."""

    channels: int = 128  # width of the first level
    # one per level; stride = 2 ** (levels - 1). From level to level frames halve too, but after a multiplier of 1
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 4  # residual blocks a level, and in the middle
    norm_groups: int = 32
    quantizer: QuantizerConfig = BinaryConfig(bits=18, entropy=BinaryEntropyConfig(temperature=0.01, shift=1e-5))
    in_channels: int = 3  # of the video

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)

    @property
    def strides(self) -> list[tuple[int, int, int]]:
        """Of frames, rows and columns, after each level but the last."""
        return [(1 if multiplier == 1 else 2, 2, 2) for multiplier in self.channel_multipliers[:-1]]


@register("open_magvit2_video")
class OpenMAGVIT2Video(Tokenizer):
    """Video (B, C, T, H, W) in [-1, 1], T = 1 + k c, H and W multiples of the stride f -> a grid of tokens
    (B, 1 + k, H / f, W / f). An image is a video of one frame. Norms see all frames: tokens depend on later ones.
    """

    def __init__(self, config: OpenMAGVIT2VideoConfig) -> None:
        frames = 2 ** sum(stride[0] == 2 for stride in config.strides)
        spec = InputSpec(
            "video",
            channels=config.in_channels,
            value_range=(-1.0, 1.0),
            multiple=2 ** len(config.strides),
            frame_multiple=frames,
        )
        super().__init__(config, spec, config.quantizer)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.movedim(-1, 1))


class _CausalConv(nn.Module):
    """Convolution over (B, C, T, H, W) that sees zeros around space and before time. Names as published."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - 1, 0)
        self.conv_1 = nn.Conv3d(in_channels, out_channels, kernel, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_1(F.pad(x, self.padding))


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = _CausalConv(in_channels, out_channels, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = _CausalConv(out_channels, out_channels, bias=False)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else _CausalConv(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return added(self.conv2(silu(self.norm2(h))), self.shortcut(x))


def _blocks(in_channels: int, out_channels: int, config: OpenMAGVIT2VideoConfig) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * config.blocks
    return nn.Sequential(*(_ResBlock(a, b, config.norm_groups) for a, b in pairwise(widths)))


class _EncoderLevel(nn.Module):
    def __init__(
        self, in_channels: int, width: int, stride: tuple[int, int, int] | None, config: OpenMAGVIT2VideoConfig
    ) -> None:
        super().__init__()
        self.blocks = _blocks(in_channels, width, config)
        self.resample = _CausalConv(width, width, stride=stride) if stride else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class _Encoder(nn.Module):
    def __init__(self, config: OpenMAGVIT2VideoConfig) -> None:
        super().__init__()
        widths = [config.channels, *(config.channels * multiplier for multiplier in config.channel_multipliers)]
        strides = [*config.strides, None]
        self.conv_in = _CausalConv(config.in_channels, config.channels, bias=False)
        self.levels = nn.Sequential(
            *(_EncoderLevel(a, b, stride, config) for (a, b), stride in zip(pairwise(widths), strides))
        )
        self.mid = _blocks(widths[-1], widths[-1], config)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = _CausalConv(widths[-1], config.quantizer.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.levels(self.conv_in(x)))
        return self.conv_out(silu(self.norm_out(x)))


class _DepthToSpace(nn.Module):
    """A convolution to more channels, ordered (frame, row, column, channel), that become places; of twice the frames
    the second is left out.
    """

    def __init__(self, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.conv = _CausalConv(channels, channels * stride[0] * stride[1] * stride[2])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).unflatten(1, (*self.stride, -1))  # (B, t, h, w, C, T, H, W)
        x = x.permute(0, 4, 5, 1, 6, 2, 7, 3).flatten(2, 3).flatten(3, 4).flatten(4, 5)
        return x if self.stride[0] == 1 else torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2)


class _DecoderLevel(nn.Module):
    def __init__(
        self, in_channels: int, width: int, stride: tuple[int, int, int] | None, config: OpenMAGVIT2VideoConfig
    ) -> None:
        super().__init__()
        self.adaptive = AdaptiveNorm(in_channels, config.quantizer.dim, config.norm_groups)
        self.blocks = _blocks(in_channels, width, config)
        self.resample = _DepthToSpace(width, stride) if stride else nn.Identity()

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        return self.resample(self.blocks(self.adaptive(x, codes)))


class _Decoder(nn.Module):
    def __init__(self, config: OpenMAGVIT2VideoConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        strides = [*reversed(config.strides), None]
        self.conv_in = _CausalConv(config.quantizer.dim, widths[0])
        self.mid = _blocks(widths[0], widths[0], config)
        self.levels = nn.ModuleList(
            _DecoderLevel(a, b, stride, config) for (a, b), stride in zip(pairwise([widths[0], *widths]), strides)
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = _CausalConv(widths[-1], config.in_channels)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.conv_in(codes))
        for level in self.levels:
            x = level(x, codes)
        return self.conv_out(silu(self.norm_out(x)))


def config_from_original(meta: dict[str, Any]) -> OpenMAGVIT2VideoConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    image = open_magvit2.config_from_original(meta)
    return OpenMAGVIT2VideoConfig(**{name: getattr(image, name) for name in image.__dataclass_fields__})


original_losses = open_magvit2.original_losses
KEY_MAP = open_magvit2.KEY_MAP
