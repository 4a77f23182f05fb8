"""Tables over all values of a few independent bits; tokens come last, so that their products are of long rows."""

from __future__ import annotations

import torch
from torch import Tensor


def joint_probabilities(one: Tensor, zero: Tensor) -> Tensor:
    """Probabilities of each bit being 1 and 0 (groups, bits, n) -> of all values of a group (groups, 2^bits, n).

    Bit 0 is the least significant of the value. Both probabilities are given, as 1 - p loses what is near 0.
    """
    if one.shape[1] == 0:
        return one.new_ones(one.shape[0], 1, one.shape[2])
    return _products(torch.stack([zero, one], dim=2))


def _products(pairs: Tensor) -> Tensor:
    """(groups, bits, 2, n) -> (groups, 2^bits, n), products of one of each pair."""
    bits = pairs.shape[1]
    if bits == 1:
        return pairs[:, 0]
    low, high = _products(pairs[:, : bits // 2]), _products(pairs[:, bits // 2 :])
    return (high[:, :, None] * low[:, None]).flatten(1, 2)


def sum_by_bit(table: Tensor) -> tuple[Tensor, Tensor]:
    """(groups, 2^bits, n) -> sums over the values whose bit is 1, and whose bit is 0: two of (groups, bits, n)."""
    bits = (table.shape[1] - 1).bit_length()
    ones = (torch.arange(table.shape[1], device=table.device) >> torch.arange(bits, device=table.device)[:, None]) & 1
    chosen = torch.cat([ones, 1 - ones]).to(table.dtype)
    is_one, is_zero = torch.matmul(chosen, table).unflatten(1, (2, bits)).unbind(1)
    return is_one, is_zero
