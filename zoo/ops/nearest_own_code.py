"""The nearest code of each vector where each has a codebook of its own."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_own_code(x: Tensor, codebooks: Tensor) -> Tensor:
    """Index of the code at the least Euclidean distance; the lowest where several are.

    Differences are taken before squaring, so that float32 loses little where a code is near its vector.

    Args:
        x: (N, D) floating point.
        codebooks: (N, K, D), K >= 1.

    Returns:
        int64 indices (N,); 0 for a vector that holds NaN.

    Raises:
        ValueError: shapes that do not fit, or no codes.
    """
    if x.ndim != 2 or codebooks.ndim != 3 or codebooks.shape[::2] != x.shape or codebooks.shape[1] == 0:
        raise ValueError(
            f"expected (N, D) and (N, K, D) with K >= 1, got {tuple(x.shape)} and {tuple(codebooks.shape)}"
        )
    with torch.no_grad():
        return (codebooks.float() - x.float()[:, None]).square().sum(-1).argmin(1)
