"""The training check of 4M's vectors: a pass with a given Gumbel noise, and the gradients of its loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from zoo.parity import Case, Fixture, Named, channels_first
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The only case."""
    return VectorCase(fixture, family)


class VectorCase(Case):
    """VQVAE with MLPs and memory codes."""

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        codes = self.model.codes(self.model.tokens(inputs["indices"]))
        return {**super().decode(inputs, settings), "embedding": channels_first(codes)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model.train()
        chunks = model.latent(inputs["image"]).split(model.quantizer.widths, dim=-1)
        parts = zip(model.quantizer.groups, chunks, inputs["gumbel"], strict=True)
        codes = torch.cat([group.quantize(chunk, noise).codes for group, chunk, noise in parts], dim=-1)
        image = model.reconstruct(codes)
        loss = F.smooth_l1_loss(image, inputs["image"])
        loss.backward()
        stacked = {
            "grad.quantize.codes": [group.memories.grad for group in model.quantizer.groups],
            "grad.quantize.to_k.weight": [group.keys.weight.grad.T for group in model.quantizer.groups],
            "grad.quantize.to_v.weight": [group.values.weight.grad.T for group in model.quantizer.groups],
        }
        return {
            "image": image,
            "loss.reconstruction": loss,
            **self.gradients(),
            **{name: torch.stack(parts) for name, parts in stacked.items()},
        }
