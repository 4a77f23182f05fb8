"""Streams: layers that take a signal in pieces and give, piece by piece, exactly what the whole signal would give.

A stream holds what the rest of the signal still needs of the past, which is bounded, and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Stream(ABC):
    """One signal (or a batch of signals of equal length) on its way through a layer."""

    @abstractmethod
    def step(self, x: Tensor, last: bool = False) -> Tensor:
        """Take the next piece and give what is final by now.

        Args:
            x: (B, C, T), T >= 0.
            last: whether the signal ends with this piece; nothing may follow.

        Returns:
            (B, C', T'), T' >= 0. All pieces joined are the layer's output on the whole signal.
        """


@runtime_checkable
class Streamable(Protocol):
    """A layer with memory, which knows its stream."""

    def stream(self) -> Stream: ...


# layers whose output at a position depends on that position alone
_POINTWISE: tuple[type[nn.Module], ...] = (nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Tanh, nn.Identity)


def stream_of(module: nn.Module) -> Stream:
    """The stream of a layer: its own, of a sequence the chain of its parts, of an activation the activation itself.

    Raises:
        ValueError: a layer that cannot work piece by piece.
    """
    if isinstance(module, Streamable):
        return module.stream()
    if isinstance(module, nn.Sequential):
        return Chain(stream_of(part) for part in module)
    if isinstance(module, _POINTWISE) or getattr(module, "pointwise", False):
        return Pointwise(module)
    raise ValueError(f"expected a causal layer, got {type(module).__name__}, which needs the whole signal")


class Pointwise(Stream):
    """A layer without memory."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        return self.module(x)


class Chain(Stream):
    """Streams one after the other."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self.streams = list(streams)

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        for stream in self.streams:
            x = stream.step(x, last)
        return x


class Sum(Stream):
    """Branches on the same signal whose outputs are added; the one that runs ahead waits for the other."""

    def __init__(self, one: Stream, other: Stream) -> None:
        self.branches = (one, other)
        self.waiting: list[Tensor | None] = [None, None]

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        outputs = [joined(kept, branch.step(x, last)) for kept, branch in zip(self.waiting, self.branches)]
        ready = min(output.shape[-1] for output in outputs)
        self.waiting = [output[..., ready:] for output in outputs]
        return outputs[0][..., :ready] + outputs[1][..., :ready]


def joined(kept: Tensor | None, x: Tensor) -> Tensor:
    """What is kept of the past, and the next piece."""
    return x if kept is None else torch.cat([kept, x], dim=-1)
