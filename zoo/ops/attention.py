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
        ("open", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | int | None = None, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v of (B, heads, N, C) and keys and values (B, heads, M, C), the heads side by side.

    Args:
        mask: bool, broadcast to (B, heads, N, M), True where a query sees a key; or how many of the first keys all
            queries see: these are the last N of M positions, and each sees further keys up to its own.
        scale: None: 1 / sqrt(C).

    Returns:
        (B, N, heads C).

    Raises:
        ValueError: a number of keys that there are not, or with it more queries than keys.
    """
    queries, keys = q.shape[2], k.shape[2]
    if isinstance(mask, int) and not (0 <= mask <= keys and queries <= keys):
        raise ValueError(f"expected 0 to {keys} keys that all of as many queries at most see, got {mask}, {queries}")
    if not isinstance(mask, Tensor) and _can_run(q, k, v):
        return _run(q, k, v, mask, scale, _KERNEL.library())
    if isinstance(mask, int):
        place = torch.arange(keys, device=q.device)
        mask = (place <= place[keys - queries :, None]) | (place < mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)


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


def _run(
    q: Tensor, k: Tensor, v: Tensor, open_keys: int | None, scale: float | None, library: ctypes.CDLL | None
) -> Tensor:
    if library is None:
        raise RuntimeError("the compiled kernel is not available")
    batch, heads, queries, width = q.shape
    y = q.new_empty(batch, queries, heads * width)
    parts = max(1, _PARTS * torch.get_num_threads() // (batch * heads))
    block = -(-queries // parts)
    task = _Task(
        *(_Part(part.data_ptr(), *part.stride()[:3]) for part in (q, k, v)),
        y.data_ptr(), batch, heads, queries, k.shape[2], width, block, 0, 0,
        k.shape[2] if open_keys is None else open_keys, width**-0.5 if scale is None else scale,
    )  # fmt: skip
    threads.run(library.zoo_attention, task, shared=True)
    if task.failed:
        raise MemoryError(f"no memory for attention to {k.shape[2]} positions")
    return y


def _check(library: ctypes.CDLL) -> None:
    """Raise a BuildError unless the library gives torch's values."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, count, 21, generator=generator) for count in (50, 70, 70))
    for open_keys, scale in ((70, 21**-0.5), (40, 0.1)):
        place = torch.arange(70)
        mask = (place <= place[20:, None]) | (place < open_keys)
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)
        if not torch.allclose(_run(q, k, v, open_keys, scale, library), expected, rtol=1e-5, atol=1e-5):
            raise BuildError("its answers are wrong")


_KERNEL = Kernel(Path(__file__).parent / "csrc" / "attention.cpp", _check, "attention is computed by torch")
