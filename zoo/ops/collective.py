"""What the processes of a distributed run tell each other; where there is one process, nothing is sent."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def world_size() -> int:
    """Number of processes; 1 without an initialised process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def sum_over_ranks(*tensors: Tensor) -> None:
    """Replace each tensor, in place, by its sum over all processes. Every process must call it, also with zeros."""
    if world_size() > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def from_all_ranks(value: Any) -> list[Any]:
    """The small values of all processes, in the order of ranks. Every process must call it."""
    values = [value] * world_size()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes, differentiable: what one process loses by it reaches the others too."""
    if world_size() == 1:
        return x
    from torch.distributed.nn import all_reduce  # slow to import, and warns where distributed training is not built in

    return all_reduce(x) / world_size()


def joined_over_ranks(x: Tensor) -> Tensor:
    """The batches (B, ...) of all processes as one, differentiable like `mean_over_ranks`; all are of one size."""
    if world_size() == 1:
        return x
    from torch.distributed.nn import all_gather

    return torch.cat(all_gather(x))
