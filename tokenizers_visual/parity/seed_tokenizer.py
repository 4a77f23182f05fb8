"""Checks of SEED's fixtures, which end at what conditions a generator of images: an embedding, or a prompt's states."""

from __future__ import annotations

from typing import Any

import torch

from zoo.parity import Case, Fixture, Named, gradient
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return SeedCase(fixture, family)


class SeedCase(Case):
    """Images are normalised as CLIP has them, latents and codes (B, tokens, D), the indices of the codebook flat."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            features = model.vision(inputs["image"])
            queries = model.queries(model.norm_vision(features))
            latent = model.to_latent(model.hidden_of_normalized(inputs["image"]))
            quantized = model.quantizer(latent)
            return {
                "indices": quantized.indices,
                "latent": latent,
                "vit_features": features,
                "qformer_output": queries,
                "query_output_up": model.from_codes(quantized.codes),
                **self.original_losses(quantized),
            }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        name = "image_embeds" if model.config.prompt is None else "prompt_embeds"
        return {name: model.embeddings(model.tokens(inputs["indices"]))}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        quantizer: Any = self.model.quantizer
        latent = inputs["latent"].requires_grad_()
        quantized = quantizer(latent)
        losses = self.original_losses(quantized)
        ((quantized.codes * inputs["cotangent"]).sum() + losses["loss.vq"]).backward()
        return {
            "indices": quantized.indices,
            "quantized": quantized.codes,
            **losses,
            "grad.latent": gradient(latent),
            "grad.embedding.weight": gradient(quantizer.codebook.weight),
        }
