"""Checks of bae's fixtures that go beyond the tokenizer: given noise, bits, and its discriminator."""

from __future__ import annotations

from typing import Any

import torch

from tokenizers_visual.parity.adversarial import patchgan
from zoo.losses.reconstruction import l1
from zoo.parity import Case, Fixture, Named, channels_first, gradient, weighted_sum
from zoo.quantizers.base import linear
from zoo.quantizers.bit_indices import indices_to_bits
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return BAECase(fixture, family)


class BAECase(Case):
    """The original's latents are the probabilities of the bits; without noise, bits are those above 1/2."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.change_quantizer(subtokens=settings["token_each"])
        quantizer: Any = self.model.quantizer
        noise = inputs["noise"].movedim(1, -1) if "noise" in inputs else None
        with torch.no_grad():
            features = self.model.latent(inputs["image"])
            quantized = quantizer.quantize(features, noise)
            probability = linear(quantizer.projection, features).sigmoid()
        levels = quantized.levels if noise is not None else self.model.encode(inputs["image"]).levels
        bits = indices_to_bits(levels, quantizer.config.bits, quantizer.config.most_significant_first)
        return {
            "indices": torch.stack(levels, dim=-1).flatten(1, -2),
            "bits": channels_first(bits),
            "latent": channels_first(probability),
            "features": channels_first(features),
            "quantized": channels_first(quantized.codes),
        }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.change_quantizer(subtokens=settings["token_each"])
        indices = inputs["indices"].transpose(1, 2)  # (B, subtokens, h * w), of a square
        side = round(indices.shape[-1] ** 0.5)
        indices = indices.unflatten(-1, (side, side))
        return {"image": self.model.decode(self.model.tokens(indices[:, 0] if indices.shape[1] == 1 else indices))}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.model.train()
        quantizer: Any = self.model.quantizer
        probability = linear(quantizer.projection, self.model.latent(inputs["image"])).sigmoid()
        probability.retain_grad()
        quantized = quantizer.quantize_probabilities(probability, inputs["noise"].movedim(1, -1))
        losses = self.original_losses(quantized)
        losses["loss.l1"] = l1(self.model.reconstruct(quantized.codes), inputs["image"]).mean()
        losses["loss.total"] = weighted_sum(losses, settings["total"])
        losses["loss.total"].backward()
        gradients = self.gradients()
        weight = self.model.get_parameter("decoder.conv_out.weight")
        gradients["grad.generator.last_conv.weight"] = gradient(weight)
        return {**losses, "grad.latent": channels_first(gradient(probability)), **gradients}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        quantizer: Any = self.model.quantizer
        features = inputs["features"].movedim(1, -1).requires_grad_()
        quantized = quantizer.quantize(features, inputs["noise"].movedim(1, -1))
        losses = self.original_losses(quantized)
        ((quantized.codes * inputs["cotangent"].movedim(1, -1)).sum() + losses["loss.code"]).backward()
        bits = indices_to_bits(quantized.levels, quantizer.config.bits, quantizer.config.most_significant_first)
        return {
            "quantized": channels_first(quantized.codes),
            "bits": channels_first(bits),
            "grad.features": channels_first(gradient(features)),
            **losses,
        }

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        kwargs = self.meta["original"]["discriminator_kwargs"]
        network = patchgan({"disc_ndf": kwargs["ndf"], "disc_num_layers": kwargs["n_layers"]})
        prefix = settings["weights_prefix"]
        weights = self.fixture.weights
        network.load_state_dict({key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)})
        return {"logits": network.train(settings["mode"] == "train")(inputs["image"])}
