"""Encoder and decoder of Open-MAGVIT2 (arXiv 2409.04410): levels of residual blocks; the decoder is told the moments of
what it decodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo.layers.inference import channels_last, norm_silu
from zoo.layers.resnet import ResBlock


def _blocks(in_channels: int, out_channels: int, count: int, groups: int) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * count
    return nn.Sequential(*(ResBlock(a, b, groups, bias=False) for a, b in pairwise(widths)))


class _EncoderLevel(nn.Module):
    def __init__(self, in_channels: int, width: int, blocks: int, groups: int, halve: bool) -> None:
        super().__init__()
        self.blocks = _blocks(in_channels, width, blocks, groups)
        self.resample = nn.Conv2d(width, width, 3, stride=2, padding=1) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H / f, W / f), f = 2 ** (number of levels - 1).

    Args:
        widths: of the first convolution, then of each level, the finest first.
        blocks: residual blocks of each level, and after the coarsest.
        groups: of the GroupNorms.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], blocks: int, out_channels: int, groups: int) -> None:
        super().__init__()
        last = len(widths) - 2
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.levels = nn.Sequential(
            *(_EncoderLevel(a, b, blocks, groups, i < last) for i, (a, b) in enumerate(pairwise(widths)))
        )
        self.mid = _blocks(widths[-1], widths[-1], blocks, groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.levels(self.conv_in(channels_last(x))))
        return self.conv_out(norm_silu(self.norm_out, x, spare=True))


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift follow from the spread and the mean of the codes over all positions.

    (B, channels, ...) and codes (B, code_channels, ...) of as many axes -> (B, channels, ...).
    """

    def __init__(self, channels: int, code_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.gamma = nn.Linear(code_channels, channels)
        self.beta = nn.Linear(code_channels, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        axes = tuple(range(2, codes.ndim))
        several = math.prod(codes.shape[2:]) > 1  # of a single position the unbiased variance would be NaN
        variance, mean = torch.var_mean(codes, dim=axes, correction=int(several))
        everywhere = (..., *(None for _ in axes))
        scale, shift = self.gamma((variance + 1e-6).sqrt()), self.beta(mean)
        return torch.addcmul(shift[everywhere], scale[everywhere], self.norm(x))


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
    def __init__(
        self, in_channels: int, width: int, blocks: int, code_channels: int, groups: int, double: bool
    ) -> None:
        super().__init__()
        self.adaptive = AdaptiveNorm(in_channels, code_channels, groups)
        self.blocks = _blocks(in_channels, width, blocks, groups)
        self.resample = _DepthToSpace(width) if double else nn.Identity()

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        return self.resample(self.blocks(self.adaptive(x, codes)))


class Decoder(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, h * f, w * f), f = 2 ** (number of levels - 1).

    Args:
        widths: of each level, the finest first.
        blocks: residual blocks of each level, and before the coarsest.
        groups: of the GroupNorms.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], blocks: int, out_channels: int, groups: int) -> None:
        super().__init__()
        widths = [widths[-1], *reversed(widths)]
        last = len(widths) - 2
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid = _blocks(widths[0], widths[0], blocks, groups)
        self.levels = nn.ModuleList(
            _DecoderLevel(a, b, blocks, in_channels, groups, i < last) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.conv_in(channels_last(codes)))
        for level in self.levels:
            x = level(x, codes)
        return self.conv_out(norm_silu(self.norm_out, x, spare=True)).contiguous()
