"""Checks of bsq_vit's fixtures that go beyond the tokenizer: groups of bits, entropies, discriminator, its losses."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual import bsq_vit
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
from zoo.quantizers import BinaryConfig, Quantized, SphericalBinaryConfig
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
            latent = self.latent(inputs["image"])
            quantized = _quantize(quantizer, latent)
        group = bsq_vit.original_arguments(self.meta)["embed_group_size"]
        return {
            "indices": tokens.indices,
            "group_indices": _group_indices(latent, group),
            "latent": latent,
            "quantized": quantized.codes,
            "entropy.codebook": quantized.statistics["codebook_entropy"],
            "avg_prob": _mean_assignment(latent, quantizer.config),
            **self.original_losses(quantized),
        }

    def latent(self, image: Tensor) -> Tensor:
        """What the quantizer looks at: unit vectors, or the latents as they are where it does not normalise."""
        latent = self.model.latent(image)
        return F.normalize(latent, dim=-1) if isinstance(self.model.quantizer, SphericalBinary) else latent

    def clamped(self, image: Tensor) -> Tensor:
        return image.clamp(*bsq_vit.original_arguments(self.meta)["clamp_range"])

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        image = super().decode(inputs, settings)["image"]
        return {"image": self.clamped(image), "image_unclamped": image}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.model.train()
        quantizer: Any = self.model.quantizer
        latent = self.latent(inputs["image"])
        latent.retain_grad()
        quantized = _quantize(quantizer, latent)
        losses = self.original_losses(quantized)
        losses["loss.l1"] = l1(self.clamped(self.model.reconstruct(quantized.codes)), inputs["image"]).mean()
        losses["loss.total"] = weighted_sum(losses, settings["total"])
        losses["loss.total"].backward()
        return {**losses, "grad.latent": gradient(latent), **self.gradients()}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """A quantizer of its own arguments, on latents that lie on the unit sphere if it normalises."""
        kwargs = settings["kwargs"]
        first = kwargs["input_format"] == "bchw"
        latent = inputs["latent"].movedim(1, -1) if first else inputs["latent"]
        cotangent = inputs["cotangent"].movedim(1, -1) if first else inputs["cotangent"]
        entropy = bsq_vit.entropy_from_original(kwargs, kwargs["group_size"])
        config: SphericalBinaryConfig | BinaryConfig = SphericalBinaryConfig(bits=kwargs["embed_dim"], entropy=entropy)
        if not kwargs["l2_norm"]:
            config = BinaryConfig(bits=kwargs["embed_dim"], entropy=entropy, most_significant_first=True)
        latent.requires_grad_()
        quantized = _quantize(config.build().train(settings["mode"] == "train"), latent)
        commitment = kwargs["beta"] * kwargs["embed_dim"] * quantized.losses["commitment"]
        loss = commitment + bsq_vit.entropy_weight(kwargs) * quantized.losses["entropy"]
        ((quantized.codes * cotangent).sum() + loss).backward()
        slope = gradient(latent)
        return {
            "quantized": quantized.codes.movedim(-1, 1) if first else quantized.codes,
            "loss.total": loss,
            "indices": quantized.indices,
            "group_indices": _group_indices(latent, kwargs["group_size"]),
            "entropy.codebook": quantized.statistics["codebook_entropy"],
            "entropy.per_sample": quantized.statistics["sample_entropy"],
            "avg_prob": _mean_assignment(latent.detach(), config),
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


def _quantize(quantizer: Any, latent: Tensor) -> Quantized:
    return quantizer.quantize_unit(latent) if isinstance(quantizer, SphericalBinary) else quantizer.quantize(latent)


def _group_indices(latent: Tensor, group_size: int) -> Tensor:
    """(..., D) -> (..., groups), the first channel of a group being the most significant bit."""
    return torch.stack(bits_to_indices(latent > 0, latent.shape[-1] // group_size, True), dim=-1)


def _mean_assignment(latent: Tensor, config: SphericalBinaryConfig | BinaryConfig) -> Tensor:
    """(groups, 2^group_bits) probabilities, the first channel of a group being the most significant bit."""
    if config.entropy is None:
        raise ValueError("expected a quantizer with an entropy term")
    dim, bits = latent.shape[-1], config.entropy.group_bits
    scale = dim**-0.5 if isinstance(config, SphericalBinaryConfig) else 1.0
    least_first = mean_assignment(latent.flatten(0, -2) * (4 / config.entropy.temperature * scale), bits)
    axes = dim if bits is None else bits
    return least_first.unflatten(1, (2,) * axes).permute(0, *range(axes, 0, -1)).flatten(1)
