"""The nearest code of each vector: exact, with memory that does not grow with N x K."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["euclidean", "cosine", "dot"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine", "dot")

_TILE = 1 << 20  # scores held at a time: 4 MB in float32
_ROUNDING = 4.0  # rounding errors of a score that still count as a close call, in units of eps * D ** 0.5 * magnitude


def nearest_code(x: Tensor, codebook: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Index of the nearest code of each vector: the lowest index among the exact minima.

    Scores are computed in float32 a tile at a time; where the two best are closer than rounding can tell, the row is
    computed again in float64, so that the answer is that of exact arithmetic on the given values (codes that not even
    float64 can tell apart count as equal).

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
        codes = _unit(codes)
    bias = -codes.square().sum(-1) / 2 if metric == "euclidean" else codes.new_zeros(count)
    codes32, bias32 = codes.float(), bias.float()
    norms = codes.norm(dim=-1)
    single, double = (_ROUNDING * eps * dim**0.5 for eps in (_matmul_eps(x.device), torch.finfo(torch.float64).eps))
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    rows = max(1, _TILE // max(count, dim))
    for start in range(0, len(x), rows):
        tile = x[start : start + rows].double()
        if metric == "cosine":
            tile = _unit(tile)
        scores = torch.addmm(bias32, tile.float(), codes32.T)
        best, index = scores.max(dim=1)
        # scores within the rounding error of float32 cannot be told apart: those rows are decided in float64, and so
        # are rows that overflow float32, whose threshold is NaN
        lengths = tile.norm(dim=-1)
        margin = single * (lengths * norms.amax() - bias.amin()) + torch.finfo(torch.float32).tiny
        close = ((scores >= (best - margin.float())[:, None]).sum(dim=1) != 1).nonzero().squeeze(1)
        for some in close.split(rows // 8 + 1):
            exact = torch.addmm(bias, tile[some], codes.T)
            slack = double * (lengths[some, None] * norms - bias)
            index[some] = (exact + slack >= (exact - slack).amax(dim=1, keepdim=True)).int().argmax(dim=1)
        index[~tile.isfinite().all(dim=1)] = 0
        indices[start : start + rows] = index
    return indices


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def _matmul_eps(device: torch.device) -> float:
    """Relative rounding error of a float32 product, which torch's settings may lower to that of a shorter format."""
    precision = (torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn).matmul.fp32_precision
    return {"tf32": 2.0**-10, "bf16": 2.0**-7}.get(precision, torch.finfo(torch.float32).eps)
