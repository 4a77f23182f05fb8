"""Nearest codes by plain torch operations: a two-level argmax over tiles of scores, and the exact second look.

A score is x.c - |c|^2 / 2 (euclidean), x.c / |c| (cosine) or x.c (dot); its largest value marks the nearest code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_GROUP = 64  # codes whose best score is found first; only the winning group is looked through
_TILE_CODES = 8 * _GROUP
_TILE_SCORES = {"cpu": 1 << 18}  # float32 scores held at a time, which should stay in the second-level cache: 1 MB
_TILE_SCORES_ELSEWHERE = 1 << 24
_BLOCK = 1 << 20  # values of the vectors that are held in float32 at a time
_INFINITY = math.inf


@dataclass(frozen=True)
class ScaledCodes:
    """The codes of a metric, a tile at a time: multiplied by `scale`, and with their biases.

    Attributes:
        codebook: (K, D) as given.
        scale: (K,) float64; 1 / |c| with the cosine metric, else 1.
        bias: (K,) float64; -infinity for a code that holds NaN or infinity.
        lengths: (K,) float64, of the scaled codes; 0 for a code that holds NaN or infinity.
        euclidean: whether the metric is.
    """

    codebook: Tensor
    scale: Tensor
    bias: Tensor
    lengths: Tensor
    euclidean: bool

    @classmethod
    def of(cls, codebook: Tensor, metric: str) -> ScaledCodes:
        squared = _squared_lengths(codebook)
        usable = squared < _INFINITY
        squared = squared.where(usable, 0)
        scale = squared.rsqrt().where(squared > 0, 0) if metric == "cosine" else torch.ones_like(squared)
        bias = -squared / 2 if metric == "euclidean" else torch.zeros_like(squared)
        bias = bias.where(usable, -_INFINITY)
        return cls(codebook, scale, bias, squared.sqrt() * scale, metric == "euclidean")

    def tiles(self, count: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(index of the first code, codes (C, D), biases (C,)), C <= count."""
        plain = self.codebook.dtype == dtype and bool((self.scale == 1).all() & (self.bias > -_INFINITY).all())
        for start in range(0, len(self.codebook), count):
            codes, bias = self.codebook[start : start + count], self.bias[start : start + count]
            if not plain:
                scaled = codes.double() * self.scale[start : start + count, None]
                codes = scaled.where(bias[:, None] > -_INFINITY, 0).to(dtype)
            yield start, codes, bias.to(dtype)


def search(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """As `nearest_code`, for (N, D) and (K, D) with N, K, D >= 1, outside autocast."""
    codes = ScaledCodes.of(codebook, metric)
    blocks = [_search_block(block, codes) for block in x.split(_rows(_BLOCK, x))]
    return torch.cat(blocks)


def _search_block(x: Tensor, codes: ScaledCodes) -> Tensor:
    single = x.float()
    tile_rows = max(1, _TILE_SCORES.get(x.device.type, _TILE_SCORES_ELSEWHERE) // _TILE_CODES)
    best = single.new_full((len(x),), -_INFINITY)
    second = best.clone()
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    buffer = single.new_empty(min(len(x), tile_rows), _TILE_CODES)
    for start, tile, bias in codes.tiles(_TILE_CODES, torch.float32):
        for row in range(0, len(x), tile_rows):
            rows = slice(row, row + tile_rows)
            _update(single[rows], tile, bias, start, buffer, best[rows], second[rows], index[rows])
    lengths = _squared_lengths(x).sqrt()
    settle(x, codes, index, best, second, margins(codes, lengths, _rounding(x)))
    return index


def _update(
    x: Tensor, codes: Tensor, bias: Tensor, start: int, buffer: Tensor, best: Tensor, second: Tensor, index: Tensor
) -> None:
    """Bring the best two scores (rows,) and the index of the best (rows,) up to date with one tile of codes."""
    groups = -(-len(codes) // _GROUP)
    scores = buffer.view(-1)[: len(x) * groups * _GROUP].view(len(x), groups * _GROUP)
    torch.addmm(bias, x, codes.T, out=scores[:, : len(codes)])
    scores[:, len(codes) :] = -_INFINITY
    scores = scores.view(len(x), groups, _GROUP)
    highest = scores.amax(dim=-1)
    value, group = highest.max(dim=1)
    torch.maximum(second, torch.minimum(value, best), out=second)
    rows = (value > best).nonzero().squeeze(1)
    if len(rows) == 0:
        return
    group = group[rows, None]
    inside = scores[rows, group.squeeze(1)]
    code = inside.argmax(dim=1, keepdim=True)
    rest = inside.scatter(1, code, -_INFINITY).amax(dim=1)
    others = highest[rows].scatter(1, group, -_INFINITY).amax(dim=1)
    second[rows] = torch.maximum(second[rows], torch.maximum(rest, others))
    best[rows] = value[rows]
    index[rows] = start + (group * _GROUP + code).squeeze(1)


def margins(codes: ScaledCodes, lengths: Tensor, rounding: float) -> Tensor:
    """Least gap (N,) of two computed scores of a vector that tells which is larger; infinite where float32 overflows.

    Twice the bound of rounding and underflow of the scores and of what they are made from.

    Args:
        codes: the codes.
        lengths: (N,) float64, of the vectors.
        rounding: largest relative error of a product sum, of the sum of the magnitudes of the products.
    """
    longest = codes.lengths.amax()
    shortest = codes.lengths.where(codes.bias > -_INFINITY, _INFINITY).amin()
    if codes.euclidean:
        reach = torch.minimum(longest, 4 * lengths + 2 * shortest)  # a longer code is farther away than the shortest
        magnitude = lengths * reach + reach.square() / 2
    else:
        reach = longest
        magnitude = lengths * reach
    tiny = torch.finfo(torch.float32).tiny * (codes.codebook.shape[1] + 6)
    margin = 2.1 * (magnitude * rounding + (1 + lengths + reach) * tiny)
    return margin.where(magnitude < 1e37, _INFINITY)


def settle(x: Tensor, codes: ScaledCodes, index: Tensor, best: Tensor, second: Tensor, margin: Tensor) -> None:
    """Put right, in place, the indices (N,) of rows whose best two scores are too close, or that are not finite."""
    close = (~(best.double() - second.double() > margin)).nonzero().squeeze(1)
    for rows in close.split(_rows(_BLOCK // 16, x)):
        index[rows] = _exact(x[rows], codes)


def _exact(x: Tensor, codes: ScaledCodes) -> Tensor:
    """Lowest index (N,) among the codes that float64 cannot tell from the nearest one.

    These are the codes whose score, within its rounding, may be the largest; with the Euclidean metric, only those of
    them whose distance, taken from the differences and thus precise where it is small, may be the least.
    """
    x = x.double()
    count, dim = codes.codebook.shape
    tile_codes = max(_GROUP, _BLOCK // 16 // dim)
    lengths = x.norm(dim=-1)
    rounding = 4 * dim**0.5 * torch.finfo(torch.float64).eps

    def tiles() -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        for start, tile, bias in codes.tiles(tile_codes, torch.float64):
            scores = torch.addmm(bias, x, tile.T)
            slack = rounding * (lengths[:, None] * codes.lengths[start : start + tile_codes] - bias)
            yield start, tile, scores, slack.where(bias > -_INFINITY, 0)

    least = torch.full_like(lengths, -_INFINITY)  # that the best score can be
    for _, _, scores, slack in tiles():
        torch.maximum(least, (scores - slack).amax(dim=1), out=least)

    def possible() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(rows, indices, squared distances or zeros) of the codes whose score may be the largest."""
        for start, tile, scores, slack in tiles():
            pairs = ((scores + slack >= least[:, None]) & (scores > -_INFINITY)).nonzero()
            for rows, columns in (part.T for part in pairs.split(tile_codes)):
                distances = least.new_zeros(len(rows))
                if codes.euclidean:
                    distances = (x[rows] - tile[columns]).square().sum(-1)
                yield rows, start + columns, distances

    nearest = torch.full_like(lengths, _INFINITY)
    for rows, _, distances in possible():
        nearest.scatter_reduce_(0, rows, distances, "amin")
    index = torch.full_like(lengths, count, dtype=torch.int64)
    for rows, indices, distances in possible():
        near = distances * (1 - rounding) <= nearest[rows] * (1 + rounding)
        index.scatter_reduce_(0, rows[near], indices[near], "amin")
    return index.where((lengths < _INFINITY) & (index < count), 0)


def _squared_lengths(matrix: Tensor) -> Tensor:
    """Of each row, (N,) float64; nothing that lives on is allocated between the blocks, which leaves no gaps."""
    lengths = matrix.new_empty(len(matrix), dtype=torch.float64)
    rows = _rows(_BLOCK // 16, matrix)
    for part, place in zip(matrix.split(rows), lengths.split(rows)):
        torch.sum(part.double().square(), dim=-1, out=place)
    return lengths


def _rows(values: int, matrix: Tensor) -> int:
    return max(1, values // matrix.shape[1])


def _rounding(x: Tensor) -> float:
    """Bound of the relative error of a float32 product sum, which torch's settings may raise to a shorter format's."""
    backend = torch.backends.cuda if x.device.type == "cuda" else torch.backends.mkldnn
    shorter = {"tf32": 2.0**-9, "bf16": 2.0**-7}.get(backend.matmul.fp32_precision, 0.0)
    return (x.shape[1] + 6) * 2.0**-24 + shorter
