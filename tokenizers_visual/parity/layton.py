"""Checks of Layton's fixture: tokens of small images, what the diffusion model predicts, and sampling."""

from __future__ import annotations

from typing import Any

import torch

from zoo.parity import Case, Fixture, Named, channels_first
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return LaytonCase(fixture, family)


class LaytonCase(Case):
    """Images to encode have the size of the small copy, latents the channels first."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            latent = model.to_latent(model.encoder(inputs["small_image"])).movedim(1, -1)
            quantized = model.quantizer(latent)
        codes = channels_first(quantized.codes)
        return {"indices": quantized.indices, "latent": channels_first(latent), "quantized": codes}

    def predict(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        codes, noisy = model.codes(model.tokens(inputs["indices"])), inputs["noisy"]
        with torch.no_grad():
            return {"predicted": model.predict(noisy, torch.full((len(noisy),), settings["time"]), codes)}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        tokens = model.tokens(inputs["indices"])
        with torch.no_grad():
            painted = model.sample(model.codes(tokens), noise=inputs["noise"])
        return {"painted": painted, "image": model.decode(tokens, noise=inputs["noise"]).clamp(-1, 1)}
