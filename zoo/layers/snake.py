"""Snake: a periodic activation with a learned frequency a channel, for waveforms (arXiv 2006.08195)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha on (B, C, T), with alpha (1, C, 1)."""

    pointwise = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.sin(self.alpha * x)
        return torch.addcmul(x, wave.square(), (self.alpha + 1e-9).reciprocal())


class SnakeUnit(nn.Module):
    """Dilated convolution of 7 and one of 1, each after Snake, plus the input: (B, C, T) -> the same.

    Of DAC, arXiv 2306.06546. `groups`: of the first convolution.
    """

    def __init__(self, channels: int, dilation: int, groups: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Snake(channels),
            nn.Conv1d(channels, channels, 7, padding=3 * dilation, dilation=dilation, groups=groups),
            Snake(channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        cut = (x.shape[-1] - y.shape[-1]) // 2  # of convolutions whose padding was switched off
        return x[..., cut : x.shape[-1] - cut] + y
