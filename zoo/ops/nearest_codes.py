"""The several nearest codes of each vector, nearest first."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops.precision import full_precision

_TILE = 1 << 19  # scores held at a time: 4 MB in float64


def nearest_codes(x: Tensor, codebook: Tensor, count: int) -> Tensor:
    """Indices of the `count` codes at the least Euclidean distances, compared in float64.

    Args:
        x: (N, D) floating point, finite.
        codebook: (K, D) floating point, finite.
        count: how many, 1 to K.

    Returns:
        int64 indices (N, count) by growing distance; those of codes equally far stand in any order.

    Raises:
        ValueError: shapes or a number that do not fit.
    """
    if x.ndim != 2 or codebook.ndim != 2 or x.shape[1] != codebook.shape[1]:
        raise ValueError(f"expected (N, D) and (K, D), got {tuple(x.shape)} and {tuple(codebook.shape)}")
    if not 1 <= count <= len(codebook):
        raise ValueError(f"expected 1 to {len(codebook)} codes, got {count}")
    with torch.no_grad(), full_precision(x):
        codes = codebook.detach().double()
        bias = -codes.square().sum(-1) / 2
        tiles = x.detach().split(max(1, _TILE // len(codes)))
        found = [torch.addmm(bias, tile.double(), codes.T).topk(count, dim=1).indices for tile in tiles]
        return torch.cat(found)
