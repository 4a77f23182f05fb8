"""Byte-pair encoding of grids of visual tokens: frequent neighbours become one new token, without loss.

After Being-VL's image BPE (arXiv 2410.02155, 2506.23639), whose merges take the right or the lower neighbour. There the
direction of a merge and the places of tokens are lost; here a merge states its direction, so that every token is a
rectangle of known shape, and a sequence in raster order has exactly one grid. `train_flat` and `apply_flat` are what
Being-VL released (BeingBeyond/Being-VL-0.5, MIT), for its merges; they have no way back.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["right", "below"]
_COVERED = -1  # a cell of a rectangle other than its upper left one


@dataclass(frozen=True)
class Merge:
    """Two tokens that become one: `second` stands `direction` of `first`, and is as long along their border."""

    first: int
    second: int
    direction: Direction


@dataclass(frozen=True)
class Merges:
    """A trained encoding: merge k makes the token `vocab_size + k`.

    Attributes:
        vocab_size: number of codes of the grids.
        merges: in the order in which they are applied.

    Raises:
        ValueError: a merge of tokens that do not exist yet, or whose shapes do not make a rectangle.
    """

    vocab_size: int
    merges: tuple[Merge, ...]

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size: expected at least 1, got {self.vocab_size}")
        _ = self.shapes

    def __len__(self) -> int:
        """Size of the vocabulary, codes and merged tokens."""
        return self.vocab_size + len(self.merges)

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every token, in codes."""
        shapes = [(1, 1)] * self.vocab_size
        for merge in self.merges:
            if not (0 <= merge.first < len(shapes) and 0 <= merge.second < len(shapes)):
                raise ValueError(f"expected a merge of tokens in [0, {len(shapes)}), got {merge}")
            shapes.append(_joined(shapes[merge.first], shapes[merge.second], merge.direction))
        return tuple(shapes)

    def pattern(self, token: int) -> Tensor:
        """The codes (height, width) that a token stands for."""
        if token < self.vocab_size:
            return torch.tensor([[token]])
        merge = self.merges[token - self.vocab_size]
        parts = [self.pattern(merge.first), self.pattern(merge.second)]
        return torch.cat(parts, dim=1 if merge.direction == "right" else 0)


def train(grids: Tensor | Sequence[Tensor], vocab_size: int, count: int, *, least: int = 2) -> Merges:
    """Learn merges: again and again the most frequent pair of neighbours becomes a token.

    Ties go to the merge to the right before the one below, then to the smaller first and second token.

    Args:
        grids: int64 codes (B, H, W), or several such batches of any sizes.
        vocab_size: number of codes.
        count: merges at most; training ends earlier where no pair is frequent enough.
        least: how often a pair must stand in the grids.

    Raises:
        ValueError: grids of another type or shape, or codes outside the vocabulary.
    """
    if count < 0 or least < 1:
        raise ValueError(f"expected count >= 0 and least >= 1, got {count} and {least}")
    states = [_checked(batch, vocab_size).clone() for batch in ([grids] if isinstance(grids, Tensor) else grids)]
    shapes = [(1, 1)] * vocab_size
    merges: list[Merge] = []
    while len(merges) < count:
        found = _most_frequent(states, shapes)
        if found is None or found[1] < least:
            break
        merge = found[0]
        for state in states:
            _merge(state, merge, shapes, len(shapes))
        shapes.append(_joined(shapes[merge.first], shapes[merge.second], merge.direction))
        merges.append(merge)
    return Merges(vocab_size, tuple(merges))


def apply(merges: Merges, grids: Tensor) -> list[Tensor]:
    """Encode grids: every merge in turn, from left to right and from top to bottom.

    Args:
        grids: int64 codes (B, H, W).

    Returns:
        For each grid its tokens (N,) in raster order of their upper left corners; `undo` restores the grid.

    Raises:
        ValueError: grids of another type or shape, or codes outside the vocabulary.
    """
    state = _checked(grids, merges.vocab_size).clone()
    for token, merge in enumerate(merges.merges, start=merges.vocab_size):
        _merge(state, merge, merges.shapes, token)
    return [grid[grid != _COVERED] for grid in state]


def undo(merges: Merges, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Decode one sequence: each token fills its rectangle at the first place that is still free.

    Args:
        tokens: int64 (N,), of `apply` or of a language model.
        size: height and width of the grid.

    Returns:
        The codes (H, W).

    Raises:
        ValueError: tokens that are none of the vocabulary, or do not fill the grid exactly.
    """
    if tokens.ndim != 1 or tokens.dtype != torch.int64:
        raise ValueError(f"expected int64 tokens (N,), got {tokens.dtype} {tuple(tokens.shape)}")
    grid = torch.full(size, _COVERED, dtype=torch.int64)
    free, place = [True] * grid.numel(), 0
    for token in tokens.tolist():
        if not 0 <= token < len(merges):
            raise ValueError(f"expected tokens in [0, {len(merges)}), got {token}")
        while place < len(free) and not free[place]:
            place += 1
        row, column = divmod(place, size[1])
        height, width = merges.shapes[token]
        inside = place < len(free) and row + height <= size[0] and column + width <= size[1]
        cells = [(row + i) * size[1] + column + j for i in range(height) for j in range(width)] if inside else []
        if not inside or not all(free[cell] for cell in cells):
            raise ValueError(f"token {token} of {height} x {width} codes does not fit at ({row}, {column}) of {size}")
        for cell in cells:
            free[cell] = False
        grid[row : row + height, column : column + width] = merges.pattern(token)
    if any(free):
        raise ValueError(f"expected tokens for {len(free)} codes, got tokens for {len(free) - sum(free)}")
    return grid.to(tokens.device)


def save(merges: Merges, path: str | Path) -> None:
    """Write a JSON file, which is either whole or not there."""
    path = Path(path)
    rows = [[merge.first, merge.second, merge.direction] for merge in merges.merges]
    text = json.dumps({"format": 1, "vocab_size": merges.vocab_size, "merges": rows})
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> Merges:
    """Read a file of `save`.

    Raises:
        ValueError: a file that holds no merges.
        OSError: a file that cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != 1:
            raise ValueError(f"expected format 1, got {content['format']!r}")
        rows = tuple(Merge(int(first), int(second), direction) for first, second, direction in content["merges"])
        return Merges(int(content["vocab_size"]), rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a file of zoo.bpe.save: {error}") from error


# -- as Being-VL released it ---------------------------------------------------------------------------------------


def train_flat(grids: Tensor, vocab_size: int, count: int) -> tuple[tuple[int, int], ...]:
    """Learn Being-VL's merges: pair k becomes the token `vocab_size + k`.

    The first merge is of the grids, where right, lower and diagonal neighbours count; it leaves sequences in raster
    order, and the others are of those. Only pairs whose first token is the smaller are counted. Ties go to the smaller
    first, then second token.

    Args:
        grids: int64 codes (B, H, W), or sequences (B, N), all of whose merges are of neighbours in them.
        vocab_size: number of codes.
        count: merges at most; training ends earlier where no pair is left.

    Raises:
        ValueError: grids of another type or shape, or codes outside the vocabulary.
    """
    sequence = _in_one(_checked(grids, vocab_size, sequences=True))
    pairs: list[tuple[int, int]] = []
    for token in range(vocab_size, vocab_size + count):
        neighbours = [(sequence[:-1], sequence[1:])]
        of_grids = grids.ndim == 3 and not pairs
        if of_grids:
            corners = (grids[:, :, :-1], grids[:, :, 1:]), (grids[:, :-1], grids[:, 1:])
            neighbours = [*corners, (grids[:, :-1, :-1], grids[:, 1:, 1:])]
        keys = torch.cat([(first * token + second)[(first >= 0) & (first < second)] for first, second in neighbours])
        values, counts = keys.unique(return_counts=True)
        if len(values) == 0:
            break
        best = int(values[counts.argmax()])  # the first of equals, and values are sorted
        pairs.append((best // token, best % token))
        sequence = _flattened(grids, pairs[0], token) if of_grids else _shortened(sequence, pairs[-1], token)
    return tuple(pairs)


def apply_flat(pairs: Sequence[tuple[int, int]], vocab_size: int, grids: Tensor) -> list[Tensor]:
    """Encode grids by the merges of `train_flat`.

    Args:
        pairs: first and second token of each merge.
        vocab_size: number of codes.
        grids: int64 codes (B, H, W), or sequences (B, N).

    Returns:
        For each grid its tokens (N,).

    Raises:
        ValueError: grids of another type or shape, or codes outside the vocabulary.
    """
    sequence = _in_one(_checked(grids, vocab_size, sequences=True))
    if len(pairs) == 0 or len(grids) == 0:
        return list(grids.flatten(1))
    for token, pair in enumerate(pairs, start=vocab_size):
        of_grids = grids.ndim == 3 and token == vocab_size
        sequence = _flattened(grids, pair, token) if of_grids else _shortened(sequence, pair, token)
    ends = (sequence == _END).nonzero().flatten().tolist()
    return [sequence[start:end] for start, end in zip([0, *(end + 1 for end in ends[:-1])], ends)]


_END = -2  # after each item of several in one sequence


def _in_one(grids: Tensor) -> Tensor:
    """All items in raster order in one sequence, with an `_END` after each."""
    return torch.nn.functional.pad(grids.flatten(1), (0, 1), value=_END).flatten()


def _flattened(grids: Tensor, pair: tuple[int, int], token: int) -> Tensor:
    """The first merge: a cell takes its right neighbour or, where that is no match, the one below; all in raster order
    in one sequence."""
    state = grids.clone()
    for row in range(state.shape[1]):
        line = state[:, row]
        right = (line[:, :-1] == pair[0]) & (line[:, 1:] == pair[1])
        line[:, :-1][right] = token
        line[:, 1:][right] = _COVERED
        if row + 1 < state.shape[1]:
            below = (line == pair[0]) & (state[:, row + 1] == pair[1])
            line[below] = token
            state[:, row + 1][below] = _COVERED
    sequence = _in_one(state)
    return sequence[sequence != _COVERED]


def _shortened(sequence: Tensor, pair: tuple[int, int], token: int) -> Tensor:
    """A merge of two different tokens in a sequence."""
    sequence = sequence.clone()
    found = (sequence[:-1] == pair[0]) & (sequence[1:] == pair[1])
    sequence[:-1][found] = token
    sequence[1:][found] = _COVERED
    return sequence[sequence != _COVERED]


# -- one merge -----------------------------------------------------------------------------------------------------


def _joined(first: tuple[int, int], second: tuple[int, int], direction: Direction) -> tuple[int, int]:
    if direction == "right" and first[0] == second[0]:
        return first[0], first[1] + second[1]
    if direction == "below" and first[1] == second[1]:
        return first[0] + second[0], first[1]
    raise ValueError(
        f"expected shapes that make a rectangle by 'right' or 'below', got {first}, {second}, {direction!r}"
    )


def _checked(grids: Tensor, vocab_size: int, *, sequences: bool = False) -> Tensor:
    if grids.ndim not in ((2, 3) if sequences else (3,)) or grids.dtype != torch.int64:
        wanted = "int64 grids (B, H, W)" + (" or sequences (B, N)" if sequences else "")
        raise ValueError(f"expected {wanted}, got {grids.dtype} {tuple(grids.shape)}")
    if grids.numel() and not 0 <= int(grids.min()) <= int(grids.max()) < vocab_size:
        raise ValueError(f"expected codes in [0, {vocab_size}), got {int(grids.min())} to {int(grids.max())}")
    return grids


def _most_frequent(states: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> tuple[Merge, int] | None:
    """The pair that stands most often in the grids, and how often."""
    heights, widths = torch.tensor(shapes).unbind(1)
    best: tuple[Merge, int] | None = None
    directions: tuple[Direction, ...] = ("right", "below")
    for direction in directions:
        border, step = (heights, widths) if direction == "right" else (widths, heights)
        keys = []
        for state in states:
            neighbour = _neighbours(state, direction, step.to(state.device))
            sides = border.to(state.device)
            pairs = (neighbour != _COVERED) & (sides[state] == sides[neighbour])
            keys.append((state * len(shapes) + neighbour)[pairs].cpu())
        values, counts = torch.cat(keys).unique(return_counts=True) if keys else (torch.empty(0), torch.empty(0))
        if len(counts) > 0 and (best is None or int(counts.max()) > best[1]):
            key = int(values[counts == counts.max()].min())
            best = Merge(key // len(shapes), key % len(shapes), direction), int(counts.max())
    return best


def _neighbours(state: Tensor, direction: Direction, step: Tensor) -> Tensor:
    """For every token the one that begins right after it along an axis, in its own first row or column; else -1."""
    axis = 2 if direction == "right" else 1
    length = state.shape[axis]
    places = torch.arange(length, device=state.device).view((1, 1, -1) if axis == 2 else (1, -1, 1))
    after = places + step[state.clamp(min=0)]
    found = state.gather(axis, after.clamp(max=max(length - 1, 0)))
    return found.masked_fill((state == _COVERED) | (after >= length), _COVERED)


def _merge(state: Tensor, merge: Merge, shapes: Sequence[tuple[int, int]], token: int) -> None:
    """One merge in place; pairs that overlap are taken from the left, or from the top."""
    axis = 2 if merge.direction == "right" else 1
    step = shapes[merge.first][axis - 1]
    lines = state.transpose(axis, 2)  # a view, along whose last axis the pairs stand
    here, there = lines[..., : max(lines.shape[2] - step, 0)], lines[..., step:]
    pairs = (here == merge.first) & (there == merge.second)
    if merge.first == merge.second:
        for place in range(step, pairs.shape[2]):  # a token that was taken as the second is no first
            pairs[..., place] &= ~pairs[..., place - step]
    here[pairs] = token
    lines[..., step:][pairs] = _COVERED
