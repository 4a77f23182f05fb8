"""Checks of IBQ's fixtures that go beyond the tokenizer: its discriminator, and the losses of both players."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenizers_visual.parity.adversarial import LossCase, TamingLossCase
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case | LossCase:
    """The case that fits the original's class."""
    if fixture.meta["original"]["class"] == "VQLPIPSWithDiscriminator":
        return IBQLossCase(fixture, family)
    return Case(fixture, family)


class IBQLossCase(TamingLossCase):
    """Open-MAGVIT2's loss, with weights of their own for the terms of the quantizer, and none of them annealed."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        super().__init__(fixture, family)
        self.kwargs = {"quant_loss_weight": 1.0, "entropy_loss_weight": 1.0, **self.kwargs}

    def quantizer_loss(self, inputs: Named, settings: dict[str, Any]) -> tuple[Tensor, None]:
        if "entropy_loss" not in inputs:
            return super().quantizer_loss(inputs, settings)[0], None
        quantizer = settings["quant_loss_weight"] * inputs["quant_loss"]
        return quantizer + settings["entropy_loss_weight"] * inputs["entropy_loss"], None
