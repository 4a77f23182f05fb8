"""A part of a computation that the backward pass computes again, to keep little in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils.checkpoint import checkpoint

from zoo.ops.own_gradient import transformed

T = TypeVar("T")


def recomputed(function: Callable[..., T], *inputs: Any) -> T:
    """`function(*inputs)`, of which gradients keep only the inputs.

    Under the transforms of `torch.func`, which cannot recompute, they keep what they need.
    """
    if transformed():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)
