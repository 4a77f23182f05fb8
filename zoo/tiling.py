"""Images tile by tile: a network's outputs for an image of any size, equal to those for the whole, in little memory.

A tile gets as much margin as its outputs see (`zoo.reach`). What sees the whole image is met in passes over all tiles:
the first goes as far as the first group norm (arXiv 1803.08494) and gathers its moments, the next as far as the second,
and so on, each from the start, so that nothing but moments is kept between them. Attention over all positions, which
these networks have at their coarsest resolution, runs on its whole input; the passes after it start from its output.
They also start from the output of a residual block, or of a change of resolution, that is small enough to be held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from zoo.reach import Reach, Seen, Tracer

HELD = 2_400_000_000  # bytes of maps that are held at a time: the one where a pass starts, and the one where it ends
_ROWS_AND_COLUMNS = (2, 3)  # where a map (B, C, H, W) has them


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


@dataclass(frozen=True)
class Pass:
    """One walk over all tiles.

    Attributes:
        seen: by the tensor where it ends: reach, and axes of rows and columns.
        maps: how many whole maps there were before; the pass starts from the last.
        groups: of channels, whose moments it gathers.
        module: name of the module whose input (of an attention) or output (of others) it gathers as a whole map; a
            pass that gathers nothing ends with the outputs.
    """

    seen: Seen
    maps: int
    groups: int | None = None
    module: str | None = None


def passes(network: nn.Module, part: str, example: Tensor, axes: tuple[int, int]) -> list[Pass]:
    """The passes that a network needs.

    Args:
        network: on the meta device, so that nothing is computed.
        part: name of the method that runs.
        example: its input, on the meta device, of the size of the image, and of at least 4 positions a side.
        axes: places of rows and columns in the shape of the input.

    Raises:
        ValueError: an operation that sees the whole image in another way, by name.
    """
    try:
        return _planned(network, part, example, axes, HELD)
    except ValueError:  # what follows a block may depend on more than its output
        return _planned(network, part, example, axes, 0)


def _planned(network: nn.Module, part: str, example: Tensor, axes: tuple[int, int], held: int) -> list[Pass]:
    with torch.inference_mode(False), torch.no_grad(), Tracer() as tracer, _Planning(network, tracer, held) as planning:
        tracer.start(example, axes)
        output = getattr(network, part)(example)
        return [*planning.found, Pass(tracer.seen(output), planning.passed)]


def outputs(
    network: nn.Module,
    part: str,
    plan: Sequence[Pass],
    source: Tensor,
    axes: tuple[int, int],
    *,
    tile: int,
    multiple: int = 1,
    load: Callable[[Tensor], Tensor] = lambda given: given,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """The outputs of a network for an image, tile by tile, up to rounding.

    Args:
        network: in evaluation mode; the tiles go to its device one after the other.
        part: name of the method that runs.
        plan: of `passes`.
        source: what the method takes, or what `load` makes that of, on any device.
        axes: places of rows and columns in its shape.
        tile: side in positions of the source, without the margin.
        multiple: inputs of the method begin and end at multiples of it.
        load: makes what the method takes of a part of the source, of as many rows and columns.

    Yields:
        Rows, columns, and the outputs there.
    """
    device = next(iter(network.state_dict().values())).device
    shape, moments = list[int](), list[_Moments]()
    ends = {step.module for step in plan if step.module is not None}
    for step in plan:
        gathered: _Moments | None = None
        whole: Tensor | None = None
        inputs = [source.shape[axis] for axis in axes]
        scales = [reach.scale for reach in step.seen.reaches]
        sides = [int(size / scale) for size, scale in zip(inputs, scales)]
        cut = [
            list(tiles(reach, size, side, max(1, int(tile / scale)), multiple))
            for reach, size, side, scale in zip(step.seen.reaches, inputs, sides, scales)
        ]
        for rows, columns in product(*cut):
            given = source
            for axis, one in zip(axes, (rows, columns)):
                given = given.narrow(axis, one.first, one.end - one.first)
            given = given.to(device)
            if step.maps == 0:
                given = load(given)
                shape = [inputs[axes.index(axis)] if axis in axes else side for axis, side in enumerate(given.shape)]
            result = _run(network, part, given, shape, _Running(network, ends, given, step.maps, moments))
            for axis, one, scale in zip(step.seen.axes, (rows, columns), scales):
                result = result.narrow(axis, one.start - int(one.first / scale), one.stop - one.start)
            places = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
            if step.groups is not None:
                found = _Moments.of(result, step.groups)
                gathered = found if gathered is None else gathered.joined(found)
            elif step.module is not None:
                whole = result.new_empty(*result.shape[:2], *sides) if whole is None else whole
                whole[..., *places] = result
            else:
                yield *places, result
            del given, result  # before the next tile needs as much
        if gathered is not None:
            moments.append(gathered)
        if step.module is not None and whole is not None:
            module = network.get_submodule(step.module)
            source, axes, moments = module(whole) if _is_attention(module) else whole, _ROWS_AND_COLUMNS, []
            tile, multiple = (max(1, int(number / max(scales))) for number in (tile, multiple))


# -- a network on a tile, as if it were the whole ------------------------------------------------------------------


@dataclass(frozen=True)
class _Moments:
    """Of groups of channels over all positions: count of numbers, mean and sum of squared deviations (B, groups)."""

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(x: Tensor, groups: int) -> _Moments:
        """Of a map (B, C, H, W), in double precision on the CPU."""
        numbers = x.reshape(len(x), groups, -1)
        kept = numbers.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(kept, dim=2, correction=0)
        return _Moments(numbers.shape[2], mean.cpu().double(), variance.cpu().double() * numbers.shape[2])

    def joined(self, other: _Moments) -> _Moments:
        """Of the positions of both."""
        count, shift = self.count + other.count, other.mean - self.mean
        return _Moments(
            count,
            self.mean + shift * (other.count / count),
            self.squares + other.squares + shift.square() * (self.count * other.count / count),
        )


class _Pause(Exception):
    """The network has come to the end of a pass."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class _Watch(TorchFunctionMode):
    """While it is entered, group norms and `torch.var_mean` over all positions of a map take what `moments` gives, and
    modules of the network where a pass may end are told of: attentions before they run, and all after.

    Where `follows` is false, operations run as they are; those on tensors of the meta device compute nothing.

    Args:
        ends: names of the modules to tell of; all where none are given.
    """

    def __init__(self, network: nn.Module, ends: Collection[str] | None = None) -> None:
        super().__init__()
        self.passed, self.follows = 0, True  # whole maps that there were so far
        self._network, self._ends, self._hooks = network, ends, list[Any]()

    def moments(self, x: Tensor, groups: int) -> _Moments:
        raise NotImplementedError

    def before(self, name: str, x: Tensor) -> None:
        """The attention of that name is about to run on x."""
        raise NotImplementedError

    def after(self, result: Tensor) -> Tensor:
        """What the network gets instead of the result of an attention."""
        raise NotImplementedError

    def may_end(self, name: str, result: Tensor) -> Tensor:
        """What the network gets instead of the result of a block of that name."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        for name, module in self._network.named_modules():
            if self._ends is not None and name not in self._ends:
                continue
            if _is_attention(module):
                self._hooks.append(
                    module.register_forward_pre_hook(lambda _, given, name=name: self.before(name, given[0]))
                )
                self._hooks.append(module.register_forward_hook(lambda _, given, result: self.after(result)))
            elif getattr(module, "may_end_a_pass", False):
                self._hooks.append(
                    module.register_forward_hook(lambda _, given, result, name=name: self.may_end(name, result))
                )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.follows:
            if any(isinstance(value, Tensor) and value.is_meta for value in tree_leaves((args, kwargs))):
                args, kwargs = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))
        elif func is F.group_norm:
            return self._normalised(*args, **kwargs)
        elif func is torch.var_mean and kwargs.get("dim") == _ROWS_AND_COLUMNS and args[0].ndim == 4:
            return self._var_mean(*args, **kwargs)
        return func(*args, **kwargs)

    def _normalised(
        self, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        moments = self.moments(x, groups)
        scale = (moments.squares / moments.count + eps).rsqrt()
        scale, shift = (
            value.to(x.device, torch.promote_types(x.dtype, torch.float32)).repeat_interleave(x.shape[1] // groups, 1)
            for value in (scale, -moments.mean * scale)
        )
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        return torch.addcmul(shift[..., None, None], x, scale[..., None, None]).to(x.dtype)

    def _var_mean(self, x: Tensor, dim: tuple[int, int], correction: int = 1) -> tuple[Tensor, Tensor]:
        moments = self.moments(x, x.shape[1])
        variance = moments.squares / (moments.count - correction)
        return variance.to(x.device, x.dtype), moments.mean.to(x.device, x.dtype)


class _Planning(_Watch):
    """Notes where passes end, on the meta device."""

    def __init__(self, network: nn.Module, tracer: Tracer, held: int) -> None:
        super().__init__(network)
        self.found: list[Pass] = []
        self._tracer, self._held, self._start = tracer, held, 0  # bytes of the map where passes start

    def moments(self, x: Tensor, groups: int) -> _Moments:
        self.found.append(Pass(self._seen(x), self.passed, groups=groups))
        nothing = torch.zeros(len(x), groups, device=x.device, dtype=torch.float64)
        return _Moments(2, nothing, nothing)

    def before(self, name: str, x: Tensor) -> None:
        self.found.append(Pass(self._seen(x), self.passed, module=name))
        self.follows = False
        self._tracer.clear()

    def after(self, result: Tensor) -> Tensor:
        self._tracer.start(result, _ROWS_AND_COLUMNS)
        self._start = _bytes(result)
        self.passed, self.follows = self.passed + 1, True
        return result

    def may_end(self, name: str, result: Tensor) -> Tensor:
        if not self.follows or self._start + _bytes(result) > self._held:
            return result
        self.before(name, result)
        return self.after(result)

    def _seen(self, x: Tensor) -> Seen:
        seen = self._tracer.seen(x)
        if seen.axes != _ROWS_AND_COLUMNS:
            raise ValueError("expected norms and attention over maps (B, C, H, W)")
        return seen


class _Running(_Watch):
    """Runs on a tile with the moments that are known, and pauses at the first that are not.

    Args:
        ends: names of the modules at which passes of the plan end.
        maps: how many whole ones there were before; the tile is one of the last, and what comes before that is passed
            over on the meta device.
    """

    def __init__(
        self, network: nn.Module, ends: Collection[str], tile: Tensor, maps: int, moments: Sequence[_Moments]
    ) -> None:
        super().__init__(network, ends)
        self._tile, self._maps, self._moments = tile, maps, iter(moments)
        self.follows = maps == 0

    def moments(self, x: Tensor, groups: int) -> _Moments:
        if (known := next(self._moments, None)) is None:
            raise _Pause(x)
        return known

    def before(self, name: str, x: Tensor) -> None:
        if self.passed == self._maps:
            raise _Pause(x)

    def after(self, result: Tensor) -> Tensor:
        self.passed += 1
        self.follows = self.passed == self._maps
        return self._tile if self.follows else result

    def may_end(self, name: str, result: Tensor) -> Tensor:
        self.before(name, result)
        return self.after(result)


def _run(network: nn.Module, part: str, tile: Tensor, shape: Sequence[int], running: _Running) -> Tensor:
    """The tensor where the pass ends, of one tile; `shape`: of what the method takes for the whole image."""
    given = tile if running.follows else tile.new_empty(shape, device="meta")
    try:
        with running:
            return getattr(network, part)(given)
    except _Pause as pause:
        return pause.x


def _is_attention(module: nn.Module) -> bool:
    return getattr(module, "sees_every_position", False)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
