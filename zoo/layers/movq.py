"""MoVQ's decoder (arXiv 2209.09002): that of the VQGAN line, with norms whose scale and shift come from the codes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.attention import attended
from zoo.layers.in_place import added, silu
from zoo.layers.inference import channels_last
from zoo.layers.resnet import Upsample
from zoo.layers.vqgan import Level


class SpatialNorm(nn.Module):
    """A group norm (eps 1e-6), then scale and shift that the nearest code gives by 1x1 convolutions.

    (B, channels, H, W) and codes (B, dim, h, w), which divide H and W -> (B, channels, H, W). Names as published.
    """

    def __init__(self, channels: int, dim: int, groups: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(dim, channels, 1)
        self.conv_b = nn.Conv2d(dim, channels, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        scale, shift = (  # of each code once, not of each place that takes it
            F.interpolate(conv(codes), size=x.shape[-2:], mode="nearest") for conv in (self.conv_y, self.conv_b)
        )
        return self.norm_layer(x) * scale + shift


class SpatialResBlock(nn.Module):
    """`zoo.layers.resnet.ResBlock` with spatial norms: (B, in_channels, H, W) and codes -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = SpatialNorm(in_channels, dim, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = SpatialNorm(out_channels, dim, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x, codes)))
        h = self.conv2(self.dropout(silu(self.norm2(h, codes))))
        return added(h, self.shortcut(x))


class SpatialNormAttention(nn.Module):
    """`zoo.layers.attention.SpatialAttention` with a spatial norm: (B, C, H, W) and codes -> (B, C, H, W)."""

    def __init__(self, channels: int, dim: int, groups: int) -> None:
        super().__init__()
        self.norm = SpatialNorm(channels, dim, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        h = self.norm(x, codes)
        return x + self.proj_out(attended(self.q(h), self.k(h), self.v(h)))


class SpatialLevel(nn.Module):
    """Blocks, each with attention after it where the level has it, and a change of size at the end."""

    def __init__(self, channels: int, level: Level, dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        widths = [channels] + [level.width] * level.blocks
        self.blocks = nn.ModuleList(SpatialResBlock(a, b, dim, groups, dropout) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(
            SpatialNormAttention(level.width, dim, groups) for _ in range(level.blocks * level.attention)
        )
        self.resample = Upsample(level.width) if level.resample else nn.Identity()

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, codes)
            if len(self.attentions) > 0:
                x = self.attentions[i](x, codes)
        return self.resample(x)


class MoVQDecoder(nn.Module):
    """(B, in_channels, h, w) and codes (B, dim, h, w) -> (B, out_channels, h * f, w * f), f = 2 ** number of levels
    that resample; attention between the two blocks before the coarsest level.

    Args:
        levels: from the coarsest to the finest.
        dim: of the codes.
    """

    def __init__(
        self,
        in_channels: int,
        levels: Sequence[Level],
        out_channels: int,
        dim: int,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [levels[0].width, *(level.width for level in levels)]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid = nn.ModuleList(
            (
                SpatialResBlock(widths[0], widths[0], dim, groups, dropout),
                SpatialNormAttention(widths[0], dim, groups),
                SpatialResBlock(widths[0], widths[0], dim, groups, dropout),
            )
        )
        self.levels = nn.ModuleList(
            SpatialLevel(width, level, dim, groups, dropout) for width, level in zip(widths, levels)
        )
        self.norm_out = SpatialNorm(widths[-1], dim, groups)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        x = self.conv_in(channels_last(x))
        for layer in [*self.mid, *self.levels]:
            x = layer(x, codes)
        return self.conv_out(silu(self.norm_out(x, codes))).contiguous()
