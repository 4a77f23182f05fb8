"""Checks of xcodec2's fixtures that go beyond the tokenizer: given features of the speech model, the semantic head."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio.xcodec2 import SemanticHead
from audio.xcodec2_keys import KEY_MAP_HEAD
from zoo.parity import Case, Fixture, Named, channels_first, gradient, gradients
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return XCodec2Case(fixture, family)


class XCodec2Case(Case):
    """Signals have whole frames and get no further one; latents are (B, frames, D)."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            latent = self.latent(inputs)
            return {
                "indices": model.quantizer(latent).indices[:, None],
                "latent": latent,
                "acoustic": model.encoder(inputs["audio"]).transpose(1, 2),
                "semantic": model.semantic_encoder(inputs["semantic_features"].transpose(1, 2)),
            }

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            quantized = self.model.quantizer(inputs["latent"])
        return {"indices": quantized.indices[:, None], "quantized": channels_first(quantized.codes)}

    def dequantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"quantized": self.model.quantizer.indices_to_codes(inputs["indices"][:, 0])}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        decoder: Any = self.model.decoder
        with torch.no_grad():
            codes = self.model.quantizer.indices_to_codes(inputs["indices"][:, 0])
            start = decoder.from_codes(codes)
            return {"audio": decoder(codes), "decoder_input": start, "backbone": decoder.backbone(start)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        weights = {key: value for key, value in self.fixture.weights.items() if _of_head(key)}
        features = inputs["semantic_features"]
        head = SemanticHead(self.model.quantizer.config.dim, features.shape[-1])
        head.load_state_dict(KEY_MAP_HEAD(weights))
        latent = self.latent(inputs)
        latent.retain_grad()
        codes = self.model.quantizer(latent).codes
        losses = {
            "loss.semantic": F.mse_loss(head(codes), features),
            "loss.l1": F.l1_loss(self.model.reconstruct(codes), inputs["audio"]),
        }
        total = [weight * losses[f"loss.{name}"] for name, weight in settings["weights"].items()]
        torch.stack(total).sum().backward()
        return {**losses, "grad.latent": gradient(latent), **self.gradients()}

    def gradients(self) -> Named:
        """With those of the encoder's last layers, whose places the key map knows by their number alone."""
        model: Any = self.model
        last = len(model.encoder.layers) - 1
        places = {
            f"CodecEnc.conv_final_block.{part}": f"encoder.layers.{own}"
            for part, own in (
                ("0.act.alpha", f"{last - 1}.alpha"),
                ("0.act.beta", f"{last - 1}.beta"),
                ("1.weight", f"{last}.weight"),
                ("1.bias", f"{last}.bias"),
            )
        }
        whole = dataclasses.replace(self.key_map, patterns={**self.key_map.patterns, **places})
        return gradients(model, whole, self.fixture.weights)

    def latent(self, inputs: Named) -> Tensor:
        """The latent of a signal and the features given with it."""
        model: Any = self.model
        return model.join(inputs["audio"], inputs["semantic_features"])


def _of_head(key: str) -> bool:
    return key.startswith(("SemanticDecoder_module.", "fc_post_s."))
