"""Metrics: every number that the zoo reports has a name, a unit, a direction and a protocol."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """What a number means."""

    name: str
    unit: str  # "" for a plain number
    better: Literal["higher", "lower"]
    protocol: str  # how it is measured, in a sentence that can stand beside the number


__all__ = ["Metric"]
