"""What a case consists of: problems, the contenders that solve them, and the gate that compares what they give."""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from zoo.bench import CASES

D = TypeVar("D")


@dataclass(frozen=True)
class Contender(Generic[D]):
    """One way to solve a problem.

    Attributes:
        name: as tables show it.
        build: data -> the action that is measured, which returns what the gate looks at. What `build` does itself
            (modules, copies, indexes) is not measured.
        module: what it imports; the record states the version.
    """

    name: str
    build: Callable[[D], Callable[[], Any]]
    module: str = "zoo"


@dataclass(frozen=True)
class Verdict:
    """Whether a contender's result is right, and how near it came, in words; of half precision also the share of its
    tokens that are those of float32.
    """

    passed: bool
    text: str
    agreement: float | None = None


@dataclass(frozen=True)
class Work:
    """What has to be done at least: the times it takes at the calibrated rates limit every contender."""

    flops: float = 0.0
    bytes: float = 0.0  # read and written


@dataclass(frozen=True)
class Goal:
    """What a contender should reach.

    Attributes:
        contender: its name.
        quantity: "time" (wall), "memory" (peak extra), or "limit" (percent of the calibrated limit).
        peer: name of the contender to compare with; None: the value itself counts.
        factor: with a peer: the peer's quantity is at least so many times the contender's; below 1 it may be less.
        bound: without one: bytes that the memory stays below, or the least percent of the limit.
    """

    contender: str
    quantity: Literal["time", "memory", "limit"]
    peer: str | None = None
    factor: float = 1.0
    bound: float = 0.0


class Problem(ABC, Generic[D]):
    """One setting of a case: frozen dataclasses whose fields are the sizes, and `device`."""

    device: str

    @property
    @abstractmethod
    def name(self) -> str:
        """The sizes, as tables show them."""

    @abstractmethod
    def data(self) -> D:
        """The input, the same each time (seeded), on the device."""

    @abstractmethod
    def contenders(self) -> Sequence[Contender[D]]:
        """Those that can be imported here; the first is ours."""

    @abstractmethod
    def gate(self, data: D, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """A verdict on each contender's result, from exact arithmetic where that can be had."""

    def work(self) -> Work:
        """What every contender has to do."""
        return Work()

    def goals(self) -> Sequence[Goal]:
        """Stated for the full sizes only."""
        return ()

    def items(self) -> tuple[float, str]:
        """How many of what the action works on, for the rate."""
        return 1, "runs"

    def sizes(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def problems(case: str, device: str, *, quick: bool, originals: Mapping[str, Path] | None = None) -> list[Problem[Any]]:
    """The problems of a case.

    Args:
        case: a name of `CASES`.
        device: "cpu" or "cuda".
        quick: small sizes.
        originals: name -> checkout; the problems are then those that compare with these (`zoo.bench.originals`).

    Raises:
        ValueError: originals of a case that has none.
    """
    entry = CASES[case]
    if not originals:
        return list(importlib.import_module(f"zoo.bench.{entry.module}").problems(case, device, quick=quick))
    if entry.against is None:
        having = ", ".join(name for name, other in CASES.items() if other.against is not None)
        raise ValueError(f"--original: expected one of the cases {having}, got {case}")
    module = importlib.import_module(f"zoo.bench.{entry.against}")
    return list(module.problems(case, device, quick=quick, originals=originals))
