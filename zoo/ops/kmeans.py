"""K-means (Lloyd's algorithm), and its spherical form for the cosine metric, on the nearest-code kernel.

Papers: Lloyd, Least squares quantization in PCM, 1982; Arthur and Vassilvitskii, k-means++, 2007; Dhillon and Modha,
Concept decompositions for large sparse text data, 2001 (spherical).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.code_sums import code_sums
from zoo.ops.nearest_code import nearest_code
from zoo.ops.precision import full_precision


@torch.no_grad()
def kmeans(
    x: Tensor,
    count: int,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    *,
    iterations: int = 10,
    generator: torch.Generator | None = None,
    init: Literal["random", "k-means++"] | Tensor = "random",
) -> tuple[Tensor, Tensor]:
    """Centres of `count` clusters of vectors; the same for the same generator state.

    A cluster that loses all its vectors is put on the vector that is farthest from its centre (several of them: on the
    farthest, the second farthest, ...). It ends early once no vector changes its cluster.

    Args:
        x: (N, D) finite vectors, N >= 1; floating point. With fewer distinct vectors than clusters, the clusters left
            over lie on vectors of x and are empty.
        count: number of clusters K.
        metric: "euclidean", or "cosine", where vectors count by their direction alone and centres have unit length.
        iterations: rounds of assignment and update, at least one.
        generator: of the random start, on the device of x; None for torch's global one.
        init: "random" (rows of x, each at most once if there are enough), "k-means++" (rows drawn one by one, in
            proportion to their squared distance to the nearest one drawn; K passes over x), or first centres (K, D).

    Returns:
        (centres (K, D) in float32, or float64 where x is; counts (K,) int64 of the vectors whose mean a centre is).

    Raises:
        ValueError: a shape, metric, init, number or value that does not fit.
    """
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"expected vectors (N, D) with N > 0, got {tuple(x.shape)}")
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric: expected euclidean or cosine, got {metric!r}")
    if count < 1 or iterations < 1:
        raise ValueError(f"expected at least 1 cluster and 1 iteration, got {count} and {iterations}")
    if not bool(x.isfinite().all()):
        raise ValueError("expected finite vectors, got NaN or infinity")
    with full_precision(x):
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        if metric == "cosine":
            x = F.normalize(x, dim=-1)
        centres = _start(x, count, generator, init)
        previous = None
        for _ in range(iterations):
            indices = nearest_code(x, centres, metric)
            if previous is not None and torch.equal(indices, previous):
                break
            previous = indices
            sums, counts = code_sums(x, indices, count)
            means = sums / counts.clamp_min(1)[:, None]
            if metric == "cosine":
                means = F.normalize(means, dim=-1)
            empty = (counts == 0).nonzero().squeeze(1)
            if len(empty) > 0:
                means[empty] = _farthest(x, means, indices, len(empty))
            centres = means
    return centres, counts


def _start(x: Tensor, count: int, generator: torch.Generator | None, init: str | Tensor) -> Tensor:
    if isinstance(init, Tensor):
        if init.shape != (count, x.shape[1]):
            raise ValueError(f"init: expected centres {(count, x.shape[1])}, got {tuple(init.shape)}")
        return init.detach().to(x)
    if init == "random":
        order = torch.randperm(len(x), generator=generator, device=x.device)
        return x[order[torch.arange(count, device=x.device) % len(x)]]
    if init != "k-means++":
        raise ValueError(f"init: expected random, k-means++ or centres (K, D), got {init!r}")
    chosen = torch.randint(len(x), (1,), generator=generator, device=x.device)
    centres = [x[chosen]]
    distances = (x - centres[0]).square().sum(-1)
    for _ in range(count - 1):
        # where every vector already is a centre, any is as good
        weights = distances if bool(distances.any()) else torch.ones_like(distances)
        reached = weights.double().cumsum(0)
        draw = torch.rand(1, generator=generator, device=x.device, dtype=torch.float64) * reached[-1]
        chosen = torch.searchsorted(reached, draw, right=True).clamp_max(len(x) - 1)
        centres.append(x[chosen])
        distances = torch.minimum(distances, (x - centres[-1]).square().sum(-1))
    return torch.cat(centres)


def _farthest(x: Tensor, means: Tensor, indices: Tensor, count: int) -> Tensor:
    """(count, D): the vectors farthest from the means of their clusters, over again where there are fewer of them."""
    distances = (x - means[indices]).square().sum(-1)
    order = distances.argsort(descending=True, stable=True)
    return x[order[torch.arange(count, device=x.device) % len(x)]]
