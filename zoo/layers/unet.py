"""The UNet of guided diffusion (arXiv 2105.05233), which predicts from a noisy image and a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.attention import SpatialAttention
from zoo.layers.positions import waves
from zoo.layers.resnet import Upsample


class TimedResBlock(nn.Module):
    """norm, SiLU, 3x3 convolution, plus the time, norm, SiLU, 3x3 convolution; plus the input (1x1-projected)."""

    def __init__(self, in_channels: int, out_channels: int, time_width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class _Step(nn.ModuleList):
    """Layers in turn, of which the residual blocks are told the time."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, TimedResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """Noisy signal (B, in_channels, H, W) and times (B,) -> (B, out_channels, H, W).

    H and W are multiples of 2 ** (number of levels - 1).

    Args:
        channels: width of the first level, and of the embedding of time.
        multipliers: of the width, one per level, finest first.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: downsampling factors (1, 2, 4, ...) of the levels with attention.
        groups: of the group norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.channels, time_width = channels, 4 * channels
        self.time = nn.Sequential(nn.Linear(channels, time_width), nn.SiLU(), nn.Linear(time_width, time_width))

        def block(before: int, after: int) -> TimedResBlock:
            return TimedResBlock(before, after, time_width, groups)

        def attend(width: int, level: int) -> list[nn.Module]:
            return [SpatialAttention(width, groups, fused=True, eps=1e-5)] if 2**level in attention else []

        width = channels * multipliers[0]
        self.down = nn.ModuleList([_Step([nn.Conv2d(in_channels, width, 3, padding=1)])])
        skips = [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                before, width = width, channels * multiplier
                self.down.append(_Step([block(before, width), *attend(width, level)]))
                skips.append(width)
            if level < len(multipliers) - 1:
                self.down.append(_Step([nn.Conv2d(width, width, 3, stride=2, padding=1)]))
                skips.append(width)
        middle = SpatialAttention(width, groups, fused=True, eps=1e-5)
        self.middle = _Step([block(width, width), middle, block(width, width)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for i in range(blocks + 1):
                before, width = width + skips.pop(), channels * multiplier
                grow = [Upsample(width)] if level > 0 and i == blocks else []
                self.up.append(_Step([block(before, width), *attend(width, level), *grow]))
        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        time = self.time(waves(times, self.channels).to(x.dtype))
        skips = []
        for step in self.down:
            x = step(x, time)
            skips.append(x)
        x = self.middle(x, time)
        for step in self.up:
            x = step(torch.cat([x, skips.pop()], dim=1), time)
        return self.out(x)
