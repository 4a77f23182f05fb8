"""Checks of bsq_vit's fixtures that go beyond the tokenizer: groups of bits, entropies, discriminator, its losses."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.losses.adversarial import (
    hinge_discriminator_loss,
    linear_generator_loss,
    non_saturating_generator_loss,
    vanilla_discriminator_loss,
)
from zoo.losses.reconstruction import l1
from zoo.losses.style_discriminator import StyleDiscriminator, StyleDiscriminatorConfig
from zoo.ops.binary_entropy import mean_assignment
from zoo.parity import Case, Fixture, Named, gradient, weighted_sum
from zoo.quantizers import BinaryEntropyConfig, SphericalBinaryConfig
from zoo.quantizers.bit_indices import bits_to_indices
from zoo.quantizers.spherical_binary import SphericalBinary
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return BSQCase(fixture, family)


class BSQCase(Case):
    """The original's latents are the unit vectors, as (B, N, D); its losses exist in evaluation mode too."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        tokens = self.model.encode(inputs["image"])
        quantizer: Any = self.model.quantizer.train()
        with torch.no_grad():
            unit = F.normalize(self.model.latent(inputs["image"]), dim=-1)
            quantized = quantizer.quantize_unit(unit)
        group = self.meta["original"]["kwargs"]["embed_group_size"]
        return {
            "indices": tokens.indices,
            "group_indices": _group_indices(unit, group),
            "latent": unit,
            "quantized": quantized.codes,
            "entropy.codebook": quantized.statistics["codebook_entropy"],
            "avg_prob": _mean_assignment(unit, quantizer.config.entropy),
            **self.original_losses(quantized),
        }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        image = super().decode(inputs, settings)["image"]
        return {"image": image.clamp(-1, 1), "image_unclamped": image}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.model.train()
        quantizer: Any = self.model.quantizer
        unit = F.normalize(self.model.latent(inputs["image"]), dim=-1)
        unit.retain_grad()
        quantized = quantizer.quantize_unit(unit)
        losses = self.original_losses(quantized)
        losses["loss.l1"] = l1(self.model.reconstruct(quantized.codes).clamp(-1, 1), inputs["image"]).mean()
        losses["loss.total"] = weighted_sum(losses, settings["total"])
        losses["loss.total"].backward()
        return {**losses, "grad.latent": gradient(unit), **self.gradients()}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """A quantizer of its own arguments, on unit vectors."""
        kwargs = settings["kwargs"]
        first = kwargs["input_format"] == "bchw"
        unit = inputs["latent"].movedim(1, -1) if first else inputs["latent"]
        cotangent = inputs["cotangent"].movedim(1, -1) if first else inputs["cotangent"]
        analytical = kwargs["persample_entropy_compute"] == "analytical"
        entropy = BinaryEntropyConfig(
            temperature=1 / kwargs["inv_temperature"],
            gamma=kwargs["gamma"] / kwargs["gamma0"],
            group_bits=1 if analytical else kwargs["group_size"],
        )
        config = SphericalBinaryConfig(bits=kwargs["embed_dim"], entropy=entropy)
        quantizer = SphericalBinary(config).train(settings["mode"] == "train")
        unit.requires_grad_()
        quantized = quantizer.quantize_unit(unit)
        commitment = kwargs["beta"] * kwargs["embed_dim"] * quantized.losses["commitment"]
        weight = kwargs["zeta"] * kwargs["gamma0"] / kwargs["inv_temperature"]
        loss = commitment + weight * quantized.losses["entropy"]
        ((quantized.codes * cotangent).sum() + loss).backward()
        slope = gradient(unit)
        return {
            "quantized": quantized.codes.movedim(-1, 1) if first else quantized.codes,
            "loss.total": loss,
            "indices": quantized.indices,
            "group_indices": _group_indices(unit, kwargs["group_size"]),
            "entropy.codebook": quantized.statistics["codebook_entropy"],
            "entropy.per_sample": quantized.statistics["sample_entropy"],
            "avg_prob": _mean_assignment(unit.detach(), entropy),
            "grad.latent": slope.movedim(-1, 1) if first else slope,
        }

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        kwargs = self.meta["original"]["discriminator_kwargs"]
        config = StyleDiscriminatorConfig(
            in_channels=kwargs["img_channels"],
            resolution=kwargs["img_resolution"],
            channel_base=kwargs["channel_base"],
            channel_maximum=kwargs["channel_max"],
            group_size=kwargs["epilogue_kwargs"]["mbstd_group_size"],
        )
        network, prefix = StyleDiscriminator(config), settings["weights_prefix"]
        weights = {k.removeprefix(prefix): v for k, v in self.fixture.weights.items() if k.startswith(prefix)}
        stored_twice = [
            key for key in weights if re.fullmatch(r"b\d+\.resample_filter", key)
        ]  # stages do not use theirs
        network.load_state_dict({key: value for key, value in weights.items() if key not in stored_twice})
        image = inputs["image"].requires_grad_()
        logits = network(image)
        (slope,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        penalty = slope.square().sum((1, 2, 3)).mean()
        penalty.backward()
        return {"logits": logits, "loss.r1": penalty, "grad.b4.conv.weight_of_r1": gradient(network.b4.conv.weight)}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        real, fake = inputs["logits_real"], inputs["logits_fake"]
        return {
            "vanilla.d": vanilla_discriminator_loss(real, fake),
            "vanilla.g": non_saturating_generator_loss(fake),
            "hinge.d": hinge_discriminator_loss(real, fake),
            "hinge.g": linear_generator_loss(fake),
        }


def _group_indices(unit: Tensor, group_size: int) -> Tensor:
    """(..., D) -> (..., groups), the first channel of a group being the most significant bit."""
    return torch.stack(bits_to_indices(unit > 0, unit.shape[-1] // group_size, True), dim=-1)


def _mean_assignment(unit: Tensor, entropy: BinaryEntropyConfig) -> Tensor:
    """(groups, 2^group_bits) probabilities, the first channel of a group being the most significant bit."""
    dim, bits = unit.shape[-1], entropy.group_bits
    logits = unit.flatten(0, -2) * (4 / entropy.temperature * dim**-0.5)
    least_first = mean_assignment(logits, bits)
    axes = dim if bits is None else bits
    return least_first.unflatten(1, (2,) * axes).permute(0, *range(axes, 0, -1)).flatten(1)
