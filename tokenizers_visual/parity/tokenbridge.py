"""Checks of tokenbridge's fixtures: the posterior and a sample of it, other bins, and latents without quantisation."""

from __future__ import annotations

from typing import Any

import torch

from zoo import checkpoint
from zoo.layers.posterior import Posterior
from zoo.parity import Case, Fixture, Named, channels_first
from zoo.quantizers import DimensionWiseConfig
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return TokenBridgeCase(fixture, family)


class TokenBridgeCase(Case):
    """Indices are (B, D, h, w). Each check states the bins and the scale."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model = self._with(settings)
        image, noise = inputs["image"], inputs.get("noise")
        with torch.no_grad():
            posterior = Posterior.of(model.base.to_posterior(model.base.encoder(image)).movedim(1, -1))
            latent = model.base.latent(image, None if noise is None else noise.movedim(1, -1))
            quantized = model.quantizer(latent)
        return {
            "mean": channels_first(posterior.mean),
            "logvar": channels_first(posterior.log_variance),
            "loss.kl": posterior.divergence().sum((1, 2, 3)),
            "latent": channels_first(latent),
            "indices": model.encode(image).indices if noise is None else torch.stack(quantized.levels, 1),
            "quantized": channels_first(quantized.codes),
        }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self._with(settings)
        return super().decode(inputs, settings)

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        if settings.get("quantise", True):
            return super().reconstruct(inputs, settings)
        with torch.no_grad():
            return {"image": self.model.reconstruct(self.model.latent(inputs["image"]))}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        latent = inputs["latent"].movedim(1, -1)
        quantizer: Any = DimensionWiseConfig(dim=latent.shape[-1], **_bins(settings)).build()
        quantized = quantizer(latent)
        return {
            "indices": torch.stack(quantized.levels, 1),
            "quantized": channels_first(quantized.codes),
            "codebook": quantizer.codebook(),
        }

    def _with(self, settings: dict[str, Any]) -> Any:
        """The model with the bins and the scale of a check."""
        config: Any = self.model.config
        quantizer = config.quantizer.replace(**_bins(settings))
        changed = config.replace(scale=settings["scale"], quantizer=quantizer)
        self.model = type(self.model)(changed).eval()  # type: ignore[arg-type]
        checkpoint.load_into(self.model, self.key_map(self.fixture.weights))
        return self.model


def _bins(settings: dict[str, Any]) -> dict[str, Any]:
    return {"bits": settings["bits"], "limit": settings["range"], "deviations": settings["std_range"]}
