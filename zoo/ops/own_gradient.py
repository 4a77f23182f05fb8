"""Functions with a gradient of their own: differentiable once, by autograd and under the transforms of `torch.func`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class OwnGradient(torch.autograd.Function):
    """Base of them. One writes `forward(*inputs)`, `setup_context` and, under `once_differentiable`, `backward`.

    What the backward pass needs beside inputs and results, `forward` returns as further results.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:  # type: ignore[override]
        """One item after the other: what adds over the rows of an item then never adds over items."""
        return one_by_one(cls.apply, info, in_dims, *inputs)


def one_by_one(function: Callable[..., Any], info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
    """What `torch.func.vmap` asks of a function: its results of each item, stacked, and where they are stacked."""

    def of(item: int) -> Any:
        return function(*tree_map(lambda x, dim: x if dim is None else x.select(dim, item), inputs, in_dims))

    items = [of(item) for item in range(info.batch_size)]
    if isinstance(items[0], Tensor):
        return torch.stack(items), 0
    results = tuple(None if values[0] is None else torch.stack(values) for values in zip(*items))
    return results, tuple(None if result is None else 0 for result in results)


def transformed() -> bool:
    """Whether a transform of `torch.func` is at work, whose tensors have no memory of their own."""
    return torch._C._are_functorch_transforms_active()


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass whose own gradient is refused, also where the gradients that come in have none.

    torch's decorator of this name gives slopes without any gradient in that case: a penalty of them would be dropped
    without a word.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *gradients: Tensor) -> Any:
        if torch.compiler.is_compiling():  # whose programs have no second derivatives
            return backward(ctx, *gradients)
        return _Slopes.apply(backward, ctx, len(gradients), *gradients, *ctx.saved_tensors)

    return refusing


class _Kept:
    """A context with the saved tensors as they are given, unwrapped of transforms."""

    def __init__(self, ctx: Any, saved: tuple[Tensor, ...]) -> None:
        self._ctx, self.saved_tensors = ctx, saved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class _Slopes(OwnGradient):
    """The slopes of a function: (backward, ctx, number of gradients, *gradients, *saved tensors) -> slopes."""

    @staticmethod
    def forward(backward: Callable[..., Any], ctx: Any, count: int, *tensors: Tensor) -> Any:
        return backward(_Kept(ctx, tensors[count:]), *tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.of = inputs[0].__qualname__.split(".")[0].lstrip("_")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(f"{ctx.of} is differentiable once: expected no gradient of its gradient, got a call for one")
