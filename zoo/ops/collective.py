"""Sums over the processes of a distributed run, which do nothing where there is one process."""

from __future__ import annotations

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
