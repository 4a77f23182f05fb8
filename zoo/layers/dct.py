"""The discrete cosine transform of grids (DCT-II and its inverse; Ahmed, Natarajan and Rao 1974)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.ops.precision import full_precision


def dct_matrix(length: int, device: torch.device | None = None) -> Tensor:
    """(n, n) float32, orthonormal: row k is the cosine of k half cycles over n samples."""
    place = torch.arange(length, dtype=torch.float32, device=device)
    rows = (math.pi / length * (place + 0.5) * place[:, None]).cos()
    return rows * ((2 - (place == 0).float()) / length).sqrt()[:, None]


def dct2(x: Tensor) -> Tensor:
    """(B, h, w, C) -> its frequencies (B, h, w, C), computed in float32, the constant one at the upper left.

    Orthonormal but for the constant one, which is the mean, so that its size does not grow with the grid's.
    """
    with full_precision(x):
        rows, columns = (dct_matrix(length, x.device) for length in x.shape[1:3])
        return (torch.einsum("uh,bhwc,vw->buvc", rows, x.float(), columns) / _constant_scale(x)).to(x.dtype)


def inverse_dct2(x: Tensor) -> Tensor:
    """Undo `dct2`."""
    with full_precision(x):
        rows, columns = (dct_matrix(length, x.device) for length in x.shape[1:3])
        return torch.einsum("uh,buvc,vw->bhwc", rows, x.float() * _constant_scale(x), columns).to(x.dtype)


def _constant_scale(x: Tensor) -> Tensor:
    """(h, w, 1): 1, at the constant frequency the factor from the mean to the orthonormal coefficient."""
    height, width = x.shape[1:3]
    place = torch.arange(height * width, device=x.device).view(height, width, 1)
    return (place == 0).float() * math.sqrt(height * width) + (place > 0).float()
