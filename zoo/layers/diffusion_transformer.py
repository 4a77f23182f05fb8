"""Transformers that predict the velocity of a rectified flow, told the time by modulation of their norms.

DiT, arXiv 2212.09748; rectified flow, arXiv 2209.03003.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.layers.positions import sine_grid, waves


class PlainNorm(nn.LayerNorm):
    """Layer norm without learned factors and offsets."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__(width, eps=eps, elementwise_affine=False)


class WaveEmbedding(nn.Sequential):
    """Values (...) -> (..., width): 256 waves of the value, linear, SiLU, linear."""

    def __init__(self, width: int, base: float = 10_000.0) -> None:
        super().__init__(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.base = base

    def forward(self, values: Tensor) -> Tensor:
        dtype = next((weight.dtype for weight in self.parameters()), torch.float32)  # quantised layers have none
        return super().forward(waves(values, 256, self.base).to(dtype))


class Modulation(nn.Sequential):
    """An embedding (..., in_width) -> `parts` vectors (..., parts, width) that shift, scale or gate features."""

    def __init__(self, width: int, parts: int, in_width: int | None = None) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width if in_width is None else in_width, parts * width))
        self.parts = parts

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding).unflatten(-1, (self.parts, -1))


class GridPatches(nn.Module):
    """Maps (B, C, H, W) -> patches (B, N, width), with positions from the middle of a stored grid of `side` squared."""

    positions: Tensor

    def __init__(self, channels: int, width: int, size: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, size, stride=size)
        columns_first = sine_grid(width, side).transpose(2, 3)
        self.register_buffer("positions", columns_first.flatten(2).transpose(1, 2))
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        top, left = ((self.side - extent) // 2 for extent in x.shape[2:])
        grid = self.positions.unflatten(1, (self.side, self.side))
        grid = grid[:, top : top + x.shape[2], left : left + x.shape[3]]
        return x.flatten(2).transpose(1, 2) + grid.flatten(1, 2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


def flow_times(steps: int) -> list[float]:
    """The falling times, 1 being noise and 0 the signal, that sampling in `steps` equal steps visits.

    Raises:
        ValueError: steps below 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an integer of at least 1, got {steps!r}")
    return [step / steps for step in range(steps, 0, -1)]


def euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int) -> Tensor:
    """A signal (B, ...) from noise of its shape, by equal steps against the velocity (noise - signal).

    Args:
        velocity: of the state at a time in (0, 1].
        noise: normal, where sampling starts.
        steps: how many.

    Raises:
        ValueError: steps below 1.
    """
    x = noise
    for time in flow_times(steps):
        x = x - velocity(x, time) / steps
    return x


def interpolate(signal: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The state (B, ...) of the flow at times (B,): times x noise + (1 - times) x signal."""
    return torch.lerp(signal, noise, times.view(-1, *[1] * (signal.ndim - 1)).to(signal))


def image_of(patches: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Patches (B, N, size^2 C), row by row with the channels last, on a grid of (rows, columns) -> (B, C, H, W)."""
    x = patches.unflatten(1, grid).unflatten(-1, (size, size, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
