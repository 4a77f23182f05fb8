"""Results in the memory of what they are made of, which spares time and memory: where nobody else can need that.

Gradients may, and so may hooks, which can keep what a layer has given. Only the ways in which users call a model know
of all its hooks; networks that are called by themselves leave everything as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Permission(threading.local):
    given = False


_PERMISSION = _Permission()


@contextmanager
def unobserved(modules: Iterable[nn.Module]) -> Iterator[None]:
    """For the block, and for this thread, results may overwrite each other unless one of the modules has hooks."""
    everywhere = nn.modules.module
    watched = bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks)
    before = _PERMISSION.given
    _PERMISSION.given = not watched and not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    try:
        yield
    finally:
        _PERMISSION.given = before


def may_overwrite() -> bool:
    """Whether what a layer has given may be overwritten; never in compiled or exported programs."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _PERMISSION.given


def added(x: Tensor, y: Tensor) -> Tensor:
    """x + y, in the memory of x where that may be."""
    return x.add_(y) if may_overwrite() and x.dtype == y.dtype else x + y


def silu(x: Tensor) -> Tensor:
    """SiLU, in the memory of x where that may be."""
    return F.silu(x, inplace=may_overwrite())
