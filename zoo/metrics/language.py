"""Tokens as a language: rank and frequency, entropy, what a neighbour tells, innovation, and where codes are used.

The statistics of "Analyzing The Language of Visual Tokens" (arXiv 2411.05001) and of the laws it tests: Zipf's of ranks
and Heaps' of new words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CODES = 1 << 24  # of a level whose codes are counted one by one
_KEPT = 1 << 22  # keys that are held before they are counted


@dataclass(frozen=True)
class TokenStatistics:
    """What the tokens of one level are like. Entropies are those of the observed shares, in bits.

    Entropies of few tokens are too small: below some ten tokens a code that occurs (or a pair, for
    `conditional_entropy`), read them as lower bounds.

    Attributes:
        vocab_size: K.
        items: images, or other items, that were counted.
        tokens: of all items.
        counts: (K,) int64, how often each code occurs.
        entropy: of the codes; log2 K where all are equally frequent.
        conditional_entropy: of a code given its neighbour in front of it, by the direction in which the code lies:
            "right" and "below" of a grid, "next" of a sequence. Directions without a single pair are left out.
        different_pairs: by the same directions, how many different pairs occur.
        zipf_exponent: a of the law frequency ~ rank^-a over the codes that occur, by maximum likelihood; None where
            fewer than two occur.
        innovation: (tokens seen, different codes among them) after 1, 2, 4, ... and all items, in their order.
        heaps_exponent: b of the law different codes ~ tokens^b, by least squares of the logarithms over `innovation`;
            None where that is fewer than two points. 0: nothing new; 1: all is new.
        usage: entropy of the codes at each position, in bits, items of any size brought to one grid of positions:
            (rows, columns), or (1, columns) of sequences. NaN where no token fell.
    """

    vocab_size: int
    items: int
    tokens: int
    counts: Tensor
    entropy: float
    conditional_entropy: dict[str, float]
    different_pairs: dict[str, int]
    zipf_exponent: float | None
    innovation: tuple[tuple[int, int], ...]
    heaps_exponent: float | None
    usage: Tensor

    @property
    def used(self) -> int:
        """Codes that occur."""
        return int((self.counts > 0).sum())


class TokenCounter:
    """Counts the tokens of one level, item by item, in memory that grows with what differs and not with what comes.

    Args:
        vocab_size: number of codes, at most `MOST_CODES`.
        positions: rows and columns of the map of usage.

    Raises:
        ValueError: another vocabulary size or positions.
    """

    def __init__(self, vocab_size: int, positions: tuple[int, int] = (16, 16)) -> None:
        if not 1 <= vocab_size <= MOST_CODES or min(positions) < 1:
            raise ValueError(
                f"expected 1 to {MOST_CODES} codes and positions >= 1, got {vocab_size} codes and {positions}"
            )
        self.vocab_size = vocab_size
        self.positions = positions
        self._items = 0
        self._codes = torch.zeros(vocab_size, dtype=torch.int64)
        self._pairs: dict[str, _Counts] = {}
        self._places = _Counts()
        self._innovation: list[tuple[int, int]] = []

    def update(self, level: Tensor) -> None:
        """Count the tokens of a batch.

        Args:
            level: int64 (B, H, W), or (B, N) of sequences.

        Raises:
            ValueError: another shape or type, or a code outside the vocabulary.
        """
        if level.ndim not in (2, 3) or level.dtype != torch.int64:
            raise ValueError(f"expected int64 (B, H, W) or (B, N), got {level.dtype} {tuple(level.shape)}")
        if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < self.vocab_size:
            raise ValueError(f"expected codes in [0, {self.vocab_size}), got {int(level.min())} to {int(level.max())}")
        level = level.cpu()
        grid = level if level.ndim == 3 else level[:, None]
        pairs = {"right" if level.ndim == 3 else "next": (grid[..., :-1], grid[..., 1:])}
        if level.ndim == 3:
            pairs["below"] = grid[:, :-1], grid[:, 1:]
        for direction, (first, second) in pairs.items():
            keys = first.flatten() * self.vocab_size + second.flatten()
            self._pairs.setdefault(direction, _Counts()).add(keys)
        self._places.add((self._place(grid) * self.vocab_size + grid).flatten())
        for item in grid:
            self._codes += torch.bincount(item.flatten(), minlength=self.vocab_size)
            self._items += 1
            if self._items & (self._items - 1) == 0:
                self._innovation.append(self._seen())

    def compute(self) -> TokenStatistics:
        """The statistics of all tokens so far.

        Raises:
            ValueError: there are none.
        """
        tokens, _ = self._seen()
        if tokens == 0:
            raise ValueError("expected at least one token, got none")
        innovation = tuple(dict.fromkeys([*self._innovation, self._seen()]))
        pairs = {direction: counts.compute() for direction, counts in self._pairs.items()}
        pairs = {direction: found for direction, found in pairs.items() if len(found[0]) > 0}
        return TokenStatistics(
            vocab_size=self.vocab_size,
            items=self._items,
            tokens=tokens,
            counts=self._codes.clone(),
            entropy=_entropy(self._codes),
            conditional_entropy={
                direction: _entropy(counts) - _entropy(_summed(keys // self.vocab_size, counts))
                for direction, (keys, counts) in pairs.items()
            },
            different_pairs={direction: len(keys) for direction, (keys, _) in pairs.items()},
            zipf_exponent=zipf_exponent(self._codes),
            innovation=innovation,
            heaps_exponent=_slope(innovation),
            usage=self._usage(),
        )

    def _seen(self) -> tuple[int, int]:
        return int(self._codes.sum()), int((self._codes > 0).sum())

    def _place(self, grid: Tensor) -> Tensor:
        """(H, W) place of each position in the map."""
        rows, columns = (
            torch.div(torch.arange(side) * places, side, rounding_mode="floor")
            for side, places in zip(grid.shape[1:], self.positions)
        )
        return rows[:, None] * self.positions[1] + columns

    def _usage(self) -> Tensor:
        keys, counts = self._places.compute()
        places = keys // self.vocab_size
        size = self.positions[0] * self.positions[1]
        totals = torch.zeros(size, dtype=torch.float64).index_add_(0, places, counts.double())
        surprise = counts * (totals[places].log2() - counts.double().log2())
        entropies = torch.zeros(size, dtype=torch.float64).index_add_(0, places, surprise) / totals
        grid = entropies.view(self.positions)  # 0 / 0 where nothing fell
        return grid[:1] if set(self._pairs) == {"next"} else grid


class _Counts:
    """How often each key came; the keys may be any int64."""

    def __init__(self) -> None:
        self._keys = torch.empty(0, dtype=torch.int64)
        self._counts = torch.empty(0, dtype=torch.int64)
        self._waiting: list[Tensor] = []
        self._held = 0

    def add(self, keys: Tensor) -> None:
        self._waiting.append(keys)
        self._held += len(keys)
        if self._held >= _KEPT:
            self.compute()

    def compute(self) -> tuple[Tensor, Tensor]:
        """Different keys, sorted, and their counts."""
        keys = torch.cat([self._keys, *self._waiting])
        counts = torch.cat([self._counts, torch.ones(self._held, dtype=torch.int64)])
        self._keys, places = keys.unique(return_inverse=True)
        self._counts = torch.zeros(len(self._keys), dtype=torch.int64).index_add_(0, places, counts)
        self._waiting, self._held = [], 0
        return self._keys, self._counts


def zipf_exponent(counts: Tensor) -> float | None:
    """The exponent a of p(rank) ~ rank^-a that makes the counts of the codes that occur most likely.

    Args:
        counts: (K,) how often each code occurs, in any order.

    Returns:
        0 or more; None where fewer than two codes occur.
    """
    frequencies = counts[counts > 0].double().sort(descending=True).values
    if len(frequencies) < 2:
        return None
    logs = torch.arange(1, len(frequencies) + 1, dtype=torch.float64).log()
    mean = float((frequencies * logs).sum() / frequencies.sum())  # of log rank, which the law must give too
    low, high = 0.0, 1.0

    def expected(exponent: float) -> float:
        return float((torch.softmax(-exponent * logs, dim=0) * logs).sum())

    while expected(high) > mean:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) > mean else (low, middle)
    return (low + high) / 2


def _summed(keys: Tensor, counts: Tensor) -> Tensor:
    _, places = keys.unique(return_inverse=True)
    return torch.zeros(int(places.max()) + 1, dtype=torch.int64).index_add_(0, places, counts)


def _entropy(counts: Tensor) -> float:
    """In bits."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum()) / math.log(2)


def _slope(points: Sequence[tuple[int, int]]) -> float | None:
    """Of log y over log x by least squares."""
    if len({x for x, _ in points}) < 2:
        return None
    x, y = torch.tensor(points, dtype=torch.float64).log().unbind(1)
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())
