"""Encoder and decoder of MaskGIT's VQGAN (arXiv 2202.04200), as VQGAN+ and MaskBit kept them: no attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from zoo.layers.in_place import added
from zoo.layers.inference import channels_last, norm_silu
from zoo.layers.resnet import Downsample, Upsample


class MaskGITBlock(nn.Module):
    """norm, SiLU, convolution, twice, without biases (dropout before the second convolution); plus the input.

    (B, in_channels, H, W) -> (B, out_channels, H, W). Where the width changes, the published weights add a 1x1
    convolution of the block's own output and no skip at all.
    """

    may_end_a_pass: ClassVar[bool] = True  # of `zoo.tiling`

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(self.dropout(norm_silu(self.norm2, h, spare=True)))
        return added(h, x) if self.shortcut is None else added(self.shortcut(h), h)


def _blocks(in_channels: int, out_channels: int, count: int, groups: int, dropout: float) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * count
    return nn.Sequential(*(MaskGITBlock(a, b, groups, dropout) for a, b in pairwise(widths)))


class _Level(nn.Module):
    def __init__(self, blocks: nn.Sequential, resample: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class MaskGITEncoder(nn.Module):
    """Images (B, in_channels, H, W) -> (B, out_channels, H / f, W / f), f = 2 ** (number of levels - 1).

    Args:
        channels: width after the first convolution.
        widths: of the levels, finest first.
        blocks: residual blocks a level, and after the last one unless `middle_blocks` says otherwise.
        strided_convolution: halve the size by a convolution of stride 2, else by averaging 2 x 2.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        out_channels: int,
        groups: int = 32,
        dropout: float = 0.0,
        *,
        strided_convolution: bool,
        middle_blocks: int | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.levels = nn.Sequential()
        for i, (before, width) in enumerate(pairwise([channels, *widths])):
            halve = Downsample(width) if strided_convolution else nn.AvgPool2d(2)
            resample = halve if i < len(widths) - 1 else nn.Identity()
            self.levels.append(_Level(_blocks(before, width, blocks, groups, dropout), resample))
        self.mid = _blocks(widths[-1], widths[-1], middle_blocks or blocks, groups, dropout)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.levels(self.conv_in(channels_last(x))))
        return self.conv_out(norm_silu(self.norm_out, x, spare=True))


class MaskGITDecoder(nn.Module):
    """(B, in_channels, h, w) -> images (B, out_channels, h * f, w * f), f = 2 ** (number of levels - 1).

    Args:
        widths: of the levels, coarsest first.
        blocks: residual blocks a level, and before the first one unless `middle_blocks` says otherwise.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        blocks: int,
        groups: int = 32,
        dropout: float = 0.0,
        *,
        middle_blocks: int | None = None,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid = _blocks(widths[0], widths[0], middle_blocks or blocks, groups, dropout)
        self.levels = nn.Sequential()
        for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
            resample = Upsample(width) if i < len(widths) - 1 else nn.Identity()
            self.levels.append(_Level(_blocks(before, width, blocks, groups, dropout), resample))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.levels(self.mid(self.conv_in(channels_last(x))))
        return self.conv_out(norm_silu(self.norm_out, x, spare=True)).contiguous()
