"""Tiles with exact seams: how far each output of a convolutional network sees, followed through the operations it runs.

Tiles are rectangles of images, or pieces of signals along time.

The reach of an output follows from kernel sizes, strides, paddings and changes of resolution alone (the arithmetic of
arXiv 1603.07285), so a tile with that much margin gives what the whole image gives. Group normalisation and attention
over the image see all of it, and are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Reach:
    """What outputs see along one axis: output p depends on no input outside [scale * p + before, scale * p + after].

    `before` is never positive and `after` never negative, so that a position beyond a tile also counts as unseen.
    """

    scale: Fraction
    before: Fraction
    after: Fraction

    def then(self, scale: Fraction, before: Fraction, after: Fraction) -> Reach:
        """The reach after one more operation, given its own."""
        low, high = self.before + self.scale * before, self.after + self.scale * after
        return Reach(self.scale * scale, min(low, Fraction(0)), max(high, Fraction(0)))

    def inputs(self, start: int, stop: int, size: int) -> tuple[int, int]:
        """The inputs [first, end) of `size` on which the outputs [start, stop) depend."""
        first = math.floor(self.scale * start + self.before)
        end = math.floor(self.scale * (stop - 1) + self.after) + 1
        return max(first, 0), min(end, size)


@dataclass(frozen=True)
class Tile:
    """Along one axis: the outputs [start, stop) that a tile gives, and the inputs [first, end) that it is given."""

    start: int
    stop: int
    first: int
    end: int


def tiles(reach: Reach, inputs: int, outputs: int, tile: int, multiple: int = 1) -> Iterator[Tile]:
    """Cut one axis into tiles.

    Args:
        reach: of the network along this axis.
        inputs, outputs: sizes of the axis.
        tile: outputs of a tile.
        multiple: the inputs of a tile begin and end at multiples of it (those at the end of the axis end with it).
    """
    for start in range(0, outputs, tile):
        stop = min(start + tile, outputs)
        first, end = reach.inputs(start, stop, inputs)
        yield Tile(start, stop, first // multiple * multiple, min(-(-end // multiple) * multiple, inputs))


def reach_of(network: Callable[[Tensor], Tensor], example: Tensor, axes: tuple[int, ...]) -> tuple[Reach, ...]:
    """How far the outputs of a network see along height and width, or along time.

    Args:
        network: runs on tensors of the meta device, so that nothing is computed.
        example: on the meta device; an input of any size that the network takes, such as (1, C, H, W) or (1, C, T).
        axes: places of height and width, or of time, in the shape of the input.

    Returns:
        The reach along each of the axes.

    Raises:
        ValueError: an operation whose outputs see everything, or about which nothing is known, by name.
    """
    start = Reach(Fraction(1), Fraction(0), Fraction(0))
    tracer = _Tracer()
    tracer.add(example, _Seen(axes, (start,) * len(axes)))
    with torch.no_grad(), tracer:
        output = network(example)
    seen = tracer.get(output)
    if seen is None:
        raise ValueError("expected an output that depends on the input, got one that does not")
    return seen.reaches


# -- following the operations --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """Where height and width, or time, stand in a tensor's shape, and their reach."""

    axes: tuple[int, ...]
    reaches: tuple[Reach, ...]


class _Tracer(TorchDispatchMode):
    """Keeps for every tensor that depends on the input what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[Tensor, _Seen]] = {}  # the tensor is held, so that its id stays its own

    def add(self, tensor: Tensor, seen: _Seen) -> None:
        self._seen[id(tensor)] = tensor, seen

    def get(self, tensor: Any) -> _Seen | None:
        found = self._seen.get(id(tensor))
        return found[1] if found else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [seen for value in _tensors((args, kwargs)) if (seen := self.get(value)) is not None]
        if given:
            name = func.overloadpacket.__name__
            follow = _RULES.get(name)
            if follow is None or not isinstance(result, Tensor):
                raise ValueError(f"the operation {name} may see the whole signal")
            if follow in (_pointwise, _channels_alone):
                self._refuse_places(args, result.ndim, given[0].axes)
            self.add(result, follow(given, args, result))
        return result

    def _refuse_places(self, args: Any, ndim: int, axes: tuple[int, ...]) -> None:
        """Raise where a constant may differ from place to place, as an embedding of positions does."""
        for value in _tensors(args):
            sides = (1,) * (ndim - value.ndim) + tuple(value.shape)
            if self.get(value) is None and any(sides[axis] > 1 for axis in axes):
                raise ValueError("a constant may differ from place to place of the signal")
            if self.get(value) is not None and value.ndim != ndim:
                raise ValueError("an operation adds axes to the signal")


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _pointwise(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    """Every output sees the inputs of its own place; what several inputs see is joined."""
    axes = given[0].axes
    if any(seen.axes != axes for seen in given):
        raise ValueError("an operation joins tensors whose axes stand in different places")
    joined = []
    for reaches in zip(*(seen.reaches for seen in given)):
        if len({reach.scale for reach in reaches}) > 1:
            raise ValueError("an operation joins tensors of different resolutions")
        before, after = min(reach.before for reach in reaches), max(reach.after for reach in reaches)
        joined.append(Reach(reaches[0].scale, before, after))
    return _Seen(axes, tuple(joined))


def _channels_alone(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    """An operation along one axis, its second argument, which must not be one of those that are followed."""
    axis = args[1] if len(args) > 1 else 0
    if axis % result.ndim in given[0].axes:
        raise ValueError("an operation joins positions of the signal")
    return _pointwise(given, args, result)


def _window(given: list[_Seen], kernel: Any, stride: Any, padding: Any, dilation: Any) -> _Seen:
    reaches = [
        reach.then(Fraction(s), Fraction(-p), Fraction((k - 1) * d - p))
        for reach, k, s, p, d in zip(given[0].reaches, kernel, stride, padding, dilation)
    ]
    return _Seen(given[0].axes, tuple(reaches))


def _each(value: Any, count: int) -> list[int]:
    """One number for each axis."""
    sides = [value] if isinstance(value, int) else list(value)
    return sides * count if len(sides) == 1 else sides


def _convolution(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    weight, transposed, count = args[1], args[6], len(given[0].axes)
    if len(given) > 1 or given[0].axes != tuple(range(2, 2 + count)) or weight.ndim != 2 + count:
        raise ValueError("expected convolutions of height and width, or of time")
    stride, padding, dilation = (_each(value, count) for value in args[3:6])
    kernel = list(weight.shape[2:])
    if not transposed:
        return _window(given, kernel, stride, padding, dilation)
    reaches = [
        reach.then(Fraction(1, s), Fraction(p - (k - 1) * d, s), Fraction(p, s))
        for reach, k, s, p, d in zip(given[0].reaches, kernel, stride, padding, dilation)
    ]
    return _Seen(given[0].axes, tuple(reaches))


def _average(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    kernel = _each(args[1], 2)
    stride = _each(args[2], 2) if len(args) > 2 and args[2] else kernel
    return _window(given, kernel, stride, _each(args[3], 2) if len(args) > 3 else [0, 0], [1, 1])


def _padding(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    """Amounts stand last axis first."""
    amounts, axes = list(args[1]), given[0].axes
    reaches = []
    for axis, reach in zip(axes, given[0].reaches):
        place = 2 * (result.ndim - 1 - axis)
        before = amounts[place] if place < len(amounts) else 0
        reaches.append(reach.then(Fraction(1), Fraction(-before), Fraction(-before)))
    return _Seen(axes, tuple(reaches))


def _larger(given: list[_Seen], factors: list[Fraction]) -> _Seen:
    """Each input becomes `factor` equal places along an axis."""
    reaches = [
        reach.then(1 / factor, (1 - factor) / factor, Fraction(0)) for reach, factor in zip(given[0].reaches, factors)
    ]
    return _Seen(given[0].axes, tuple(reaches))


def _nearest(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    factors = [Fraction(result.shape[axis], args[0].shape[axis]) for axis in given[0].axes]
    if any(factor.denominator != 1 for factor in factors):
        raise ValueError(f"expected upsampling by whole factors, got {', '.join(map(str, factors))}")
    return _larger(given, factors)


def _pixel_shuffle(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    return _larger(given, [Fraction(args[1])] * 2)


def _pixel_unshuffle(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    return _window(given, [args[1]] * 2, [args[1]] * 2, [0, 0], [1, 1])


def _permute(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    order = [place % result.ndim for place in args[1]]
    return _Seen(tuple(order.index(axis) for axis in given[0].axes), given[0].reaches)


def _transpose(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    order = list(range(result.ndim))
    one, other = (place % result.ndim for place in args[1:3])
    order[one], order[other] = other, one
    return _permute(given, (args[0], order), result)


def _slice(given: list[_Seen], args: tuple[Any, ...], result: Tensor) -> _Seen:
    """From a start on, each place."""
    axis, start, step = (args[place] if len(args) > place else default for place, default in ((1, 0), (2, 0), (4, 1)))
    if step != 1 or (start or 0) < 0:
        raise ValueError("expected slices of neighbours, counted from the start")
    axes, first = given[0].axes, Fraction(min(start or 0, args[0].shape[axis]))
    moved = [
        reach.then(Fraction(1), first, first) if place == axis % result.ndim else reach
        for place, reach in zip(axes, given[0].reaches)
    ]
    return _Seen(axes, tuple(moved))


_RULES: dict[str, Callable[[list[_Seen], tuple[Any, ...], Tensor], _Seen]] = {
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "neg", "silu", "relu", "leaky_relu", "gelu", "elu", "sigmoid", "tanh", "clamp",
         "exp", "abs", "pow", "detach", "clone", "alias", "_to_copy", "sin", "addcmul", "clamp_max", "maximum",
         "_prelu_kernel", "sin_", "pow_", "mul_", "add_", "exp_", "sub_"),
        _pointwise,
    ),
    "cat": _channels_alone,
    "convolution": _convolution,
    "avg_pool2d": _average,
    "constant_pad_nd": _padding,
    "upsample_nearest2d": _nearest,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "permute": _permute,
    "transpose": _transpose,
    "slice": _slice,
}  # fmt: skip
