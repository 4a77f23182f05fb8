"""Snake and ELU in one pass over memory, by the C++ kernel `csrc/activations.cpp`: for CPUs, without gradients.

torch takes four passes, and for the sine of Snake five times as long as for all else. Results differ from torch's by
rounding; where there is no compiler, or `ZOO_COMPILED=0`, they are torch's.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.build import BuildError, Kernel

_BLOCK = 1 << 14  # values that a thread takes at a time
_SHARED = 1 << 17  # values from which on threads share the work


class _Task(ctypes.Structure):
    """As in the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "alpha", "scale")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "block", "next")),
    )


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / (alpha + 1e-9) of (..., C), with alpha (C,)."""
    scale = (alpha + 1e-9).reciprocal()
    if _can_run(x) and alpha.dtype == torch.float32 and alpha.device == x.device and alpha.is_contiguous():
        return _run("zoo_snake", x, alpha, scale)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.addcmul(x, torch.sin(alpha * x).square(), scale)
    return torch.mul(x, alpha).sin_().square_().mul_(scale).add_(x)


def elu(x: Tensor) -> Tensor:
    """max(x, 0) + exp(min(x, 0)) - 1, of any shape."""
    if _can_run(x):
        return _run("zoo_elu", x)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.elu(x)
    below = x.clamp_max(0).exp_().sub_(1)  # by vector instructions, which torch's own does not use
    return torch.maximum(x, below, out=below)


def available() -> bool:
    """Whether the kernel can be used; the first call builds or loads it, and logs why where it cannot be had."""
    return _KERNEL.library() is not None


def _can_run(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and x.dtype == torch.float32
        and x.is_contiguous()
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and available()
    )


def _run(name: str, x: Tensor, *channels: Tensor) -> Tensor:
    library = _KERNEL.library()
    if library is None:
        raise RuntimeError("the compiled kernel is not available")
    return _call(library, name, x, *channels)


def _call(library: ctypes.CDLL, name: str, x: Tensor, *channels: Tensor) -> Tensor:
    """The function of the library on `x`, its last axis that of `channels`; without them all values are alike."""
    y = torch.empty_like(x)
    width = x.shape[-1] if channels else 1
    pointers = [tensor.data_ptr() for tensor in channels] or [None, None]
    task = _Task(x.data_ptr(), y.data_ptr(), *pointers, x.numel() // width, width, max(1, _BLOCK // width), 0)
    action, threads = getattr(library, name), torch.get_num_threads()
    team = _threads_of_torch() if threads > 1 and x.numel() >= _SHARED else None
    if team is None:
        action(ctypes.byref(task))
    else:
        team(action, ctypes.byref(task), ctypes.c_uint(threads), ctypes.c_uint(0))
    return y


@functools.cache
def _threads_of_torch() -> Callable[..., None] | None:
    """Runs a function in the threads of torch's OpenMP: others would fight for the processor with those, which wait in
    a loop. None where torch has another library of threads; then the kernel runs in one.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel
    except (OSError, AttributeError):
        return None


def _check(library: ctypes.CDLL) -> None:
    """Raise a BuildError unless the library gives torch's values."""
    generator = torch.Generator().manual_seed(0)
    x, alpha = torch.randn(7, 21, generator=generator) * 9, torch.rand(21, generator=generator) + 0.1
    scale = alpha.reciprocal()
    expected = {"zoo_snake": x + (alpha * x).sin().square() * scale, "zoo_elu": F.elu(x)}
    for name, right in expected.items():
        got = _call(library, name, x, *((alpha, scale) if name == "zoo_snake" else ()))
        if not torch.allclose(got, right, rtol=1e-5, atol=1e-5):
            raise BuildError("its answers are wrong")


_KERNEL = Kernel(Path(__file__).parent / "csrc" / "activations.cpp", _check, "activations are computed by torch")
