"""Attention of many heads to some hundred positions, by the C++ kernel `csrc/attention.cpp`: for CPUs, without
gradients.

torch's attention reaches half of what a processor can do at such lengths. Results differ from torch's by rounding;
where there is no compiler, or `ZOO_COMPILED=0`, they are torch's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops import threads
from zoo.ops.build import BuildError, Kernel
from zoo.ops.modes import is_watched

_SHORT, _LONG = 48, 2048  # keys, fewer or more than which torch serves as well
_PARTS = 8  # of all heads' queries, for each thread, so that all end at about the same time


class _Part(ctypes.Structure):
    """As in the source."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("item", "head", "position")))


class _Task(ctypes.Structure):
    """As in the source."""

    _fields_ = (
        *((name, _Part) for name in ("q", "k", "v")),
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("items", "heads", "queries", "keys", "width", "block", "next", "failed")),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(C)) v of (B, heads, N, C) and keys and values (B, heads, M, C), the heads side by side.

    Args:
        mask: bool, broadcast to (B, heads, N, M), True where a query sees a key.

    Returns:
        (B, N, heads C).
    """
    if mask is None and _can_run(q, k, v):
        return _run(q, k, v, _KERNEL.library())
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def available() -> bool:
    """Whether the kernel can be used; the first call builds or loads it, and logs why where it cannot be had."""
    return _KERNEL.library() is not None


def _can_run(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not is_watched()
        and all(
            type(part) is Tensor
            and part.device.type == "cpu"
            and part.dtype == torch.float32
            and part.ndim == 4
            and part.stride(3) == 1
            and part.numel() > 0
            for part in (q, k, v)
        )
        and _SHORT <= k.shape[2] <= _LONG
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and k.shape[2] == v.shape[2]
        and q.shape[3] == k.shape[3] == v.shape[3]
        and available()
    )


def _run(q: Tensor, k: Tensor, v: Tensor, library: ctypes.CDLL | None) -> Tensor:
    if library is None:
        raise RuntimeError("the compiled kernel is not available")
    batch, heads, queries, width = q.shape
    y = q.new_empty(batch, queries, heads * width)
    parts = max(1, _PARTS * torch.get_num_threads() // (batch * heads))
    block = -(-queries // parts)
    task = _Task(
        *(_Part(part.data_ptr(), *part.stride()[:3]) for part in (q, k, v)),
        y.data_ptr(), batch, heads, queries, k.shape[2], width, block, 0, 0,
    )  # fmt: skip
    threads.run(library.zoo_attention, task, shared=True)
    if task.failed:
        raise MemoryError(f"no memory for attention to {k.shape[2]} positions")
    return y


def _check(library: ctypes.CDLL) -> None:
    """Raise a BuildError unless the library gives torch's values."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, count, 21, generator=generator) for count in (50, 70, 70))
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    if not torch.allclose(_run(q, k, v, library), expected, rtol=1e-5, atol=1e-5):
        raise BuildError("its answers are wrong")


_KERNEL = Kernel(Path(__file__).parent / "csrc" / "attention.cpp", _check, "attention is computed by torch")
