"""Checks of unitok's fixtures that go beyond the tokenizer: CLIP's embedding, and use of the codebooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return UniTokCase(fixture, family)


class UniTokCase(Case):
    """Arrays are (B, N, C) of a square grid, indices (B, codebooks, N); the original clamps what it decodes."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        outputs = super().encode(inputs, settings)
        with torch.no_grad():
            features = model.encoder(inputs["image"]).flatten(1, 2)
        flat = {name: outputs[name].flatten(2).transpose(1, 2) for name in ("latent", "quantized")}
        return {"indices": outputs["indices"].flatten(2), "features": features, **flat}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        side = round(inputs["indices"].shape[-1] ** 0.5)
        tokens = model.tokens(inputs["indices"].unflatten(-1, (side, side)))
        with torch.no_grad():
            features = model.features(model.codes(tokens))
        return {"image": model.decode(tokens).clamp(-1, 1), "post_features": features.flatten(1, 2)}

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        codes = model.codes(model.encode(inputs["image"]))
        with torch.no_grad():
            pooled = model.features(codes).mean((1, 2))
            unnormalised = model.to_embedding(model.feature_norm(pooled))
            return {"image_features": model.image_embedding(codes), "unnormalised": unnormalised}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        outputs = super().train(inputs, settings)
        quantizer: Any = self.model.quantizer
        with torch.no_grad():
            quantized = quantizer(self.model.latent(inputs["image"]))
        for g, (level, size) in enumerate(zip(quantized.levels, quantizer.config.vocab_sizes)):
            share = torch.bincount(level.flatten(), minlength=size) / level.numel()
            outputs[f"buffer.quantizer.codebooks.{g}.vocab_usage"] = share
        outputs["usage"] = 100 * quantized.statistics["usage"]
        outputs["grad.latent"] = outputs["grad.latent"].flatten(2).transpose(1, 2)
        return outputs

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        latent: Tensor = inputs["latent"].requires_grad_()
        quantized = self.model.quantizer(latent)
        losses = self.original_losses(quantized)
        ((quantized.codes * inputs["cotangent"]).sum() + losses["loss.vq"]).backward()
        return {
            "quantized": quantized.codes,
            "indices": channels_first(quantized.indices),
            "grad.latent": gradient(latent),
            **losses,
        }
