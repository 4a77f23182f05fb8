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
