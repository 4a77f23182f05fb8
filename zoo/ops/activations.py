"""Snake, ELU, and SiLU after a group norm in few passes over memory, by the C++ kernel `csrc/activations.cpp`: for
CPUs, without gradients; Snake and ELU of float32 and bfloat16.

For Snake and ELU torch takes four passes, and for the sine of Snake five times as long as for all else. Results differ
from torch's by rounding, of bfloat16 once, at the end; where there is no compiler, or `ZOO_COMPILED=0`, they are
torch's.
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

_BLOCK = 1 << 14  # values that a thread takes at a time
_SUMMANDS = 128  # that are summed in float32, before float64 takes their sum
_SHARED = 1 << 17  # values from which on threads share the work
_LARGE = 1 << 19  # values of an item from which on a group norm is faster here than in torch


_ENDINGS = {torch.float32: "", torch.bfloat16: "_bfloat16"}  # of the functions' names


class _Task(ctypes.Structure):
    """As in the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "alpha", "scale")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "block", "next")),
    )


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / (alpha + 1e-9) of (..., C), with alpha (C,)."""
    if _can_run(x) and _are_channels(x, alpha):
        factors = alpha.float()
        return _run("zoo_snake", x, factors, (factors + 1e-9).reciprocal())
    scale = (alpha + 1e-9).reciprocal()
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


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, spare: bool = False) -> Tensor:
    """SiLU of `torch.nn.functional.group_norm` of (B, C, ...), in one pass for the moments and one for the rest.

    The kernel runs on large maps with channels innermost. `spare`: nobody else needs x, in whose memory the result
    may lie.
    """
    if not (
        x.dtype == torch.float32 and _can_run(x.movedim(1, -1)) and _are_channels(x, weight, bias) and _is_large(x)
    ):
        return F.silu(F.group_norm(x, groups, weight, bias, eps), inplace=not torch.is_grad_enabled())
    rows = x.movedim(1, -1).flatten(1, -2)  # (B, H W, C)
    batch, count, width = rows.shape
    y, start = (x if spare else torch.empty_like(x)), rows[:, 0].contiguous()
    block = min(_SUMMANDS, max(1, _BLOCK // width))
    sums = x.new_empty(batch, -(-count // block), 2, width)
    for item in range(batch):
        _call("zoo_moments", rows[item], sums[item], start[item], block=block)
    # about the first position, so that a large mean takes no digits off the variance
    about = start.double()
    first, second = (sums.sum(1, dtype=torch.float64) / count).unbind(1)
    means = (about + first).view(batch, groups, -1)
    mean = means.mean(-1, keepdim=True)
    apart = (second - first.square()).view(batch, groups, -1) + (means - mean).square()
    scale = weight.double().view(groups, -1) / (apart.mean(-1, keepdim=True) + eps).sqrt()
    shift = bias.double().view(groups, -1) - mean * scale
    factors, summands = (part.float().view(batch, width) for part in (scale, shift))
    for item, out in enumerate(y.movedim(1, -1).flatten(1, -2)):
        _call("zoo_scaled_silu", rows[item], out, factors[item], summands[item])
    return y


def available() -> bool:
    """Whether the kernel can be used; the first call builds or loads it, and logs why where it cannot be had."""
    return _KERNEL.library() is not None


def _can_run(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and x.dtype in _ENDINGS
        and x.is_contiguous()
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and available()
    )


def _is_large(x: Tensor) -> bool:
    """Whether items are worth the calls, and nobody wants to see these as torch's own."""
    return x[0].numel() >= _LARGE and not is_watched()


def _are_channels(x: Tensor, *channels: Tensor) -> bool:
    """Whether these are factors or summands of the channels of x that the kernel can read."""
    return all(part.dtype == x.dtype and part.device == x.device and part.is_contiguous() for part in channels)


def _run(name: str, x: Tensor, *channels: Tensor) -> Tensor:
    y = torch.empty_like(x)
    _call(name + _ENDINGS[x.dtype], x, y, *channels)
    return y


def _call(
    name: str, x: Tensor, y: Tensor, *channels: Tensor, block: int | None = None, library: ctypes.CDLL | None = None
) -> None:
    """The function of the library from `x` to `y`; the last axis is that of `channels`, without which all values are
    alike. `block`: rows taken at a time; None: as many as are good.
    """
    library = library or _KERNEL.library()
    if library is None:
        raise RuntimeError("the compiled kernel is not available")
    width = x.shape[-1] if channels else 1
    alpha, scale, *_ = [*(tensor.data_ptr() for tensor in channels), None, None]
    task = _Task(
        x.data_ptr(), y.data_ptr(), alpha, scale, x.numel() // width, width, block or max(1, _BLOCK // width), 0
    )
    threads.run(getattr(library, name), task, shared=x.numel() >= _SHARED)


def _check(library: ctypes.CDLL) -> None:
    """Raise a BuildError unless the library gives torch's values."""
    generator = torch.Generator().manual_seed(0)
    x, alpha = torch.randn(7, 21, generator=generator) * 9, torch.rand(21, generator=generator) + 0.1
    scale = alpha.reciprocal()
    expected = {
        "zoo_snake": (x + (alpha * x).sin().square() * scale, (alpha, scale)),
        "zoo_elu": (F.elu(x), ()),
        "zoo_moments": (torch.stack([(x - alpha).sum(0), (x - alpha).square().sum(0)]), (alpha,)),
        "zoo_scaled_silu": (F.silu(alpha * x + scale), (alpha, scale)),
    }
    for name, (right, channels) in expected.items():
        got = torch.empty_like(right)
        _call(name, x, got, *channels, library=library)
        if not torch.allclose(got, right, rtol=1e-5, atol=1e-5):
            raise BuildError("its answers are wrong")
    x = x.bfloat16()
    rounded = {
        "zoo_snake_bfloat16": (x.float() + (alpha * x).sin().square() * scale, (alpha, scale)),
        "zoo_elu_bfloat16": (F.elu(x.float()), ()),
    }
    for name, (right, channels) in rounded.items():
        got = torch.empty_like(x)
        _call(name, x, got, *channels, library=library)
        if not torch.allclose(got.float(), right, rtol=2**-8, atol=1e-5):
            raise BuildError("its answers in bfloat16 are wrong")


_KERNEL = Kernel(Path(__file__).parent / "csrc" / "activations.cpp", _check, "activations are computed by torch")
