"""Sines and cosines of geometrically falling frequencies, which tell transformers positions and diffusion models times.

Attention Is All You Need, arXiv 1706.03762; on a grid: arXiv 2104.02057.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def waves(values: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """Values (...) -> (..., width), float32: cosines, then sines, of frequencies from 1 down to nearly 1 / base."""
    half = width // 2
    places = torch.arange(half, device=values.device, dtype=torch.float32)
    angles = values.float()[..., None] * torch.exp(-math.log(base) / half * places)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


def sine_grid(width: int, grid: int) -> Tensor:
    """(1, width, grid, grid): sines and cosines of the row, then of the column; zero where the width allows none."""
    frequencies = 10000 ** -(torch.arange(width // 4) * 4 / max(1, width))
    angles = torch.arange(grid)[None] * frequencies[:, None]
    table = torch.cat([angles.sin(), angles.cos()])
    rows, columns = table[:, :, None].expand(-1, -1, grid), table[:, None].expand(-1, grid, -1)
    return F.pad(torch.cat([rows, columns]), (0, 0, 0, 0, 0, width % 4))[None]


def periodic_grid(width: int, grid: int) -> Tensor:
    """(1, width, grid, grid), float32: of the row, then of the column, a sine and a cosine for each frequency in turn.

    Both sides of the grid are 2 pi long at the highest frequency; a place stands for its centre (DETR, arXiv
    2005.12872). `width` is a multiple of 4.
    """
    places = (torch.arange(1, grid + 1) - 0.5) / (grid + 1e-6) * (2 * math.pi)
    frequencies = torch.arange(width // 4) * 4 / width
    angles = places[:, None] / 10_000**frequencies
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).T  # (width / 2, grid)
    rows, columns = table[:, :, None].expand(-1, -1, grid), table[:, None].expand(-1, grid, -1)
    return torch.cat([rows, columns])[None]
