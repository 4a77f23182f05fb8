"""Checks of open_magvit2's fixtures that go beyond the tokenizer: its discriminator, and the losses of both players."""

from __future__ import annotations

from tokenizers_visual.parity.adversarial import LossCase, TamingLossCase
from zoo.parity import Case, Fixture
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case | LossCase:
    """The case that fits the original's class."""
    if fixture.meta["original"]["class"] == "VQLPIPSWithDiscriminator":
        return TamingLossCase(fixture, family)
    return Case(fixture, family)
