"""Recomputation of norm and activation in the backward pass of convolutional networks, for training in less memory.

A block of norm, activation and convolution keeps three tensors of one size for its gradients. Two of them follow from
the first at the cost of an elementwise pass, which is little beside the convolution (the idea of arXiv 1604.06174). An
enlarged map follows from one of a quarter of its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zoo.ops.own_gradient import OwnGradient, once_differentiable

_ACTIVATIONS = {F.silu, F.gelu, F.relu, F.leaky_relu}
_CHEAP = {*_ACTIVATIONS, F.interpolate}  # what ends a chain that is computed again


class RecomputeActivations(TorchFunctionMode):
    """Within this context, a 2D convolution of an activation (of a group norm or not) keeps only what lies before both,
    and one of an enlarged map only the small one.

    Results and gradients are those without it. It works on any module that calls `torch.nn.functional`; what it does
    not know runs as it is. It is of no use under `torch.compile`, which recomputes by itself.

        with RecomputeActivations():
            reconstruction = model(images).reconstruction
        loss(reconstruction).backward()
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        source = args[0]
        if func is F.dropout and not _drops(*args[1:], **kwargs):
            return source
        if func is F.group_norm:
            return _tagged(func(*args, **kwargs), _Chain(source, [(func, args[1:], kwargs)]))
        if func in _CHEAP and not kwargs.get("inplace", False):
            before = getattr(source, "_recomputed_from", None) or _Chain(source, [])
            return _tagged(func(*args, **kwargs), before.then(func, args[1:], kwargs))
        chain: _Chain | None = getattr(source, "_recomputed_from", None)
        if func is F.conv2d and chain is not None and chain.cheap:
            return _convolve(chain, *args, **kwargs)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Chain:
    """What makes a tensor: functions to call one after the other, on `source`, with the arguments after the first."""

    source: Tensor
    calls: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]]

    def then(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Chain:
        return _Chain(self.source, [*self.calls, (func, args, kwargs)])

    @property
    def cheap(self) -> bool:
        """Whether it ends in more than a norm, of which a convolution keeps as much as of its source."""
        return self.calls[-1][0] in _CHEAP

    @property
    def parameters(self) -> list[Tensor]:
        """Tensors among the arguments, in their order."""
        return [
            value for _, args, kwargs in self.calls for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
        ]

    def without_tensors(self) -> list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]]:
        """The calls, with a placeholder for each tensor: they are kept without the graph that made them."""
        return [
            (func, tuple(map(_blank, args)), {name: _blank(value) for name, value in kwargs.items()})
            for func, args, kwargs in self.calls
        ]


_TENSOR = object()


def _blank(value: Any) -> Any:
    return _TENSOR if isinstance(value, Tensor) else value


def _run(calls: list[Any], x: Tensor, parameters: list[Tensor]) -> Tensor:
    rest = iter(parameters)
    for func, args, kwargs in calls:
        filled = [next(rest) if value is _TENSOR else value for value in args]
        named = {name: next(rest) if value is _TENSOR else value for name, value in kwargs.items()}
        x = func(x, *filled, **named)
    return x


def _tagged(result: Tensor, chain: _Chain) -> Tensor:
    if not isinstance(result, torch.nn.Parameter):
        result._recomputed_from = chain  # type: ignore[attr-defined]
    return result


def _drops(p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    return training and p > 0


def _convolve(
    chain: _Chain,
    activated: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        return F.conv2d(activated, weight, bias, stride, padding, dilation, groups)
    geometry = tuple([value, value] if isinstance(value, int) else list(value) for value in (stride, padding, dilation))
    settings = (chain.without_tensors(), activated.detach(), geometry, groups)
    return _Convolution.apply(settings, chain.source, weight, bias, *chain.parameters)


class _Convolution(OwnGradient):
    """conv2d of a recomputed input. Takes (settings, source, weight, bias, *parameters of the chain)."""

    @staticmethod
    def forward(settings: Any, source: Tensor, weight: Tensor, bias: Tensor | None, *rest: Tensor) -> Tensor:
        _, activated, (stride, padding, dilation), groups = settings
        return F.conv2d(activated, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        (ctx.calls, _, ctx.geometry, ctx.groups), source, weight, bias, *rest = inputs
        ctx.save_for_backward(source, weight, *rest)
        ctx.bias = bias is not None
        kind = source.device.type
        ctx.autocast = {
            "device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind),
        }  # fmt: skip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        source, weight, *rest = ctx.saved_tensors
        inputs = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in (source, *rest)]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            activated = _run(ctx.calls, inputs[0], inputs[1:])
        _, needs_source, needs_weight, needs_bias, *needs_rest = ctx.needs_input_grad
        stride, padding, dilation = ctx.geometry
        slopes = torch.ops.aten.convolution_backward(
            gradient,
            activated.detach().to(gradient.dtype),
            weight.to(gradient.dtype),
            [weight.shape[0]] if ctx.bias else None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            ctx.groups,
            [needs_source or any(needs_rest), needs_weight, ctx.bias and needs_bias],
        )
        to_input, to_weight, to_bias = slopes
        wanted = [tensor for tensor, needed in zip(inputs, (needs_source, *needs_rest)) if needed]
        found = iter(torch.autograd.grad(activated, wanted, to_input.to(activated.dtype)) if wanted else ())
        to_source, *to_rest = (next(found) if needed else None for needed in (needs_source, *needs_rest))
        to_weight = None if to_weight is None or not needs_weight else to_weight.to(weight.dtype)
        to_bias = None if to_bias is None or not needs_bias else to_bias.to(weight.dtype)
        return None, to_source, to_weight, to_bias, *to_rest
