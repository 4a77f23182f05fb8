"""The sparsemax: like the softmax it gives a distribution, but one with exact zeros (arXiv 1602.02068)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.ops.own_gradient import OwnGradient, once_differentiable
from zoo.ops.precision import full_precision


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """The nearest (Euclidean) distribution: max(x - t, 0) with the t that makes it add up to 1.

    Args:
        x: scores, floating point; -infinity, which gets the weight 0, along with at least one finite value. Half
            precision is computed in float32.
        dim: along which the result adds up to 1; of size >= 1.

    Returns:
        Of the shape of x, in float32 (float64 where x is); differentiable, once.
    """
    with full_precision(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).movedim(dim, -1)
        return _Sparsemax.apply(wide).movedim(-1, dim)


class _Sparsemax(OwnGradient):
    """Along the last dimension; the derivative takes the mean over the support off the gradient there."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x - x.amax(-1, keepdim=True)
        falling = x.sort(dim=-1, descending=True).values
        sums = falling.cumsum(-1)
        numbers = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
        support = (1 + numbers * falling > sums).sum(-1, keepdim=True)
        threshold = (sums.gather(-1, support - 1) - 1) / support
        return (x - threshold).clamp_min(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        support = weights > 0
        inside = gradient.where(support, 0)
        return inside - (inside.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)).where(support, 0)
