"""Statistics and choices of the joined batch: the batches of all processes of a run, in the order of their ranks.

A step that uses them equals that of one process on the joined batch. Every function is collective: all processes call
it, also one whose batch is empty. In a run of one process nothing is communicated.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

from zoo.ops.code_sums import code_sums
from zoo.ops.collective import sum_over_ranks, world_size


def joined_code_sums(x: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`code_sums` over the joined batch; a vector that holds NaN or infinity does not count.

    Args:
        x: (N, D) vectors, N >= 0.
        indices: (N,) int64 in [0, count).
        count: number of codes K.

    Returns:
        (sums (K, D), counts (K,)), both floating point.
    """
    finite = x.isfinite().all(dim=1)
    kept = torch.where(finite[:, None], x.detach(), 0)
    sums, counts = code_sums(kept, torch.where(finite, indices, count), count + 1)  # the last code takes the others
    joined = torch.cat([sums[:count], counts[:count, None].to(sums.dtype)], dim=1)
    sum_over_ranks(joined)
    return joined[:, :-1], joined[:, -1]


def joined_seed(device: torch.device) -> int:
    """A seed drawn from the global generator of the first process, the same on all; device: that of the batch."""
    seed = torch.randint(2**31, (), device="cpu")
    if world_size() > 1:
        seed = seed.to(device)
        torch.distributed.broadcast(seed, src=0)
    return int(seed)


def joined_sample(x: Tensor, count: int) -> Tensor:
    """Rows of the joined batch, drawn without replacement; the same on all processes.

    Args:
        x: (N, D) vectors of this process; rows that hold NaN or infinity are never drawn.
        count: how many to draw.

    Returns:
        (min(count, number of finite rows), D); if that is all of them, they come in their order.
    """
    x = x.detach()[x.isfinite().all(dim=1)]
    rank = torch.distributed.get_rank() if world_size() > 1 else 0
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    sizes[rank] = len(x)
    sum_over_ranks(sizes)
    ends = sizes.cumsum(0).tolist()
    if count < ends[-1]:
        generator = torch.Generator().manual_seed(joined_seed(x.device))
        positions = torch.randperm(ends[-1], generator=generator)[:count].to(x.device)
    else:
        positions = torch.arange(ends[-1], device=x.device)
    local = positions - (ends[rank] - len(x))
    own = (local >= 0) & (local < len(x))
    rows = x.new_zeros(len(positions), x.shape[1])
    rows[own] = x[local[own]]
    sum_over_ranks(rows)
    return rows
