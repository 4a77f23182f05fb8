"""How far each output of a convolutional network sees, followed through the operations that it runs.

The reach of an output follows from kernel sizes, strides, paddings and changes of resolution alone (the arithmetic of
arXiv 1603.07285), so a piece of a signal with that much margin gives what the whole signal gives. An operation that
sees all of it is refused by name.
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
    with torch.inference_mode(False), torch.no_grad(), Tracer() as tracer:
        tracer.start(example, axes)
        return tracer.seen(network(example)).reaches


# -- following the operations --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Where height and width, or time, stand in a tensor's shape, and their reach."""

    axes: tuple[int, ...]
    reaches: tuple[Reach, ...]


class Tracer(TorchDispatchMode):
    """While it is entered it keeps, for every tensor that depends on the one it started with, what that sees of it.

    Not in inference mode, nor on tensors made in it: there torch shows operations that are made of others as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[Tensor, Seen]] = {}  # the tensor is held, so that its id stays its own

    def start(self, tensor: Tensor, axes: tuple[int, ...]) -> None:
        """Follow what comes of a tensor, along these axes of its shape."""
        self._add(tensor, Seen(axes, (Reach(Fraction(1), Fraction(0), Fraction(0)),) * len(axes)))

    def clear(self) -> None:
        """Follow nothing that there is by now."""
        self._seen.clear()

    def seen(self, tensor: Tensor) -> Seen:
        """What a tensor sees.

        Raises:
            ValueError: it does not depend on the one where this started.
        """
        if (found := self._get(tensor)) is None:
            raise ValueError("expected an output that depends on the input, got one that does not")
        return found

    def _add(self, tensor: Tensor, seen: Seen) -> None:
        self._seen[id(tensor)] = tensor, seen

    def _get(self, tensor: Any) -> Seen | None:
        found = self._seen.get(id(tensor))
        return found[1] if found else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [seen for value in _tensors((args, kwargs)) if (seen := self._get(value)) is not None]
        if given:
            name = func.overloadpacket.__name__
            follow = _RULES.get(name)
            if follow is None:
                raise ValueError(f"the operation {name} may see the whole signal")
            for part in _tensors(result):
                if follow in (_pointwise, _channels_alone):
                    self._refuse_places(args, part.ndim, given[0].axes)
                self._add(part, follow(given, args, part))
        return result

    def _refuse_places(self, args: Any, ndim: int, axes: tuple[int, ...]) -> None:
        """Raise where a constant may differ from place to place, as an embedding of positions does."""
        for value in _tensors(args):
            sides = (1,) * (ndim - value.ndim) + tuple(value.shape)
            if self._get(value) is None and any(sides[axis] > 1 for axis in axes):
                raise ValueError("a constant may differ from place to place of the signal")
            if self._get(value) is not None and value.ndim != ndim:
                raise ValueError("an operation adds axes to the signal")


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _pointwise(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
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
    return Seen(axes, tuple(joined))


def _channels_alone(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    """An operation along one axis, its second argument, which must not be one of those that are followed."""
    axis = args[1] if len(args) > 1 else 0
    if axis % result.ndim in given[0].axes:
        raise ValueError("an operation joins positions of the signal")
    return _pointwise(given, args, result)


def _parts(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    """Neighbours along an axis, the third argument."""
    return _channels_alone(given, (args[0], args[2] if len(args) > 2 else 0), result)


def _stacked(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    """A new axis at the place of the second argument."""
    place = (args[1] if len(args) > 1 else 0) % result.ndim
    joined = _pointwise(given, args, result)
    return Seen(tuple(axis + (axis >= place) for axis in joined.axes), joined.reaches)


def _unbound(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    """Without the axis at the place of the second argument."""
    place = (args[1] if len(args) > 1 else 0) % args[0].ndim
    if place in given[0].axes:
        raise ValueError("an operation takes positions of the signal apart")
    return Seen(tuple(axis - (axis > place) for axis in given[0].axes), given[0].reaches)


def _reshaped(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    """Each axis keeps its place among the numbers: as it is, as the first of its parts, or joined by those after it."""
    before, after = tuple(args[0].shape), tuple(result.shape)
    axes, reaches = [], []
    for axis, reach in zip(given[0].axes, given[0].reaches):
        apart = math.prod(before[:axis])
        places = [place for place, side in enumerate(after) if math.prod(after[:place]) == apart and side > 1]
        ratio = Fraction(after[places[0]], before[axis]) if places else Fraction(0)
        if ratio >= 1 and ratio.denominator == 1:  # the axes that joined stood behind
            joined = axis + 1
            while math.prod(before[axis:joined]) < after[places[0]]:
                joined += 1
            if math.prod(before[axis:joined]) != after[places[0]] or set(range(axis + 1, joined)) & set(given[0].axes):
                raise ValueError("an operation joins the axes of the signal")
            reach = reach.then(1 / ratio, (1 - ratio) / ratio, Fraction(0))
        elif ratio > 0 and (1 / ratio).denominator == 1:
            reach = reach.then(1 / ratio, Fraction(0), 1 / ratio - 1)
        else:
            raise ValueError("an operation joins the axes of the signal")
        axes.append(places[0])
        reaches.append(reach)
    return Seen(tuple(axes), tuple(reaches))


def _window(given: list[Seen], kernel: Any, stride: Any, padding: Any, dilation: Any) -> Seen:
    reaches = [
        reach.then(Fraction(s), Fraction(-p), Fraction((k - 1) * d - p))
        for reach, k, s, p, d in zip(given[0].reaches, kernel, stride, padding, dilation)
    ]
    return Seen(given[0].axes, tuple(reaches))


def _each(value: Any, count: int) -> list[int]:
    """One number for each axis."""
    sides = [value] if isinstance(value, int) else list(value)
    return sides * count if len(sides) == 1 else sides


def _convolution(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
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
    return Seen(given[0].axes, tuple(reaches))


def _average(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    kernel = _each(args[1], 2)
    stride = _each(args[2], 2) if len(args) > 2 and args[2] else kernel
    return _window(given, kernel, stride, _each(args[3], 2) if len(args) > 3 else [0, 0], [1, 1])


def _padding(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    """Amounts stand last axis first."""
    amounts, axes = list(args[1]), given[0].axes
    reaches = []
    for axis, reach in zip(axes, given[0].reaches):
        place = 2 * (result.ndim - 1 - axis)
        before = amounts[place] if place < len(amounts) else 0
        reaches.append(reach.then(Fraction(1), Fraction(-before), Fraction(-before)))
    return Seen(axes, tuple(reaches))


def _larger(given: list[Seen], factors: list[Fraction]) -> Seen:
    """Each input becomes `factor` equal places along an axis."""
    reaches = [
        reach.then(1 / factor, (1 - factor) / factor, Fraction(0)) for reach, factor in zip(given[0].reaches, factors)
    ]
    return Seen(given[0].axes, tuple(reaches))


def _nearest(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    factors = [Fraction(result.shape[axis], args[0].shape[axis]) for axis in given[0].axes]
    if any(factor.denominator != 1 for factor in factors):
        raise ValueError(f"expected upsampling by whole factors, got {', '.join(map(str, factors))}")
    return _larger(given, factors)


def _pixel_shuffle(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    return _larger(given, [Fraction(args[1])] * 2)


def _pixel_unshuffle(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    return _window(given, [args[1]] * 2, [args[1]] * 2, [0, 0], [1, 1])


def _permute(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    order = [place % result.ndim for place in args[1]]
    return Seen(tuple(order.index(axis) for axis in given[0].axes), given[0].reaches)


def _transpose(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    order = list(range(result.ndim))
    one, other = (place % result.ndim for place in args[1:3])
    order[one], order[other] = other, one
    return _permute(given, (args[0], order), result)


def _slice(given: list[Seen], args: tuple[Any, ...], result: Tensor) -> Seen:
    """From a start on, each place, or one of every few."""
    axis, start, step = (args[place] if len(args) > place else default for place, default in ((1, 0), (2, 0), (4, 1)))
    if (start or 0) < 0:
        raise ValueError("expected slices counted from the start")
    axes, first = given[0].axes, Fraction(min(start or 0, args[0].shape[axis]))
    moved = [
        reach.then(Fraction(step), first, first) if place == axis % result.ndim else reach
        for place, reach in zip(axes, given[0].reaches)
    ]
    return Seen(axes, tuple(moved))


_RULES: dict[str, Callable[[list[Seen], tuple[Any, ...], Tensor], Seen]] = {
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "neg", "silu", "relu", "leaky_relu", "gelu", "elu", "sigmoid", "tanh", "clamp",
         "exp", "abs", "pow", "detach", "clone", "alias", "_to_copy", "sin", "addcmul", "clamp_max", "maximum",
         "_prelu_kernel", "sin_", "pow_", "mul_", "add_", "exp_", "sub_", "silu_"),
        _pointwise,
    ),
    "cat": _channels_alone,
    "split": _parts,
    "split_with_sizes": _parts,
    "stack": _stacked,
    "unbind": _unbound,
    "view": _reshaped,
    "_unsafe_view": _reshaped,
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
