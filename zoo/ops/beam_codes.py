"""Residual quantisation by beam search: several partial codes are kept at each level, and the best whole one wins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.ops.precision import full_precision
from zoo.ops.residual_codes import residual_codes

_TILE = 1 << 20  # scores held at a time: 8 MB in float64


def beam_codes(x: Tensor, codebooks: Tensor | Sequence[Tensor], beam: int) -> Tensor:
    """Indices of one code per level whose sum is near each vector; never farther than the greedy `residual_codes`.

    At each level every kept partial sum is extended by every code, and the `beam` sums nearest to the vector
    (Euclidean) are kept. Errors are compared in float64.

    Args:
        x: (N, D) floating point.
        codebooks: (Q, K, D), or Q tensors (K_q, D).
        beam: how many partial sums are kept, at least 1 (greedy).

    Returns:
        int64 indices (N, Q); those of `residual_codes` where a row holds NaN or infinity.

    Raises:
        ValueError: shapes that do not fit, no codebooks, an empty codebook, or a beam below 1.
    """
    if beam < 1:
        raise ValueError(f"expected a beam of at least 1, got {beam}")
    greedy = residual_codes(x, codebooks)
    if beam == 1:
        return greedy
    with torch.no_grad(), full_precision(x):
        codes = [codebook.detach().double() for codebook in codebooks]
        rows = max(1, _TILE // (beam * max(len(codebook) for codebook in codes)))
        tiles = zip(x.detach().double().split(rows), greedy.split(rows))
        found = [_better(tile, start, _search(tile, codes, beam), codes) for tile, start in tiles]
        return torch.cat([greedy[:0], *found])


def _search(x: Tensor, codebooks: list[Tensor], beam: int) -> Tensor:
    """(N, D) float64 -> (N, Q) indices of the best sum in the last beam."""
    residuals = x[:, None]  # (N, B, D)
    paths = torch.empty(len(x), 1, 0, dtype=torch.int64, device=x.device)
    for codebook in codebooks:
        norms = codebook.square().sum(-1)
        # |r - c|^2 = |r|^2 - 2 r.c + |c|^2
        errors = residuals.square().sum(-1, keepdim=True) - 2 * (residuals @ codebook.T) + norms
        errors = errors.view(len(x), residuals.shape[1] * len(codebook))
        chosen = errors.topk(min(beam, errors.shape[1]), dim=1, largest=False).indices
        parents, indices = chosen // len(codebook), chosen % len(codebook)
        residuals = residuals.gather(1, parents[..., None].expand(-1, -1, x.shape[1])) - codebook[indices]
        kept = paths.gather(1, parents[..., None].expand(-1, -1, paths.shape[2]))
        paths = torch.cat([kept, indices[..., None]], dim=2)
    best = residuals.square().sum(-1).argmin(dim=1)
    return paths[torch.arange(len(x), device=x.device), best]


def _better(x: Tensor, greedy: Tensor, searched: Tensor, codebooks: list[Tensor]) -> Tensor:
    """Of two codes (N, Q) of each row the one with the smaller error; the greedy one where there is no such."""
    errors = [
        (x - sum(codebook[index] for codebook, index in zip(codebooks, indices.unbind(1)))).square().sum(1)
        for indices in (greedy, searched)
    ]
    return torch.where((errors[1] < errors[0])[:, None], searched, greedy)
