"""Checks of taming_vqgan's fixtures that go beyond the tokenizer: given Gumbel noise, and both players' losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tokenizers_visual.parity.adversarial import LossCase, TamingLossCase
from tokenizers_visual.taming_vqgan import KL_WEIGHT
from zoo.parity import Case, Fixture, Named, channels_first
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case | LossCase:
    """The case that fits the original's class."""
    original = fixture.meta["original"]["class"]
    if original == "VQLPIPSWithDiscriminator":
        return TamingLossCase(fixture, family)
    return GumbelCase(fixture, family) if original == "GumbelVQ" else Case(fixture, family)


class GumbelCase(Case):
    """The original samples in evaluation mode too: a check without noise is of the most likely codes."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        outputs = super().encode(self._fix_noise(inputs), settings)
        quantizer: Any = self.model.quantizer
        latent = outputs["latent"].movedim(1, -1)
        with torch.no_grad():
            outputs["logits"] = channels_first(quantizer.logits(latent))
            outputs["loss.kl"] = self.meta["original"]["kwargs"].get("kl_weight", KL_WEIGHT) * quantizer.divergence(
                latent
            )
        return outputs

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        quantizer: Any = self.model.quantizer
        quantizer.temperature = settings["temperature"]
        return super().train(self._fix_noise(inputs), settings)

    def _fix_noise(self, inputs: Named) -> Named:
        """The inputs without the noise, which the quantizer takes from now on."""
        if "noise" in inputs:
            quantizer: Any = self.model.quantizer
            quantizer.quantize = partial(quantizer.quantize, noise=inputs["noise"].movedim(1, -1))
        return {name: value for name, value in inputs.items() if name != "noise"}
