"""Checks of MingTok's fixtures: latents that are not rounded, features on their own, and pixels that are clamped."""

from __future__ import annotations

from typing import Any

import torch

from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return MingTokCase(fixture, family)


class MingTokCase(Case):
    """Latents and features are (B, D, g, g)."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"latent": channels_first(self.model.latent(inputs["image"]))}

    def features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            return {"features": channels_first(model.features(inputs["latent"].movedim(1, -1)))}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            return {"image": model.paint(inputs["features"].movedim(1, -1)).clamp(-1, 1)}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"image": self.model.reconstruct(self.model.latent(inputs["image"])).clamp(-1, 1)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        image = inputs["image"]
        self.model.train()
        loss = (self.model.reconstruct(self.model.latent(image)) - image).abs().mean()
        loss.backward()
        return {"loss.l1": loss, **self.gradients()}

    def gradients(self) -> Named:
        """The original has both halves of a gated layer in one."""
        found, parameters = super().gradients(), dict(self.model.named_parameters())
        for key in self.fixture.weights:
            own = self.key_map.name(key, self.fixture.weights) or ""
            if ".w12." in own:
                halves = [own.replace(".w12.", part) for part in (".fc1.", ".fc3.")]
                found[f"grad.{key}"] = torch.cat([gradient(parameters[half]) for half in halves])
        return found
