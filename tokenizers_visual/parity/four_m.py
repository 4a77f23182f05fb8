"""Checks of 4M's fixtures that go beyond the tokenizer: the codebook after a step, single steps of the diffusion."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.parity import Case, Fixture, Named, channels_first
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case that fits the original's class."""
    diffusion = fixture.meta["original"]["class"] == "DiVAE"
    return DiffusionCase(fixture, family) if diffusion else PixelCase(fixture, family)


class PixelCase(Case):
    """VQVAE, the decoder being a transformer. The latents of the original are those before any normalisation."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        encoded, model = super().encode(inputs, settings), self.model
        model.unit_latents = False
        with torch.no_grad():
            return {**encoded, "latent": channels_first(model.latent(inputs["image"]))}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        codes = self.model.codes(self.model.tokens(inputs["indices"]))
        return {**super().decode(inputs, settings), "embedding": channels_first(codes)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model.train()
        output = model(inputs["image"])
        losses = self.original_losses(output.quantized)
        losses["loss.reconstruction"] = (
            F.cross_entropy(output.reconstruction, inputs["image"][:, 0].long())
            if settings["loss"] == "cross_entropy"
            else F.smooth_l1_loss(output.reconstruction, inputs["image"])
        )
        torch.stack(list(losses.values())).sum().backward()
        return {
            "image": output.reconstruction,
            "codebook_after": model.quantizer.codebook.weight,
            "cluster_size_after": model.quantizer.ema.count,
            **losses,
            **self.gradients(),
        }


class DiffusionCase(Case):
    """DiVAE, the decoder being a diffusion model."""

    def denoise(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        codes = self._codes(inputs["indices"])
        with torch.no_grad():
            prediction = model.decoder.predict(inputs["noised"], inputs["timesteps"], codes, inputs.get("cond_mask"))
        return {"prediction": prediction}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        image = model.decode(model.tokens(inputs["indices"]), steps=settings["steps"], noise=inputs["noise"])
        return {"image": image, "timesteps": torch.tensor(model.decoder.times(settings["steps"]))}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model.train()
        quantized = model.quantizer(model.latent(inputs["image"]))
        losses = self.original_losses(quantized)
        codes = quantized.codes.movedim(-1, 1)
        prediction = model.decoder.predict(inputs["noised"], inputs["timesteps"], codes)
        losses["loss.mse"] = F.mse_loss(prediction, inputs["image"])
        torch.stack(list(losses.values())).sum().backward()
        return {**losses, **self.gradients()}

    def _codes(self, indices: Tensor) -> Tensor:
        return self.model.codes(self.model.tokens(indices)).movedim(-1, 1)
