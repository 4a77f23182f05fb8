"""Checks of MaskBit's fixtures that go beyond the tokenizer: its discriminator, and the losses of both players."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo.losses.adversarial import (
    LeCam,
    hinge_discriminator_loss,
    linear_generator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    vanilla_discriminator_loss,
)
from zoo.losses.discriminators import BlurDiscriminator, BlurDiscriminatorConfig
from zoo.losses.vqgan import VQGANLoss, VQGANLossConfig
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case | DiscriminatorCase | LossCase:
    """The case that fits the original's class."""
    original = fixture.meta["original"]["class"]
    if original == "NLayerDiscriminatorv2":
        return DiscriminatorCase(fixture, family)
    return LossCase(fixture, family) if original == "VQGANLoss" else Case(fixture, family)


def _discriminator(kwargs: dict[str, Any]) -> BlurDiscriminator:
    if not kwargs.get("blur_resample", True):
        raise ValueError("expected a discriminator with blur downsampling; the one with average pooling is not here")
    return BlurDiscriminator(
        BlurDiscriminatorConfig(
            in_channels=kwargs["num_channels"],
            hidden_channels=kwargs["hidden_channels"],
            num_stages=kwargs["num_stages"],
            blur_kernel_size=kwargs["blur_kernel_size"],
        )
    )


class DiscriminatorCase:
    """The discriminator alone, its single losses and LeCAM."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.network = _discriminator(fixture.meta["original"]["kwargs"])
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
            **_gradients(self.network, ""),
        }
        image = inputs["fake"].requires_grad_()
        (slope,) = torch.autograd.grad(linear_generator_loss(self.network(image)), image)
        stride = settings["grad_image_stride"]
        return {**outputs, "grad.image": slope[..., ::stride, ::stride]}


class LossCase:
    """The whole training loss of either player, the perceptual term being zero."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        kwargs = fixture.meta["original"]["kwargs"]
        stated = kwargs["loss_config"]
        adaptive = stated["discriminator_gradient_penalty"] == "adopt_weight"
        config = VQGANLossConfig(
            reconstruction=stated["reconstruction_loss"],
            reconstruction_weight=stated["reconstruction_weight"],
            perceptual_weight=stated["perceptual_weight"],
            quantizer_weight=stated["quantizer_weight"],
            entropy_annealing_factor=stated["entropy_annealing_factor"],
            entropy_annealing_steps=stated["entropy_annealing_steps"],
            discriminator_objective=stated["discriminator_loss"].replace("-", "_"),
            generator_objective=stated["discriminator_loss"].replace("-", "_"),
            discriminator_weight=stated["discriminator_weight"],
            discriminator_factor=stated["discriminator_factor"],
            discriminator_start=stated["discriminator_start"],
            adaptive_weight=adaptive,
            lecam_weight=stated["lecam_regularization_weight"],
        )
        self.losses = VQGANLoss(config, _discriminator(kwargs["discriminator_config"]), image_range=(0.0, 1.0))
        self.losses.load_state_dict(
            {f"lecam.{key}" if key.startswith("ema_") else key: value for key, value in fixture.weights.items()}
        )

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        weight = inputs["last_weight"].requires_grad_()
        reconstruction = F.conv2d(inputs["features"], weight, padding=1)
        step = settings["global_step"]
        if settings["player"] == "discriminator":
            losses = self.losses.discriminator_loss(inputs["image"], reconstruction, step=step)
            losses.total.backward()
            return {
                "loss.discriminator": losses.total,
                "loss.lecam": losses.terms["lecam"],
                "state.ema_real": self.losses.lecam.ema_real_logits_mean,
                "state.ema_fake": self.losses.lecam.ema_fake_logits_mean,
                **_gradients(self.losses.discriminator, "discriminator."),
            }
        losses = self.losses.generator_loss(
            inputs["image"],
            reconstruction,
            inputs["quantizer_loss"],
            step=step,
            entropy_loss=inputs["entropy_loss"],
            last_layer_weight=weight,
        )
        (slope,) = torch.autograd.grad(losses.total, weight)
        return {
            "loss.generator": losses.total,
            "loss.rec": losses.terms["reconstruction"],
            "loss.quantizer": losses.terms["quantizer"],
            "loss.gan_weighted": losses.terms.get("adversarial", torch.zeros(())),
            "grad.last_weight": slope,
        }


def _gradients(module: nn.Module, prefix: str) -> Named:
    return {f"grad.{prefix}{key}": p.grad for key, p in module.named_parameters() if p.grad is not None}
