"""Checks of a VQGAN's training: the discriminator alone, and the whole losses of both players."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses.discriminators import BlurDiscriminator, BlurDiscriminatorConfig, PatchGAN, PatchGANConfig
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
        """The discriminator's terms as the original logs them: here weighted."""
        return result.terms

    def statistics(self, result: LossTerms, inputs: Named, settings: dict[str, Any]) -> Named:
        """What the original logs of the generator's adversarial term beside it."""
        return {}

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
        if settings["player"] == "generator":
            return self.generator(inputs, settings)
        losses = self.losses(settings)
        result = losses.discriminator_loss(
            inputs["image"], reconstruction(inputs["features"], inputs["last_weight"]), step=settings["global_step"]
        )
        result.total.backward()
        discriminator: Any = losses.discriminator
        lecam: Any = losses.lecam
        logged = self.logged(result)
        return {
            "loss.discriminator": result.total,
            "loss.adversarial": logged["adversarial"],
            "loss.lecam": logged.get("lecam", torch.zeros(())),
            "state.ema_real": lecam.ema_real_logits_mean,
            "state.ema_fake": lecam.ema_fake_logits_mean,
            **_running_means(discriminator),
            **gradients(discriminator, "discriminator."),
        }

    def generator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        result, weight = self.generator_terms(inputs, settings)
        (slope,) = torch.autograd.grad(result.total, weight)
        return {
            "loss.generator": result.total,
            "loss.rec": result.terms["reconstruction"],
            "loss.nll": result.terms["reconstruction"],
            "loss.quantizer": result.terms["quantizer"],
            "loss.gan_weighted": result.terms.get("adversarial", torch.zeros(())),
            "grad.last_weight": slope,
            **self.statistics(result, inputs, settings),
        }

    def generator_terms(self, inputs: Named, settings: dict[str, Any]) -> tuple[LossTerms, Tensor]:
        """The generator's loss, and the weight of the last convolution with its graph."""
        weight = inputs["last_weight"].clone().requires_grad_()
        quantizer_loss, entropy_loss = self.quantizer_loss(inputs, settings)
        result = self.losses(settings).generator_loss(
            inputs["image"],
            reconstruction(inputs["features"], weight),
            quantizer_loss,
            step=settings["global_step"],
            entropy_loss=entropy_loss,
            last_layer_weight=weight,
        )
        return result, weight


def reconstruction(features: Tensor, weight: Tensor) -> Tensor:
    """One convolution of given features (B, C, H, W)."""
    return F.conv2d(features, weight, padding=1)


def patchgan(settings: dict[str, Any]) -> PatchGAN:
    """The discriminator of the arguments `disc_ndf` and `disc_num_layers`."""
    return PatchGAN(PatchGANConfig(hidden_channels=settings["disc_ndf"], num_layers=settings["disc_num_layers"]))


def blur_discriminator(kwargs: dict[str, Any]) -> BlurDiscriminator:
    """The discriminator of the arguments of MaskBit's class and TiTok's: without blur it takes means of pixels.

    Raises:
        ValueError: an activation other than the leaky ReLU.
    """
    if kwargs.get("activation_fn", "leaky_relu") != "leaky_relu":
        raise ValueError(f"expected the activation leaky_relu, got {kwargs['activation_fn']}")
    return BlurDiscriminator(
        BlurDiscriminatorConfig(
            in_channels=kwargs.get("num_channels", 3),
            hidden_channels=kwargs["hidden_channels"],
            num_stages=kwargs["num_stages"],
            blur_kernel_size=kwargs.get("blur_kernel_size", 4) if kwargs["blur_resample"] else None,
        )
    )


_TAMING_DEFAULTS = {
    "disc_num_layers": 3, "disc_ndf": 64, "disc_factor": 1.0, "disc_weight": 1.0, "disc_loss": "hinge",
    "codebook_weight": 1.0, "disc_start": 0,
}  # fmt: skip
_SEED_VOKEN_DEFAULTS = {
    "gen_loss_weight": None, "lecam_loss_weight": None, "commit_weight": 0.25, "codebook_enlarge_ratio": 3,
    "codebook_enlarge_steps": 2000,
}  # fmt: skip


class TamingLossCase(LossCase):
    """Taming-transformers' loss, and SEED-Voken's descendant, which may fix the adversarial weight."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        super().__init__(fixture, family)
        self.descendant = fixture.meta["family"] != "taming_vqgan"
        self.kwargs = {**_TAMING_DEFAULTS, **(_SEED_VOKEN_DEFAULTS if self.descendant else {}), **self.kwargs}
        if self.kwargs.get("use_actnorm") or self.kwargs.get("use_blur") or self.kwargs.get("disc_conditional"):
            raise ValueError("expected a discriminator with batch norms, of images alone")

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
            generator_objective="non_saturating_image" if self.descendant else objective,
            discriminator_weight=settings["disc_weight"] if fixed is None else fixed,
            discriminator_factor=settings["disc_factor"],
            discriminator_start=settings["disc_start"],
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
        return result.values

    def statistics(self, result: LossTerms, inputs: Named, settings: dict[str, Any]) -> Named:
        """The weight without the factor, and the term; taming-transformers logs both before the start as well, and the
        term without its weight."""
        zero = torch.zeros(())
        started, _ = self.generator_terms(inputs, {**settings, "disc_start": 0, "disc_factor": 1.0})
        weight, term = started.values["adversarial_weight"], started.values["adversarial"]
        if self.descendant:
            weight = weight if "adversarial" in result.terms else zero
            term = result.terms.get("adversarial", zero)
        return {"statistic.d_weight": weight, "statistic.g_loss": term}


def _running_means(module: nn.Module) -> Named:
    means = [name.removesuffix(".running_mean") for name in module.state_dict() if name.endswith(".running_mean")]
    return {f"state.running_mean_of_{name}": module.state_dict()[f"{name}.running_mean"] for name in means}


def gradients(module: nn.Module, prefix: str) -> Named:
    """`grad.<prefix><key>` of every parameter that has a gradient."""
    return {f"grad.{prefix}{key}": p.grad for key, p in module.named_parameters() if p.grad is not None}
