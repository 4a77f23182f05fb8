"""How many tokens an image gets, where a model leaves the choice: the counts that `encode` is given, and the cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def token_counts(num_tokens: int | list[int] | None, batch: int, allowed: Sequence[int]) -> list[int]:
    """The number of tokens of each item.

    Args:
        num_tokens: one number for all items, or one for each; None stands for the most.
        batch: number of items.
        allowed: the numbers that the model can give, ascending.

    Raises:
        ValueError: another number, one that is no integer, or not as many of them as items.
    """
    most = allowed[-1]
    given: list[int] = [most] * batch
    if isinstance(num_tokens, list | tuple):
        given = list(num_tokens)
    elif num_tokens is not None:
        given = [num_tokens] * batch
    if len(given) != batch:
        raise ValueError(f"num_tokens: expected one number for each of {batch} items, got {len(given)}")
    for count in given:
        if isinstance(count, bool) or not isinstance(count, int) or count not in allowed:
            wanted = f"an integer from {allowed[0]} to {most}"
            if isinstance(allowed, range) and allowed.step > 1:
                wanted += f" in steps of {allowed.step}"
            raise ValueError(f"num_tokens: expected {wanted}, got {count!r}")
    return given


def cut(levels: Sequence[Tensor], counts: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The first tokens of each item: index tensors (B, N), zero beyond an item's count, and lengths if they differ."""
    longest = max(counts)
    levels = tuple(level[:, :longest] for level in levels)
    if min(counts) == longest:
        return levels, None
    lengths = torch.tensor(counts, dtype=torch.int64, device=levels[0].device)
    beyond = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return tuple(level.masked_fill(beyond, 0) for level in levels), lengths
