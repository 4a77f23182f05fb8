"""Metrics of composed image retrieval as CIRR, FashionIQ, CIRCO and GeneCIS define them.

Papers: arXiv 2108.04024 (CIRR), CVPR 2021 (FashionIQ), arXiv 2303.15247 (CIRCO), CVPR 2023 (GeneCIS). Those of domain
conversion stand in `freedom`.
A ranking (Q, K) holds positions in the gallery, the best first. Values are percentages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CIRR_RANKS, CIRR_SUBSET_RANKS = (1, 5, 10, 50), (1, 2, 3)
FASHIONIQ_RANKS = (10, 50)
CIRCO_RANKS = (5, 10, 25, 50)
GENECIS_RANKS = (1, 2, 3)
_CHUNK = 64  # queries whose similarities are in memory at once


def average_captions(first: Tensor, second: Tensor) -> Tensor:
    """FashionIQ's query features (Q, E): the mean direction of two text features, on the unit sphere."""
    return F.normalize(F.normalize(first, dim=-1) + F.normalize(second, dim=-1), dim=-1)


# -- rankings ------------------------------------------------------------------------------------------------------


def rank(queries: Tensor, gallery: Tensor, *, top: int | None = None, exclude: Tensor | None = None) -> Tensor:
    """The gallery by falling cosine for each query; equal ones in the gallery's order.

    Args:
        queries: (Q, E).
        gallery: (N, E).
        top: how many places are wanted; None: all.
        exclude: (Q,), a position each that is left out of the ranking (the reference image), or -1.

    Returns:
        Positions (Q, K), K the smaller of `top` and what there is to rank.

    Raises:
        ValueError: features that do not fit together or are not finite, no place wanted, or an excluded position that
            the gallery does not have.
    """
    _check_features(queries, gallery)
    if top is not None and top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    if exclude is not None:
        _check_exclude(exclude, queries, gallery)
    excluded = exclude is not None and bool((exclude >= 0).any())
    count = min(len(gallery) if top is None else top, len(gallery) - excluded)
    gallery = F.normalize(gallery.float(), dim=-1)
    parts = []
    for start in range(0, len(queries), _CHUNK):
        cosines = F.normalize(queries[start : start + _CHUNK].float(), dim=-1) @ gallery.T
        if exclude is not None:
            rows = exclude[start : start + _CHUNK]
            chosen = (rows >= 0).nonzero()[:, 0]
            cosines[chosen, rows[chosen]] = -torch.inf
        parts.append(cosines.argsort(dim=1, descending=True, stable=True)[:, :count])
    return torch.cat(parts) if parts else torch.zeros(0, count, dtype=torch.int64)


def rank_members(queries: Tensor, gallery: Tensor, members: Tensor, exclude: Tensor) -> Tensor:
    """As `rank`, among a few members of the gallery (Q, M) alone, of which `exclude` (Q,) is one: (Q, M - 1)."""
    _check_features(queries, gallery)
    found = F.normalize(gallery.float(), dim=-1)[members]
    cosines = (F.normalize(queries.float(), dim=-1)[:, None] * found).sum(-1)
    cosines = cosines.masked_fill(members == exclude[:, None], -torch.inf)
    return members.gather(1, cosines.argsort(dim=1, descending=True, stable=True)[:, :-1])


def _check_features(queries: Tensor, gallery: Tensor) -> None:
    for name, features in (("queries", queries), ("gallery", gallery)):
        if features.ndim != 2 or features.shape[1] != queries.shape[-1]:
            raise ValueError(f"{name}: expected (items, {queries.shape[-1]}), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError(f"{name}: expected finite features, got NaN or infinity")


def _check_exclude(exclude: Tensor, queries: Tensor, gallery: Tensor) -> None:
    if exclude.shape != queries.shape[:1] or not (exclude < len(gallery)).all():
        raise ValueError(
            f"exclude: expected {len(queries)} positions below {len(gallery)}, got {exclude.flatten().tolist()[:8]}"
        )


# -- metrics -------------------------------------------------------------------------------------------------------


def recall(ranked: Tensor, targets: Tensor, ranks: Sequence[int], name: str = "R") -> dict[str, float]:
    """`R@k`: queries whose one target (Q,) is among the first k of a ranking (Q, K).

    Raises:
        ValueError: ranks outside 1 to K, or another number of targets than of rankings.
    """
    if not all(1 <= k <= ranked.shape[1] for k in ranks):
        raise ValueError(f"ranks: expected 1 to {ranked.shape[1]}, the length of the rankings, got {tuple(ranks)}")
    return _recall(ranked, targets, ranks, name)


def _recall(ranked: Tensor, targets: Tensor, ranks: Sequence[int], name: str = "R") -> dict[str, float]:
    """`recall` at the ranks of a protocol; of a smaller gallery all of it counts."""
    if targets.shape != ranked.shape[:1]:
        raise ValueError(f"targets: expected {(len(ranked),)}, got {tuple(targets.shape)}")
    hits = ranked == targets[:, None]
    return {f"{name}@{k}": 100 * float(hits[:, :k].any(1).double().mean()) for k in ranks}


def mean_average_precision(ranked: Tensor, truths: Tensor, ranks: Sequence[int]) -> dict[str, float]:
    """CIRCO's `mAP@k`: the precision at each ground truth among the first k, over the smaller of k and their number.

    Args:
        ranked: (Q, K), no position twice.
        truths: (Q, T) ground truths, at least one each, padded with -1.

    Raises:
        ValueError: a position that stands twice in a ranking, a query without ground truth, or a rank below 1.
    """
    ordered = ranked.sort(dim=1).values
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        row = int((ordered[:, 1:] == ordered[:, :-1]).any(1).nonzero()[0])
        raise ValueError(f"expected each position once in a ranking, got one twice in row {row}")
    if min(ranks) < 1:
        raise ValueError(f"ranks: expected at least 1, got {tuple(ranks)}")
    counts = (truths >= 0).sum(1)
    if (counts == 0).any():
        raise ValueError(f"expected a ground truth for each query, got none for {int((counts == 0).nonzero()[0])}")
    hits = (ranked[:, :, None] == truths[:, None]).any(-1).double()
    precisions = hits * hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return {f"mAP@{k}": 100 * float((precisions[:, :k].sum(1) / counts.clamp(max=k)).mean()) for k in ranks}


def cirr(
    ranked: Tensor, ranked_members: Tensor, targets: Tensor, *, ranks: Sequence[int] = CIRR_RANKS
) -> dict[str, float]:
    """`R@k` of the whole gallery and `R_subset@k` of the members, both ranked without the reference image."""
    return _recall(ranked, targets, ranks) | _recall(ranked_members, targets, CIRR_SUBSET_RANKS, "R_subset")


def fashioniq(ranked: Tensor, targets: Tensor) -> dict[str, float]:
    """`R@k` of the target (Q,) in the whole gallery."""
    return _recall(ranked, targets, FASHIONIQ_RANKS)


def circo(ranked: Tensor, truths: Tensor) -> dict[str, float]:
    """`mAP@k` of all ground truths (Q, T), and `R@k` of the target, which is the first of them."""
    return mean_average_precision(ranked, truths, CIRCO_RANKS) | _recall(ranked, truths[:, 0], CIRCO_RANKS)


def genecis(queries: Tensor, galleries: Tensor) -> dict[str, float]:
    """`R@k` of the first of each query's own candidates (Q, M, E), by plain inner products: nothing is normalised."""
    scores = (galleries.float() @ queries.float()[:, :, None])[..., 0]
    if not scores.isfinite().all():
        raise ValueError("expected finite features, got NaN or infinity")
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    return _recall(ranked, torch.zeros(len(queries), dtype=torch.int64), GENECIS_RANKS)
