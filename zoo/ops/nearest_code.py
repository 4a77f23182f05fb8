"""The nearest code of each vector: exact, with memory that does not grow with N x K."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["euclidean", "cosine", "dot"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine", "dot")

_TILE = 1 << 20  # scores held at a time: 4 MB in float32
_ROUNDING = 4.0  # rounding errors of a score that still count as a close call, in units of eps * D ** 0.5 * magnitude


def nearest_code(x: Tensor, codebook: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Index of the nearest code of each vector: the lowest index among the exact minima.

    Scores are computed in float32 a tile at a time; where the two best are closer than rounding can tell, the row is
    computed again in float64, so that the answer is that of exact arithmetic on the given values.

    Args:
        x: (N, D) or, with one codebook each, (G, N, D); floating point, half precision included.
        codebook: (K, D) or (G, K, D).
        metric: "euclidean" (least distance), "cosine" (largest cosine; rows need not have unit length),
            "dot" (largest inner product).

    Returns:
        int64 indices (N,) or (G, N). A row that holds NaN or infinity gets index 0.

    Raises:
        ValueError: shapes that do not fit, an empty codebook, or an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if x.ndim not in (2, 3) or codebook.ndim != x.ndim or x.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"expected (N, D) and (K, D) or (G, N, D) and (G, K, D), got {x.shape} and {codebook.shape}")
    if x.ndim == 3:
        if len(x) != len(codebook):
            raise ValueError(f"expected as many codebooks as groups of vectors, got {len(codebook)} and {len(x)}")
        return torch.stack([nearest_code(vectors, codes, metric) for vectors, codes in zip(x, codebook)])
    if codebook.shape[0] == 0:
        raise ValueError("expected at least one code, got an empty codebook")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _nearest(x.detach(), codebook.detach().double(), metric)


def _nearest(x: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """argmax over codes of x.c - |c|^2 / 2 (euclidean) or x.c, tile by tile over the vectors."""
    count, dim = codes.shape
    if metric == "cosine":
        codes = F.normalize(codes, dim=-1)
    bias = -codes.square().sum(-1) / 2 if metric == "euclidean" else codes.new_zeros(count)
    codes32, bias32 = codes.float(), bias.float()
    reach = codes.norm(dim=-1).amax()
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    rows = max(1, _TILE // max(count, dim))
    for start in range(0, len(x), rows):
        tile = x[start : start + rows].double()
        if metric == "cosine":
            tile = F.normalize(tile, dim=-1)
        scores = torch.addmm(bias32, tile.float(), codes32.T)
        best, index = scores.max(dim=1)
        # scores within the rounding error of float32 cannot be told apart: those rows are decided in float64
        magnitude = (tile.norm(dim=-1) * reach - bias.amin()).float()
        margin = _ROUNDING * torch.finfo(torch.float32).eps * dim**0.5 * magnitude
        close = ((scores >= (best - margin)[:, None]).sum(dim=1) > 1).nonzero().squeeze(1)
        for some in close.split(rows // 8 + 1):
            index[some] = torch.addmm(bias, tile[some], codes.T).argmax(dim=1)
        index[~tile.isfinite().all(dim=1)] = 0
        indices[start : start + rows] = index
    return indices
