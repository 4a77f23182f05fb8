"""Checks of a VQGAN's training: the discriminator alone, and the whole losses of both players."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses.discriminators import PatchGAN, PatchGANConfig
from zoo.losses.vqgan import LossTerms, VQGANLoss, VQGANLossConfig
from zoo.parity import Fixture, Named
from zoo.registry import Family


class LossCase:
    """Both players' losses. The reconstruction is one convolution of given features, and the perceptual term is zero.

    A family says in `build` and `quantizer_loss` what its original's settings mean.
    """

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.fixture = fixture
        self.kwargs: dict[str, Any] = fixture.meta["original"]["kwargs"]

    def build(self, settings: dict[str, Any]) -> VQGANLoss:
        """The losses with their discriminator, before the fixture's weights."""
        raise NotImplementedError

    def quantizer_loss(self, inputs: Named, settings: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The quantizer's weighted losses, and the entropy term alone where it is annealed."""
        raise NotImplementedError

    def logged(self, result: LossTerms) -> Named:
        """The terms as the original logs them: here weighted."""
        return result.terms

    def losses(self, settings: dict[str, Any]) -> VQGANLoss:
        """The losses as a step of the original finds them."""
        losses = self.build(settings)
        means = settings.get("lecam_ema_before", (0.0, 0.0))
        state = {
            "lecam.ema_real_logits_mean": torch.tensor([means[0]]),
            "lecam.ema_fake_logits_mean": torch.tensor([means[1]]),
        }
        for key, value in self.fixture.weights.items():
            state[f"lecam.{key}" if key.startswith("ema_") else key] = value
        losses.load_state_dict(state)
        return losses

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            discriminator: Any = self.losses({**self.kwargs, **settings}).discriminator
            return {"logits": discriminator.eval()(inputs["image"])}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        settings = {**self.kwargs, **settings}
        losses = self.losses(settings)
        weight = inputs["last_weight"].requires_grad_()
        reconstruction = F.conv2d(inputs["features"], weight, padding=1)
        step = settings["global_step"]
        if settings["player"] == "discriminator":
            result = losses.discriminator_loss(inputs["image"], reconstruction, step=step)
            result.total.backward()
            discriminator: Any = losses.discriminator
            lecam: Any = losses.lecam
            return {
                "loss.discriminator": result.total,
                "loss.adversarial": result.terms["adversarial"],
                "loss.lecam": self.logged(result).get("lecam", torch.zeros(())),
                "state.ema_real": lecam.ema_real_logits_mean,
                "state.ema_fake": lecam.ema_fake_logits_mean,
                **_running_means(discriminator),
                **gradients(discriminator, "discriminator."),
            }
        quantizer_loss, entropy_loss = self.quantizer_loss(inputs, settings)
        result = losses.generator_loss(
            inputs["image"],
            reconstruction,
            quantizer_loss,
            step=step,
            entropy_loss=entropy_loss,
            last_layer_weight=weight,
        )
        (slope,) = torch.autograd.grad(result.total, weight)
        zero = torch.zeros(())
        return {
            "loss.generator": result.total,
            "loss.rec": result.terms["reconstruction"],
            "loss.nll": result.terms["reconstruction"],
            "loss.quantizer": result.terms["quantizer"],
            "loss.gan_weighted": result.terms.get("adversarial", zero),
            "statistic.d_weight": result.terms.get("adversarial_weight", zero),
            "statistic.g_loss": self.logged(result).get("adversarial", zero),
            "grad.last_weight": slope,
        }


def patchgan(settings: dict[str, Any]) -> PatchGAN:
    """The discriminator of the arguments `disc_ndf` and `disc_num_layers`."""
    return PatchGAN(PatchGANConfig(hidden_channels=settings["disc_ndf"], num_layers=settings["disc_num_layers"]))


class TamingLossCase(LossCase):
    """Taming-transformers' loss, and those of its descendants that fix the adversarial weight (SEED-Voken)."""

    def build(self, settings: dict[str, Any]) -> VQGANLoss:
        fixed = settings.get("gen_loss_weight")
        objectives = {"hinge": "hinge", "vanilla": "vanilla", "non_saturate": "non_saturating_image"}
        objective: Any = objectives[settings["disc_loss"]]
        config = VQGANLossConfig(
            reconstruction="l1",
            reconstruction_weight=1.0,
            entropy_annealing_factor=settings.get("codebook_enlarge_ratio", 0.0),
            entropy_annealing_steps=settings.get("codebook_enlarge_steps", 0),
            discriminator_objective=objective,
            generator_objective="non_saturating_image" if "gen_loss_weight" in settings else objective,
            discriminator_weight=settings["disc_weight"] if fixed is None else fixed,
            discriminator_start=settings.get("disc_start", 0),
            adaptive_weight=fixed is None,
            lecam_weight=settings.get("lecam_loss_weight") or 0.0,
            lecam_decay=settings.get("lecam_ema_decay", 0.999),
            lecam_convention="logits",
        )
        return VQGANLoss(config, patchgan(settings))

    def quantizer_loss(self, inputs: Named, settings: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        codebook = settings["codebook_weight"] * inputs["codebook_loss"]
        if "commitment" not in inputs:
            return codebook, None
        return codebook + settings["commit_weight"] * inputs["commitment"], codebook

    def logged(self, result: LossTerms) -> Named:
        fixed = self.kwargs.get("gen_loss_weight") is not None  # such a weight is part of what is logged
        return {**result.values, "adversarial": result.terms["adversarial"]} if fixed else result.values


def _running_means(module: nn.Module) -> Named:
    means = [name.removesuffix(".running_mean") for name in module.state_dict() if name.endswith(".running_mean")]
    return {f"state.running_mean_of_{name}": module.state_dict()[f"{name}.running_mean"] for name in means}


def gradients(module: nn.Module, prefix: str) -> Named:
    """`grad.<prefix><key>` of every parameter that has a gradient."""
    return {f"grad.{prefix}{key}": p.grad for key, p in module.named_parameters() if p.grad is not None}
