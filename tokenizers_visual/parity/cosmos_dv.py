"""Checks of cosmos_dv's fixtures that go beyond the tokenizer: the first frames of a video alone."""

from __future__ import annotations

from typing import Any

from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return CosmosDVCase(fixture, family)


class CosmosDVCase(Case):
    """A check may state the number of frames that are encoded."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return super().encode({"video": inputs["video"][:, :, : settings.get("frames")]}, settings)
