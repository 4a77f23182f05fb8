"""Checks of sqcodec's fixtures that go beyond the tokenizer: decoding latents, and without cutting the ends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from zoo.parity import Case, Fixture, Named, channels_first
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return SQCodecCase(fixture, family)


class SQCodecCase(Case):
    """The original does not pad the signal; its decoder rounds what it is given, so that it takes latents too."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.model.latent(inputs["audio"])
            quantized = self.model.quantizer(latent)
        codes = channels_first(quantized.codes)
        return {"indices": torch.stack(quantized.levels, 1), "latent": channels_first(latent), "quantized": codes}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            if "latent" in inputs:
                codes = self.model.quantizer(inputs["latent"].movedim(1, -1)).codes
            else:
                codes = self.model.quantizer.indices_to_codes(*inputs["indices"].unbind(1))
            return {"audio": self.model.reconstruct(codes)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio = inputs["audio"]
        latent = self.model.train().latent(audio)
        latent.retain_grad()
        reconstruction = self.model.reconstruct(self.model.quantizer(latent).codes)
        length = min(audio.shape[-1], reconstruction.shape[-1])
        loss = F.l1_loss(reconstruction[..., :length], audio[..., :length])
        loss.backward()
        gradient = torch.zeros_like(latent) if latent.grad is None else latent.grad
        return {"loss.l1": loss, "grad.latent": channels_first(gradient), **self.gradients()}
