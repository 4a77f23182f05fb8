"""Checks of wavtokenizer's fixtures that go beyond the tokenizer: rows of the norms, one attention block, training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo.layers.attention import SpatialAttention
from zoo.losses.mel import LogMelLoss, LogMelLossConfig, MelConfig
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case | AttentionCase:
    """The case that fits the original's class."""
    if fixture.meta["original"]["class"] == "AttnBlock":
        return AttentionCase(fixture)
    return WavTokenizerCase(fixture, family)


class AttentionCase:
    """The decoder's attention alone."""

    def __init__(self, fixture: Fixture) -> None:
        self.block = SpatialAttention(fixture.meta["original"]["kwargs"]["in_channels"], dims=1)
        self.block.load_state_dict(fixture.weights)

    def module(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"output": self.block(inputs["features"])}


class WavTokenizerCase(Case):
    """Signals are (B, T), indices (1, B, frames)."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio = inputs["audio"][:, None]
        with torch.no_grad():
            latent = self.model.latent(audio)
        return {"indices": self.model.encode(audio).indices.transpose(0, 1), "latent": channels_first(latent)}

    def features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"quantized": channels_first(self.model.quantizer.indices_to_codes(*inputs["indices"]))}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            codes = model.quantizer.indices_to_codes(*inputs["indices"])
            return {"audio": model.decoder(codes, settings["bandwidth_id"])[:, 0]}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings["dropout"]
        latent = model.latent(inputs["audio"][:, None])
        latent.retain_grad()
        quantized = model.quantizer(latent)
        audio = model.decoder(quantized.codes, settings["bandwidth_id"])
        target = F.pad(inputs["audio"][:, None], (0, audio.shape[-1] - inputs["audio"].shape[-1]))
        mel = LogMelLoss(LogMelLossConfig((MelConfig(**settings["mel_loss"]),), floor=1e-7))
        losses = {"loss.mel": mel(audio, target), **self.original_losses(quantized)}
        weighted = [settings[f"{name}_weight"] * losses[f"loss.{name}"] for name in ("mel", "commit")]
        losses["loss.total"] = torch.stack(weighted).sum()
        losses["loss.total"].backward()
        state = model.state_dict()
        named = {key: self.key_map.name(key, self.fixture.weights) for key in self.fixture.weights}
        return {
            **losses,
            "audio": audio[:, 0],
            "grad.latent": channels_first(gradient(latent)),
            **self.gradients(),
            **{f"buffer.{key}": state[own] for key, own in named.items() if own in state},
        }
