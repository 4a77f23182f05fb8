"""Periodic activations without aliasing, and the codec blocks that are built on them.

BigVGAN, arXiv 2206.04658 (its log-scale snake with two parameters); as autoencoders: BigCodec, arXiv 2409.05377.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 12  # of the filters around the activation


def kaiser_sinc(taps: int, cutoff: float, half_width: float) -> Tensor:
    """An even number of taps of a low-pass filter of sum 1: (taps,).

    Args:
        cutoff, half_width: in cycles a sample: where the pass band ends, and half the width of the transition.
    """
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        excess = max(0.0, attenuation - 21)
        beta = 0.5842 * excess**0.4 + 0.07886 * excess
    time = torch.arange(taps) - taps // 2 + 0.5
    window = torch.kaiser_window(taps, periodic=False, beta=beta)
    taper = 2 * cutoff * window * torch.sinc(2 * cutoff * time)
    return taper / taper.sum()


class AliasFreeSnake(nn.Module):
    """x + sin^2(e^alpha x) / e^beta a channel, at twice the sample rate between two low-pass filters.

    (B, C, T) -> the same. The signal goes on beyond its ends as its last value.
    """

    filter: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("filter", kaiser_sinc(TAPS, 0.25, 0.3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self._upsample(x)
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return self._downsample(x + (x * alpha).sin().square() / (beta + 1e-9))

    def _upsample(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, 2 T): each new sample is a sum of half of the taps over the old ones."""
        around = TAPS // 4
        phases = 2 * self.filter.flip(0).view(-1, 2).T[:, None].to(x.dtype)  # (2, 1, taps / 2)
        padded = F.pad(x, (around, around), mode="replicate").flatten(0, 1)[:, None]
        pairs = F.conv1d(padded, phases)  # (B C, 2, T + 1): the even samples, and the odd ones one later
        joined = torch.stack([pairs[:, 0, :-1], pairs[:, 1, 1:]], dim=-1)
        return joined.view(*x.shape[:2], -1)

    def _downsample(self, x: Tensor) -> Tensor:
        """(B, C, 2 T) -> (B, C, T)."""
        before = TAPS // 2 - 1
        padded = F.pad(x, (before, before + 1), mode="replicate").flatten(0, 1)[:, None]
        return F.conv1d(padded, self.filter[None, None].to(x.dtype), stride=2).view(*x.shape[:2], -1)


class AliasFreeUnit(nn.Module):
    """Activation, dilated convolution of 7, activation, 1x1 convolution; plus the input: (B, C, T) -> the same."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.activation1 = AliasFreeSnake(channels)
        self.conv1 = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.activation2 = AliasFreeSnake(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.activation2(self.conv1(self.activation1(x))))


class AliasFreeDown(nn.Module):
    """Units at the input's width, activation, and a convolution of `stride` that doubles the width.

    (B, C, T) -> (B, 2 C, T / stride), T a multiple of the stride.
    """

    def __init__(self, channels: int, stride: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.units = nn.Sequential(*(AliasFreeUnit(channels, dilation) for dilation in dilations))
        self.activation = AliasFreeSnake(channels)
        self.conv = nn.Conv1d(channels, 2 * channels, 2 * stride, stride, padding=stride // 2 + stride % 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.activation(self.units(x)))


class AliasFreeUp(nn.Module):
    """Activation, a transposed convolution of `stride` that halves the width, and units.

    (B, C, T) -> (B, C / 2, T x stride).
    """

    def __init__(self, channels: int, stride: int, dilations: Sequence[int]) -> None:
        super().__init__()
        half, odd = channels // 2, stride % 2
        self.activation = AliasFreeSnake(channels)
        self.conv = nn.ConvTranspose1d(
            channels, half, 2 * stride, stride, padding=stride // 2 + odd, output_padding=odd
        )
        self.units = nn.Sequential(*(AliasFreeUnit(half, dilation) for dilation in dilations))

    def forward(self, x: Tensor) -> Tensor:
        return self.units(self.conv(self.activation(x)))
