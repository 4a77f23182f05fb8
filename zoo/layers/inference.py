"""What networks do faster where no gradient is asked for: on a CPU other layouts of memory and forms of the same sums.
Results are equal up to rounding; training and compiled graphs take the usual ways.

On a CPU maps have their channels innermost, as oneDNN is fast with. Linear maps are in `zoo.layers.packed`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.in_place import may_overwrite, silu
from zoo.layers.packed import can_be_packed, packed
from zoo.ops.activations import group_norm_silu

# a result of up to so many values (24 MiB) gets memory that the process has already; for more than 32 MiB the system
# gives it anew each time, page by page, which takes a tenth of the time of a product of that size
_AT_HAND = 6 << 20
_LARGEST = 31 << 20  # bytes


def norm_silu(norm: nn.GroupNorm, x: Tensor, *, spare: bool = False) -> Tensor:
    """SiLU of a group norm's result. `spare`: the network does not need x again."""
    if not is_plain(norm, nn.GroupNorm) or not norm.affine:
        return silu(norm(x))
    spare = spare and may_overwrite()
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, spare=spare)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is its weights alone, which then may be used without it: not wrapped, as by an adapter, nor
    parametrised, nor with hooks.
    """
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return type(layer) is kind and not any(hooks)


def in_slices(
    f: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, largest: int, other: Tensor | None = None
) -> Tensor:
    """f(x, other), some items (of the first axis) at a time where nobody looks on, so that memory serves again.

    Args:
        f: treats each item by itself.
        largest: values of the largest results that f makes of an item on the way and needs at the same time.
        other: None, or as many items, that f takes along.
    """
    if not (may_overwrite() and can_be_packed(x, x)):
        return f(x, other)
    _keep_memory()
    slices = min(len(x), -(-len(x) * largest // _AT_HAND))
    if slices <= 1:
        return f(x, other)
    others = [None] * slices if other is None else other.tensor_split(slices)
    return torch.cat([f(*items) for items in zip(x.tensor_split(slices), others)])


@functools.cache
def _keep_memory() -> None:
    """glibc keeps of freed memory twice the largest block (below 32 MiB) that has been freed so far: one of nearly that
    size is, without ever being written to.
    """
    torch.empty(_LARGEST, dtype=torch.uint8, device="cpu")


def channels_last(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) as they are best for a row of convolutions; the layout passes through these by itself.

    Exported programs take it too: in another layout they would sum in another order, and round to other tokens.
    """
    wanted = _on_cpu(x) or torch.compiler.is_exporting()
    return x.contiguous(memory_format=torch.channels_last) if wanted else x


def conv_of_doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3 x 3 convolution of maps whose sides nearest-neighbour upsampling has doubled.

    Of the nine taps several fall on the same small pixel. In inference these are summed beforehand, which leaves four
    of nine products: a transposed convolution of stride 2 with 4 x 4 taps, two by two for each place of the output.

    Args:
        x: (B, C, H, W).
        weight: (C', C, 3, 3).
        bias: (C',).

    Returns:
        (B, C', 2 H, 2 W), seeing zeros beyond the borders.
    """
    if not _on_cpu(x) or weight.dtype != x.dtype:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    return F.conv_transpose2d(x, packed(weight, "joined taps", _join), bias, stride=2, padding=1)


def _join(weight: Tensor) -> Tensor:
    """(C', C, 3, 3) -> (C, C', 4, 4)."""
    spread = weight.new_tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.float32)
    taps = torch.einsum("oiab,ap,bq->iopq", weight.float().flip(2, 3), spread, spread)
    return taps.to(weight.dtype).contiguous(memory_format=torch.channels_last)


def _on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )
