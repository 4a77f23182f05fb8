"""Checks of BrainTokenizer's fixtures: sensors of each item, overlapping windows, a training pass with given noise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio.brainomni import BrainOmni
from zoo.losses.sensor_windows import correlations, normalized, window_losses
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return BrainOmniCase(fixture, family)


class BrainOmniCase(Case):
    """Signals are cut to whole windows; indices are (B, sources, windows, frames of one, levels)."""

    model: BrainOmni

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        signal, sensors = self.whole_windows(inputs["signal"]), self.sensors(inputs)
        with torch.no_grad():
            quantized = self.model.quantizer(self.model.latent(signal, *sensors))
            return {
                "indices": self.stacked(quantized.levels),
                "latent": self.model.source_features(signal, *sensors).transpose(1, 2),
                "sensor_embedding": self.model.sensor_embedding(*sensors),
                "quantized": self.model.by_source(quantized.codes, 1),
            }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        levels = [level.flatten(2).transpose(1, 2).flatten(1) for level in inputs["indices"].unbind(-1)]
        with torch.no_grad():
            codes = self.model.quantizer.indices_to_codes(*levels)
            return {"signal": self.model.reconstruct(codes, *self.sensors(inputs))}

    def features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"target": normalized(self.windows(self.whole_windows(inputs["signal"])))}

    def tokenize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """Windows that overlap, the signal continued with zeros to the last of them."""
        signal, window = inputs["signal"], self.model.config.window
        step = int(window * (1 - settings.get("overlap_ratio", 0.0)))
        samples = signal.shape[-1]
        if step < window or samples < window:
            signal = F.pad(signal, (0, max(0, window - samples) or -(samples - window) % step))
        pieces = signal.unfold(-1, window, step).flatten(2)  # each window is coded by itself
        with torch.no_grad():
            quantized = self.model.quantizer(self.model.latent(pieces, *self.sensors(inputs)))
        return {"indices": self.stacked(quantized.levels), "features": self.model.by_source(quantized.codes, 1)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """The first channels of the permuted order are hidden; all are reconstructed in that order."""
        order = inputs["channel_permutation"]
        signal = self.whole_windows(inputs["signal"])[:, order]
        places, types = (part[:, order] for part in self.sensors(inputs))
        hidden = max(int(settings["mask_ratio"] * len(order)), 1)
        seen = signal[:, hidden:] + settings["noise_scale"] * inputs["noise"].flatten(2)
        self.model.train()
        quantized = self.model.quantizer(self.model.latent(seen, places[:, hidden:], types[:, hidden:]))
        reconstruction = self.windows(self.model.reconstruct(quantized.codes, places, types))
        target = normalized(self.windows(signal))
        losses = window_losses(reconstruction, target)
        commitment = self.original_losses(quantized)["loss.commit"]
        total = losses["time"] + losses["correlation"] + commitment + losses["amplitude"] + 0.5 * losses["phase"]
        total.backward()
        state = self.model.state_dict()
        named = {key: self.key_map.name(key, self.fixture.weights) or "" for key in self.fixture.weights}
        inner = {
            key: own.replace(".codebook.", ".inner.codebook.").replace(".ema.", ".inner.ema.")
            for key, own in named.items()
        }
        return {
            "loss.total": total,
            **{f"loss.{name}": loss for name, loss in losses.items()},
            "loss.commit": commitment,
            "pcc": correlations(reconstruction, target).mean(),
            "indices": self.stacked(quantized.levels),
            **self.gradients(),
            **{f"buffer.{key}": state[own] for own_of in (named, inner) for key, own in own_of.items() if own in state},
        }

    def sensors(self, inputs: Named) -> tuple[Tensor, Tensor]:
        return inputs["sensor_position"], inputs["sensor_type"]

    def whole_windows(self, signal: Tensor) -> Tensor:
        return signal[..., : signal.shape[-1] // self.model.config.window * self.model.config.window]

    def windows(self, signal: Tensor) -> Tensor:
        return signal.unflatten(-1, (-1, self.model.config.window))

    def stacked(self, levels: tuple[Tensor, ...]) -> Tensor:
        """(B, sources, frames, levels)."""
        return torch.stack([self.model.by_source(level) for level in levels], dim=-1)
