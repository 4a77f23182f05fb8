"""What networks do faster where no gradient is asked for: results in place of inputs, and on a CPU other layouts of
memory and forms of the same sums. Results are equal up to rounding; training and compiled graphs take the usual ways.

The forms for the CPU are those that oneDNN is fast with: channels innermost, and its own matrix products (the operator
that `torch.compile` calls), which on some processors run twice as fast as those of the library behind `linear`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_FEW = 64  # rows below which a matrix product is not worth another form
_joined_taps = WeakIdKeyDictionary()  # weight -> its state when its taps were joined, and the result


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else needs, in its memory where no gradient needs it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def channels_last(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) as they are best for a row of convolutions; the layout passes through these by itself."""
    return x.contiguous(memory_format=torch.channels_last) if _on_cpu(x) else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `torch.nn.functional.linear`, of (..., C)."""
    few = x.numel() < _FEW * x.shape[-1]
    if not _on_cpu(x) or x.dtype != torch.float32 or weight.dtype != x.dtype or few:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class Linear(nn.Linear):
    """A linear layer whose inference is in the form that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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
    return F.conv_transpose2d(x, _joined(weight), bias, stride=2, padding=1)


def _joined(weight: Tensor) -> Tensor:
    """(C', C, 3, 3) -> (C, C', 4, 4); kept as long as the weight is and stays as it is."""
    if weight.is_inference():
        return _join(weight)
    state = (weight.data_ptr(), weight._version)
    known = _joined_taps.get(weight)
    if known is None or known[0] != state:
        known = (state, _join(weight.detach()))
        _joined_taps[weight] = known
    return known[1]


def _join(weight: Tensor) -> Tensor:
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
