"""Checks of MaskBit's fixtures that go beyond the tokenizer: its discriminator, and the losses of both players."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_visual.parity.adversarial import LossCase, blur_discriminator, gradients
from zoo.losses.adversarial import (
    LeCam,
    hinge_discriminator_loss,
    linear_generator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    vanilla_discriminator_loss,
)
from zoo.losses.discriminators import PatchGAN, PatchGANConfig
from zoo.losses.vqgan import VQGANLoss, VQGANLossConfig
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case | DiscriminatorCase | LossCase:
    """The case that fits the original's class."""
    original = fixture.meta["original"]["class"]
    if original == "NLayerDiscriminatorv2":
        return DiscriminatorCase(fixture, family)
    return MaskBitLossCase(fixture, family) if original == "VQGANLoss" else Case(fixture, family)


def _discriminator(kwargs: dict[str, Any]) -> nn.Module:
    if kwargs["name"] == "Original":
        return PatchGAN(PatchGANConfig(kwargs.get("num_channels", 3), kwargs["hidden_channels"], kwargs["num_stages"]))
    return blur_discriminator(kwargs)


class DiscriminatorCase:
    """The discriminator alone, its single losses and LeCAM."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        defaults = {"hidden_channels": 64, "num_stages": 3, "blur_resample": False}
        self.network = blur_discriminator({**defaults, **fixture.meta["original"]["kwargs"]})
        self.network.load_state_dict(fixture.weights)

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"logits": self.network(inputs["image"])}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        real, fake = self.network(inputs["real"]), self.network(inputs["fake"])
        lecam = LeCam(settings["ema_decay"])
        lecam.ema_real_logits_mean.copy_(inputs["ema_real"])
        lecam.ema_fake_logits_mean.copy_(inputs["ema_fake"])
        hinge, penalty = hinge_discriminator_loss(real, fake), lecam(real, fake)
        total = hinge + settings["lecam_weight"] * penalty
        total.backward()
        outputs = {
            "loss.hinge_d": hinge,
            "loss.lecam": penalty,
            "loss.total": total,
            "loss.hinge_g": linear_generator_loss(fake),
            "loss.vanilla_d": vanilla_discriminator_loss(real, fake),
            "loss.non_saturating_d": non_saturating_discriminator_loss(real, fake),
            "loss.non_saturating_g": non_saturating_generator_loss(fake),
            "state.ema_real": lecam.ema_real_logits_mean,
            "state.ema_fake": lecam.ema_fake_logits_mean,
            **gradients(self.network, ""),
        }
        image = inputs["fake"].requires_grad_()
        (slope,) = torch.autograd.grad(linear_generator_loss(self.network(image)), image)
        stride = settings["grad_image_stride"]
        return {**outputs, "grad.image": slope[..., ::stride, ::stride]}


class MaskBitLossCase(LossCase):
    """MaskBit's loss, whose settings are the constructor arguments."""

    def build(self, settings: dict[str, Any]) -> VQGANLoss:
        stated = settings["loss_config"]
        objective = stated["discriminator_loss"].replace("-", "_")
        config = VQGANLossConfig(
            reconstruction=stated["reconstruction_loss"],
            reconstruction_weight=stated["reconstruction_weight"],
            perceptual_weight=stated["perceptual_weight"],
            quantizer_weight=stated["quantizer_weight"],
            entropy_annealing_factor=stated["entropy_annealing_factor"],
            entropy_annealing_steps=stated["entropy_annealing_steps"],
            discriminator_objective=objective,
            generator_objective=objective,
            discriminator_weight=stated["discriminator_weight"],
            discriminator_factor=stated["discriminator_factor"],
            discriminator_start=stated["discriminator_start"],
            adaptive_weight=stated["discriminator_gradient_penalty"] == "adopt_weight",
            lecam_weight=stated["lecam_regularization_weight"],
            lecam_decay=stated.get("ema_decay", 0.999),
        )
        return VQGANLoss(config, _discriminator(settings["discriminator_config"]), image_range=(0.0, 1.0))

    def quantizer_loss(self, inputs: Named, settings: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        return inputs["quantizer_loss"], inputs["entropy_loss"]
