"""Checks of SNAC's fixtures that go beyond one tensor in and one out: levels of several rates, given noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audio.snac import SNAC
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> SNACCase:
    """The case of every fixture of the family."""
    return SNACCase(fixture, family)


class SNACCase(Case):
    """Indices are one array a level; noise is one array a stride of the decoder, or zeros."""

    model: SNAC

    def noise(self, inputs: Named, positions: int, batch: int) -> Tensor:
        pieces = [inputs[name].flatten(1) for name in sorted(inputs) if name.startswith("noise.")]
        return torch.cat(pieces, 1) if pieces else torch.zeros(batch, sum(self.model.noise_lengths(positions)))

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        tokens = self.model.encode(inputs["audio"])
        with torch.no_grad():
            latent = self.model.latent(self.model.pad(inputs["audio"]))
            quantized = self.model.quantizer(latent)
        levels = {f"indices.{q}": level for q, level in enumerate(tokens.levels)}
        return {**levels, "latent": channels_first(latent), "quantized": channels_first(quantized.codes)}

    def codes(self, inputs: Named) -> Tensor:
        levels = [inputs[f"indices.{q}"] for q in range(len(self.model.vocab_sizes))]
        with torch.no_grad():
            return self.model.quantizer.indices_to_codes(*levels)

    def dequantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"quantized": channels_first(self.codes(inputs))}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        codes = self.codes(inputs)
        with torch.no_grad():
            return {"audio": self.model.reconstruct(codes, self.noise(inputs, codes.shape[1], len(codes)))}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        tokens = self.model.encode(inputs["audio"])
        noise = self.noise(inputs, tokens.levels[-1].shape[1], len(tokens))
        return {"audio": self.model.decode(tokens, noise=noise if self.model.config.noise else None)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio = inputs["audio"]
        self.model.train()
        latent = self.model.latent(self.model.pad(audio))
        latent.retain_grad()
        codes = self.model.quantizer(latent).codes
        signal = self.model.reconstruct(codes, self.noise(inputs, codes.shape[1], len(codes)))
        l1 = (signal[..., : audio.shape[-1]] - audio).abs().mean()
        l1.backward()
        return {"loss.l1": l1, "grad.latent": channels_first(gradient(latent)), **self.gradients()}
