"""Snake, a periodic activation with a learned frequency a channel (arXiv 2006.08195), and the codec networks built on
it by DAC (arXiv 2306.06546): strided convolutions between residual units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.channels_inside import WaveConv1d, WaveConvTranspose1d
from zoo.layers.in_place import added
from zoo.ops.activations import snake

_DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha on (B, C, T), with alpha (1, C, 1)."""

    pointwise = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return snake(x.transpose(1, 2), self.alpha.flatten()).transpose(1, 2)


class SnakeUnit(nn.Module):
    """Dilated convolution of 7 and one of 1, each after Snake, plus the input: (B, C, T) -> the same.

    Of DAC, arXiv 2306.06546. `groups`: of the first convolution.
    """

    def __init__(self, channels: int, dilation: int, groups: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Snake(channels),
            WaveConv1d(channels, channels, 7, padding=3 * dilation, dilation=dilation, groups=groups),
            Snake(channels),
            WaveConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        cut = (x.shape[-1] - y.shape[-1]) // 2  # of convolutions whose padding was switched off
        return added(y, x[..., cut : x.shape[-1] - cut])


class SnakeEncoder(nn.Module):
    """Signal (B, 1, T), T a multiple of the product of the strides -> (B, dim, T / product).

    Args:
        channels: at the signal's rate, doubled by each stride.
        strides: of the stages.
        dim: channels of the output.
    """

    def __init__(self, channels: int, strides: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.conv_in = WaveConv1d(1, channels, 7, padding=3)
        self.stages = nn.ModuleList()
        for stride in strides:
            down = WaveConv1d(channels, 2 * channels, 2 * stride, stride, math.ceil(stride / 2))
            self.stages.append(nn.Sequential(*_units(channels), Snake(channels), down))
            channels *= 2
        self.snake = Snake(channels)
        self.conv_out = WaveConv1d(channels, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.stages:
            x = stage(x)
        return self.conv_out(self.snake(x))


class SnakeDecoder(nn.Module):
    """(B, dim, frames) -> signal (B, 1, T), T = frames * product of the strides.

    Args:
        dim: channels of the input.
        channels: at the lowest rate, halved by each stride.
        strides: of the stages.
        whole: without it each odd stride loses a position at the end, as DAC's own do, and T is smaller.
        bounded: the signal is bent into (-1, 1) by tanh.
    """

    def __init__(
        self, dim: int, channels: int, strides: tuple[int, ...], *, whole: bool = True, bounded: bool = False
    ) -> None:
        super().__init__()
        self.bounded = bounded
        self.conv_in = WaveConv1d(dim, channels, 7, padding=3)
        self.stages = nn.ModuleList()
        for stride in strides:
            width, more = channels // 2, stride % 2 if whole else 0
            up = WaveConvTranspose1d(channels, width, 2 * stride, stride, math.ceil(stride / 2), more)
            self.stages.append(nn.Sequential(Snake(channels), up, *_units(width)))
            channels = width
        self.snake = Snake(channels)
        self.conv_out = WaveConv1d(channels, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.stages:
            x = stage(x)
        signal = self.conv_out(self.snake(x))
        return signal.tanh() if self.bounded else signal


def _units(channels: int) -> list[nn.Module]:
    return [SnakeUnit(channels, dilation) for dilation in _DILATIONS]


def check_sizes(
    config: Config, sample_rate: int, strides: tuple[int, ...], decoder_strides: tuple[int, ...], decoder_channels: int
) -> None:
    """Raise a ConfigError unless encoder and decoder have one hop length and the decoder's channels can be halved."""
    config.require(sample_rate >= 1, "sample_rate >= 1", sample_rate)
    config.require(min(strides, default=0) >= 1, "strides >= 1", strides)
    hop = math.prod(strides)
    config.require(hop == math.prod(decoder_strides), f"decoder strides of product {hop}", decoder_strides)
    least = 2 ** len(decoder_strides)
    config.require(decoder_channels % least == 0, f"a multiple of {least} channels", decoder_channels)
