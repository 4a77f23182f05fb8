"""Checks of FlexTok's fixtures: the base, codes, sampling with both kinds of guidance, and the flow's regression."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checkpoint import load_into
from zoo.layers.posterior import Posterior
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return FlexTokCase(fixture, family)


class FlexTokCase(Case):
    """Latents and codes are (B, N, D), latents of the base channels first."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            base = model.base
            moments = Posterior.of(base.to_posterior(base.encoder(inputs["image"])).movedim(1, -1))
            latent = model.latent(inputs["image"])
        scaled, variance = base.scale * moments.mean, moments.log_variance
        divergence = 0.5 * (scaled.square() + variance.exp() - 1 - variance)
        return {
            "vae_latent": base.latent(inputs["image"]).movedim(-1, 1),
            "vae_kl": divergence.sum((1, 2, 3)),
            "latent": latent,
            "indices": model.encode(inputs["image"]).indices,
            "quantized": model.quantizer(latent).codes,
        }

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        quantizer: Any = self.model.quantizer
        if "indices" in inputs:
            return {"quantized": quantizer.indices_to_codes(inputs["indices"])}
        quantized = quantizer(inputs["latent"])
        bounded = quantizer.bound(inputs["latent"]) * (quantizer.levels // 2)
        return {"bounded": bounded, "indices": quantized.indices, "quantized": quantized.codes}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        config: Any = self.model.config
        guided = settings.get("guidance") == "apg"
        model: Any = type(self.model)(config.replace(norm_guidance=guided)).eval()  # type: ignore[arg-type]
        load_into(model, self.key_map(self.fixture.weights))
        tokens = model.tokens(inputs["indices"][:, : settings["num_tokens"]])
        options = {"steps": settings["steps"], "guidance_scale": settings["guidance_scale"], "noise": inputs["noise"]}
        with torch.no_grad():
            sampled: Tensor = model.sample(model.codes(tokens), **options)
        return {"vae_latent": sampled.movedim(-1, 1), "image": model.decode(tokens, **options)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model.train()
        base_latent = model.base.latent(inputs["image"])
        noise, share = inputs["noise"].movedim(1, -1), inputs["sigma_normal"].sigmoid()
        codes = model.quantizer(model.latent_of(base_latent)).codes
        kept, null = torch.tensor(settings["kept_tokens"]), torch.tensor(settings["condition_dropped"])
        noised, velocity = model.flow(base_latent, codes, share, noise, kept, null)
        loss = F.mse_loss(velocity, noise - base_latent)
        loss.backward()
        return {
            "sigmas": share,
            "noised": noised.movedim(-1, 1),
            "velocity": velocity.movedim(-1, 1),
            "loss.flow": loss,
            **self.gradients(),
        }
