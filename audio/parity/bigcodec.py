"""Checks of bigcodec's fixtures that go beyond the tokenizer: the projected latent, training."""

from __future__ import annotations

from typing import Any

import torch

from zoo.losses.mel import LogMelLoss, LogMelLossConfig, MelConfig
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.quantizers.base import linear
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return BigCodecCase(fixture, family)


class BigCodecCase(Case):
    """Indices are (codebooks, B, frames), audio has whole frames."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.model.latent(self.model.pad(inputs["audio"]))
        indices = self.model.encode(inputs["audio"]).indices
        return {"indices": indices.transpose(0, 1), "latent": channels_first(latent)}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        latent, quantizer = inputs["latent"].movedim(1, -1), self.model.quantizer
        with torch.no_grad():
            quantized = quantizer(latent)
            first: Any = quantizer.get_submodule("levels.0")
            return {
                "indices": torch.stack(quantized.levels),
                "quantized": channels_first(quantized.codes),
                "projected": linear(first.project_in, latent),
            }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"audio": self.model.reconstruct(self.model.quantizer.indices_to_codes(*inputs["indices"]))}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.model.latent(self.model.pad(inputs["audio"]))
            return {"audio": self.model.reconstruct(self.model.quantizer(latent).codes)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        target = self.model.train().pad(inputs["audio"])
        latent = self.model.latent(target)
        latent.retain_grad()
        quantized = self.model.quantizer(latent)
        audio = self.model.reconstruct(quantized.codes)
        losses = {"loss.mel": mel_loss(settings["mel_loss"])(audio, target), **self.original_losses(quantized)}
        weighted = [settings[f"{name}_weight"] * losses[f"loss.{name}"] for name in ("mel", "vq")]
        losses["loss.total"] = torch.stack(weighted).sum()
        losses["loss.total"].backward()
        return {**losses, "audio": audio, "grad.latent": channels_first(gradient(latent)), **self.gradients()}


def mel_loss(settings: dict[str, Any]) -> LogMelLoss:
    """The multi-resolution mel loss of BigCodec and X-codec2, by a fixture's arguments."""
    resolutions = tuple(
        MelConfig(settings["sample_rate"], window, window // 4, n_mels, scale="slaney", area_norm=True)
        for window, n_mels in zip(settings["window_lengths"], settings["n_mels"])
    )
    return LogMelLoss(LogMelLossConfig(resolutions, base="10"))
