"""Checks of Instella-T2I's fixture: bits, images of any size, positions laid over another grid, given draws."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from zoo.checkpoint import load_into
from zoo.parity import Case, Fixture, Named, gradient
from zoo.quantizers.base import linear
from zoo.quantizers.bit_indices import bits_to_indices, indices_to_bits
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return InstellaCase(fixture, family)


class InstellaCase(Case):
    """Indices are bits (B, N, bits), latents their logits."""

    def scaled(self, settings: dict[str, Any]) -> Any:
        """The model with positions laid over the grid of an image of the stated size."""
        config: Any = self.model.config
        model = type(self.model)(config.replace(position_size=settings.get("scale"))).eval()  # type: ignore[arg-type]
        load_into(model, self.key_map(self.fixture.weights))
        return model

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model = self.scaled(settings)
        config = model.quantizer.config
        with torch.no_grad():
            features = model.latent(inputs["image"])
            quantized = model.quantizer(features)
        return {
            "features": features,
            "latent": linear(model.quantizer.projection, features).detach(),
            "indices": indices_to_bits(
                model.encode(inputs["image"]).levels, config.bits, config.most_significant_first
            ),
            "quantized": quantized.codes,
            **self.original_losses(quantized),
        }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model = self.scaled(settings)
        config = model.quantizer.config
        levels = bits_to_indices(inputs["indices"], config.subtokens, config.most_significant_first)
        indices = levels[0] if len(levels) == 1 else torch.stack(levels, 1)
        return {"image": model.decode(model.tokens(indices, extent=(settings["height"], settings["width"])))}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model.train()
        config = model.quantizer.config
        image = inputs["image"]
        logits = linear(model.quantizer.projection, model.latent(image))
        logits.retain_grad()
        quantized = model.quantizer.quantize_logits(logits, inputs["uniforms"])
        reconstruction = model.reconstruct(quantized.codes, tuple(image.shape[2:]))
        losses = {"loss.reconstruction": F.mse_loss(reconstruction, image), **self.original_losses(quantized)}
        losses["loss.total"] = losses["loss.reconstruction"] + settings["code_loss_weight"] * losses["loss.code"]
        losses["loss.total"].backward()
        return {
            "codes": indices_to_bits(quantized.levels, config.bits, config.most_significant_first),
            "image": reconstruction,
            **losses,
            "grad.latent": gradient(logits),
            **self.gradients(),
        }
