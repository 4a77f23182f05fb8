"""Checks of X-Codec's fixtures that go beyond the tokenizer: given features of the speech model, the semantic head."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio.xcodec import KEY_MAP_HEAD, SemanticHead, XCodec
from zoo.parity import Case, Fixture, Named, channels_first, gradients
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return XCodecCase(fixture, family)


class XCodecCase(Case):
    """Indices are (codebooks, B, frames), and a bandwidth in kbit/s chooses the number of codebooks."""

    model: XCodec

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.latent(inputs)
            levels = self.model.quantizer.first_levels(latent, self.codebooks(settings["bandwidth"]))
        return {"indices": torch.stack(levels), "latent": channels_first(latent)}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            codes = self.model.quantizer.indices_to_codes(*inputs["indices"])
            return {"audio": self.model.reconstruct(codes)}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return self.decode(self.encode(inputs, settings), settings)

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """In evaluation mode: codes are constants, so that what lies behind the quantizer alone gets gradients."""
        weights = {key: value for key, value in self.fixture.weights.items() if _of_head(key)}
        features = inputs["semantic_features"]
        head = SemanticHead(self.model.quantizer.config.dim, features.shape[-1])
        head.load_state_dict(KEY_MAP_HEAD(weights))
        with torch.no_grad():
            levels = self.model.quantizer.first_levels(self.latent(inputs), self.codebooks(settings["bandwidth"]))
            codes = self.model.quantizer.indices_to_codes(*levels)
        losses = {
            "loss.semantic": F.mse_loss(head(codes), features),
            "loss.l1": F.l1_loss(self.model.reconstruct(codes), inputs["audio"]),
        }
        total = [weight * losses[f"loss.{name}"] for name, weight in settings["weights"].items()]
        torch.stack(total).sum().backward()
        return {**losses, **self.gradients(), **gradients(head, KEY_MAP_HEAD, weights)}

    def latent(self, inputs: Named) -> Tensor:
        """The latent of a signal and the features given with it."""
        return self.model.join(inputs["audio"], inputs["semantic_features"])

    def codebooks(self, bandwidth: float) -> int:
        """As the original counts them."""
        config = self.model.config
        frame_rate = math.ceil(config.sample_rate / config.hop_length)
        bits = math.log2(self.model.vocab_sizes[0])
        return min(len(self.model.vocab_sizes), max(1, math.floor(bandwidth / (bits * frame_rate / 1000))))


def _of_head(key: str) -> bool:
    return key.startswith(("decoder_semantic.", "fc_post1."))
