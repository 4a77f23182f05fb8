"""Sum and number of the vectors that fall to each code: the statistics of a running codebook and of k-means."""

from __future__ import annotations

import torch
from torch import Tensor


def code_sums(x: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scatter-add of vectors by index, without a one-hot table; no gradient flows.

    Args:
        x: (N, D) vectors or, with one codebook each, (G, N, D); floating point.
        indices: (N,) or (G, N) int64, each in [0, count).
        count: number of codes K.

    Returns:
        (sums (K, D) or (G, K, D), counts (K,) or (G, K)): sums in float32 (float64 where x is), counts in int64.

    Raises:
        ValueError: shapes that do not fit, or no codes.
        IndexError: an index outside [0, count).
    """
    if x.ndim not in (2, 3) or indices.shape != x.shape[:-1]:
        wanted = "expected vectors (N, D) and indices (N,), or (G, N, D) and (G, N)"
        raise ValueError(f"{wanted}, got {tuple(x.shape)} and {tuple(indices.shape)}")
    if count < 1:
        raise ValueError(f"expected at least one code, got {count}")
    with torch.no_grad():
        vectors = x.detach().to(torch.promote_types(x.dtype, torch.float32)).flatten(0, -2)
        groups = len(x) if x.ndim == 3 else 1
        if indices.device.type == "cpu" and indices.numel() > 0:
            low, high = indices.aminmax()
            if low < 0 or high >= count:
                raise IndexError(f"expected indices in [0, {count}), got {low.item()} to {high.item()}")
        offsets = torch.arange(groups, device=indices.device)[:, None] * count
        flat = (indices.view(groups, -1) + offsets).flatten()
        sums = vectors.new_zeros(groups * count, x.shape[-1]).index_add_(0, flat, vectors)
        counts = flat.new_zeros(groups * count).index_add_(0, flat, torch.ones_like(flat))
    return sums.view(*x.shape[:-2], count, -1), counts.view(*x.shape[:-2], count)
