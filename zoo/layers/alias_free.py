"""Periodic activations without aliasing, and the codec blocks that are built on them.

BigVGAN, arXiv 2206.04658 (its log-scale snake with two parameters); as autoencoders: BigCodec, arXiv 2409.05377.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.constants import HasConstants
from zoo.layers.conv1d import LSTM

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


class AliasFreeSnake(HasConstants):
    """x + sin^2(e^alpha x) / e^beta a channel, at twice the sample rate between two low-pass filters.

    (B, C, T) -> the same. The signal goes on beyond its ends as its last value.
    """

    filter: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_constant("filter", kaiser_sinc, TAPS, 0.25, 0.3)

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
        self.block = nn.Sequential(
            AliasFreeSnake(channels),
            nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            AliasFreeSnake(channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class AliasFreeDown(nn.Sequential):
    """Units at the input's width, activation, and a convolution of `stride` that doubles the width.

    (B, C, T) -> (B, 2 C, T / stride), T a multiple of the stride.
    """

    def __init__(self, channels: int, stride: int, dilations: Sequence[int]) -> None:
        super().__init__(
            *(AliasFreeUnit(channels, dilation) for dilation in dilations),
            AliasFreeSnake(channels),
            nn.Conv1d(channels, 2 * channels, 2 * stride, stride, padding=stride // 2 + stride % 2),
        )


class AliasFreeUp(nn.Sequential):
    """Activation, a transposed convolution of `stride` that halves the width, and units.

    (B, C, T) -> (B, C / 2, T x stride).
    """

    def __init__(self, channels: int, stride: int, dilations: Sequence[int]) -> None:
        half, odd = channels // 2, stride % 2
        super().__init__(
            AliasFreeSnake(channels),
            nn.ConvTranspose1d(channels, half, 2 * stride, stride, padding=stride // 2 + odd, output_padding=odd),
            *(AliasFreeUnit(half, dilation) for dilation in dilations),
        )


class AliasFreeEncoder(nn.Module):
    """Waveform (B, 1, T) -> (B, dim, T / hop), T a multiple of the product of the strides.

    Args:
        channels: width at the signal's rate, doubled by each stride.
        strides: from the signal's rate on.
        dilations: of the units of each stride.
        dim: width of the result.
        lstm_layers: of a recurrent network before the last convolution; 0 for none.
        bidirectional: whether that goes in both directions, each of half the width.
    """

    def __init__(
        self, channels: int, strides: Sequence[int], dilations: Sequence[int], dim: int, lstm_layers: int = 0,
        bidirectional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, channels, 7, padding=3)]
        for stride in strides:
            layers.append(AliasFreeDown(channels, stride, dilations))
            channels *= 2
        if lstm_layers:
            layers.append(LSTM(channels, lstm_layers, bidirectional, channels // 2 if bidirectional else None))
        layers += [AliasFreeSnake(channels), nn.Conv1d(channels, dim, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class AliasFreeDecoder(nn.Module):
    """(B, dim, T) -> waveform (B, 1, T x hop) in (-1, 1); arguments as the encoder's, `channels` at the lowest rate."""

    def __init__(
        self, channels: int, strides: Sequence[int], dilations: Sequence[int], dim: int, lstm_layers: int = 0,
        bidirectional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(dim, channels, 7, padding=3)]
        if lstm_layers:
            layers.append(LSTM(channels, lstm_layers, bidirectional, channels // 2 if bidirectional else None))
        for stride in strides:
            layers.append(AliasFreeUp(channels, stride, dilations))
            channels //= 2
        layers += [AliasFreeSnake(channels), nn.Conv1d(channels, 1, 7, padding=3), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
