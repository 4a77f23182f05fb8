"""Checks of mimi's fixtures that go beyond the tokenizer: inner outputs, streams, the codebooks after a step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.parity import Case, Fixture, Named, channels_first
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return MimiCase(fixture, family)


class MimiCase(Case):
    """Decoded audio has whole frames. Streams must give what the whole signal gives."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        audio = _cropped(inputs, settings)
        tokens = model.encode(audio, num_codebooks=settings.get("num_codebooks"))
        with torch.no_grad():
            network = model.encoder(model.pad(audio))
            latent = model.latent(model.pad(audio))
            return {
                "indices": tokens.indices,
                "after_seanet": network,
                "after_encoder_transformer": model.encoder_transformer(network),
                "latent": channels_first(latent),
                "quantized": channels_first(model.quantizer.indices_to_codes(*tokens.levels)),
            }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            codes = self.model.quantizer.indices_to_codes(*inputs["indices"].unbind(1))
            return {"audio": self.model.reconstruct(codes)}

    def stream_encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with model.streaming(settings.get("num_codebooks")) as stream:
            pieces = [stream.encode(piece) for piece in _cropped(inputs, settings).split(settings["chunks"], dim=-1)]
            pieces.append(stream.encode(inputs["audio"][..., :0], last=settings["flush"]))
        return {"indices": torch.cat(pieces, dim=-1)}

    def stream_decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with model.streaming() as stream:
            pieces = [stream.decode(piece) for piece in inputs["indices"].split(settings["chunks"], dim=-1)]
            pieces.append(stream.decode(inputs["indices"][..., :0], last=settings["flush"]))
        return {"audio": torch.cat(pieces, dim=-1)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio = _cropped(inputs, settings)
        output = self.model.train()(audio)
        losses = self.original_losses(output.quantized)
        losses["loss.l1"] = F.l1_loss(output.reconstruction, audio)
        (losses["loss.l1"] + losses["loss.commit"]).backward()
        state = self.model.state_dict()
        named = {key: self.key_map.name(key, self.fixture.weights) for key in self.fixture.weights}
        return {
            **losses,
            "audio": output.reconstruction,
            **self.gradients(),
            **{f"state.{key}": state[own] for key, own in named.items() if own in state},
        }


def _cropped(inputs: Named, settings: dict[str, Any]) -> Tensor:
    return inputs["audio"][..., : settings.get("crop_samples")]
