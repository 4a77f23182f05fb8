"""Linear maps and convolutions with weights laid out once as oneDNN multiplies by them: on CPUs, without gradients.

torch lays the weights of a convolution out anew in every call, which for a second of sound takes longer than many a
convolution itself, and gives linear maps to a library that uses half the width of some CPUs' vector units. The
operators here are those that `torch.compile` calls. A packed copy lives as long as its weight stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

GELU = Literal["none", "tanh"]  # exact, or by that approximation: torch's names

# with wide vectors one layout of a convolution's float32 weights serves signals of any length; with narrow ones, and in
# bfloat16, oneDNN wants another for each, and goes from one to another in many times the time of the convolution; and
# for activations of what it multiplies it takes with narrow ones at least twice as long as torch for a pass of its own
_WIDE = torch.cpu._is_avx512_supported()
# bfloat16 where the CPU has instructions that multiply it
_TYPES = (torch.float32, torch.bfloat16) if torch.cpu._is_avx512_bf16_supported() else (torch.float32,)
_TIME = 4096  # positions that the one is chosen for
_FEW = 2  # outputs for each channel, up to which copying what they see takes less time than laying out the weights
_SAMPLES = 32  # values that show changes of which torch keeps no count (through `.data`, or by sharding)
_kept = WeakIdKeyDictionary()  # weight -> its state and use when it was packed, some values, and the packed copy


def can_be_packed(x: Tensor, weight: Tensor) -> bool:
    """Whether a map of `x` by `weight` may run here: float32 on a CPU, or bfloat16 on one that multiplies it, without
    gradients, not traced or compiled.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _TYPES
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and x.numel() > 0
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: GELU | None = None) -> Tensor:
    """As `torch.nn.functional.linear`; the weight (O, I) may have more axes, in which I is split.

    `gelu`: GELU of the result, of this kind, in as little time as can be.
    """
    if not can_be_packed(x, weight):
        y = F.linear(x, weight.flatten(1), bias)
        return y if gelu is None else F.gelu(y, approximate=gelu)

    form = packed(weight, "linear", _pack_linear)
    if gelu is not None and _WIDE:
        return torch.ops.mkldnn._linear_pointwise(x, form, bias, "gelu", [], gelu)
    y = torch.ops.mkldnn._linear_pointwise(x, form, bias, "none", [], "")
    return y if gelu is None else torch.ops.aten.gelu_(y, approximate=gelu)


def silu_gated(x: Tensor, gate: nn.Linear, value: nn.Linear) -> Tensor:
    """SiLU(gate x) * (value x), in as little time as can be; both weights are such that `can_be_packed`."""
    if not _WIDE:
        opened, y = (linear(x, layer.weight, layer.bias) for layer in (gate, value))
        return F.silu(opened, inplace=True).mul_(y)
    first, second = (packed(layer.weight, "linear", _pack_linear) for layer in (gate, value))
    opened = torch.ops.mkldnn._linear_pointwise(x, first, gate.bias, "swish", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, opened, second, value.bias, "mul")


def _pack_linear(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1).contiguous())


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    prepare: Callable[[Tensor], Tensor] = lambda weight: weight,
    kernel: tuple[int, int] | None = None,
) -> Tensor:
    """A convolution of (B, C, 1, T), channels innermost in memory -> (B, O, 1, T'), the same.

    `x` and `weight` are such that `can_be_packed`. `prepare`: weight -> the kernel (O, C / groups, K).
    `kernel`: O and K; None: those of the weight.
    """
    channels, taps = kernel or (len(weight), weight.shape[2])
    batch, _, _, time = x.shape
    outputs = (time + 2 * padding - (taps - 1) * dilation - 1) // stride + 1
    if not _WIDE and groups == 1 and 0 < batch * outputs <= _FEW * channels:

        def pack_product(weight: Tensor) -> Tensor:
            return torch.ops.mkldnn._reorder_linear_weight(prepare(weight).transpose(1, 2).flatten(1).contiguous())

        seen, form = _seen(x, outputs, taps, stride, padding, dilation), packed(weight, "product", pack_product)
        y = torch.ops.mkldnn._linear_pointwise(seen, form, bias, "none", [], "")
        return y.transpose(1, 2).unsqueeze(2)

    settings = ((0, padding), (1, stride), (1, dilation), groups)
    one_serves = _WIDE and x.dtype == torch.float32
    chosen_for = (1, max(_TIME, (taps - 1) * dilation + 1)) if one_serves else (batch, time)

    def pack(weight: Tensor) -> Tensor:
        kernel = prepare(weight).unsqueeze(2).contiguous()
        size = (chosen_for[0], kernel.shape[1] * groups, 1, chosen_for[1])
        return torch._C._nn.mkldnn_reorder_conv2d_weight(kernel.to_mkldnn(), *settings, size)

    form = packed(weight, (settings, chosen_for, 0 if one_serves else torch.get_num_threads()), pack)
    return torch.ops.mkldnn._convolution_pointwise(x, form, bias, *settings, "none", [], "")


def _seen(x: Tensor, outputs: int, taps: int, stride: int, padding: int, dilation: int) -> Tensor:
    """What each output of a convolution of (B, C, 1, T) sees: (B, outputs, taps * C)."""
    rows = F.pad(x.squeeze(2).transpose(1, 2), (0, 0, padding, padding)).contiguous()
    batch, time, channels = rows.shape
    strides = (time * channels, stride * channels, dilation * channels, 1)
    return rows.as_strided((batch, outputs, taps, channels), strides).flatten(2)


def packed(weight: Tensor, use: Hashable, pack: Callable[[Tensor], Tensor]) -> Tensor:
    """`pack(weight)`, kept until the weight changes, goes, or is used in another way."""
    if weight.is_inference():  # does not tell when it changes
        return pack(weight)
    state = (weight.data_ptr(), weight._version, use)
    sample = weight.detach()[(slice(None, None, len(weight) // _SAMPLES + 1), *[0] * (weight.ndim - 1))]
    known = _kept.get(weight)
    if known is None or known[0] != state or not torch.equal(known[1], sample):
        known = (state, sample.clone(), pack(weight.detach()))
        _kept[weight] = known
    return known[2]


class Linear(nn.Linear):
    """A linear map that runs with a packed weight where that can be."""

    def forward(self, x: Tensor, gelu: GELU | None = None) -> Tensor:
        return linear(x, self.weight, self.bias, gelu)
