"""The training loss of VQGAN-like tokenizers: both players' terms, with their weights and schedules.

The defaults are those of MaskBit and VQGAN+ (arXiv 2409.16211); other values give VQGAN's (arXiv 2012.09841), TiTok's,
LlamaGen's, BSQ's and Open-MAGVIT2's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.losses.adversarial import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    AdversarialKind,
    LeCam,
    adaptive_weight,
    r1_penalty,
)
from zoo.losses.frozen import Frozen
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES


@dataclass(frozen=True)
class AdversaryConfig(Config):
    """Weights and schedule of the adversarial terms; a step is one update of the generator."""

    discriminator_objective: AdversarialKind = "hinge"
    generator_objective: AdversarialKind = "hinge"
    discriminator_weight: float = 0.02  # of the generator's term
    discriminator_factor: float = 1.0  # of the adversarial terms of both players; 0 before discriminator_start
    discriminator_start: int = 20000
    generator_start: int = 0  # before this step the discriminator learns alone
    discriminator_warmup: int = 0  # steps after the start over which the generator's term rises to its weight
    adaptive_weight: bool = False
    adaptive_weight_maximum: float = 1e4
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999
    lecam_convention: Literal["means", "logits"] = "means"  # with "logits" the factor is of this term too
    r1_weight: float = 0.0  # of the gradient penalty on real images ...
    r1_interval: int = 16  # ... which comes every so many steps, and then as many times as strong
    consistency_weight: float = 0.0  # of how far logits move when the discriminator augments its images anew

    def __post_init__(self) -> None:
        for kind in (self.discriminator_objective, self.generator_objective):
            self.require(kind in DISCRIMINATOR_LOSSES, f"an objective of {', '.join(DISCRIMINATOR_LOSSES)}", kind)
        self.require(
            self.lecam_convention in ("means", "logits"), "lecam_convention means or logits", self.lecam_convention
        )
        steps = (self.discriminator_start, self.generator_start, self.discriminator_warmup)
        self.require(min(steps) >= 0, "discriminator_start, generator_start and discriminator_warmup >= 0", steps)
        self.require(self.r1_interval >= 1, "r1_interval >= 1", self.r1_interval)


@dataclass(frozen=True)
class VQGANLossConfig(AdversaryConfig):
    """Weights and schedules of all terms."""

    reconstruction: Literal["l1", "l2", "smooth_l1"] = "l2"
    reconstruction_weight: float = 4.0
    l1_weight: float = 0.0  # of a mean absolute error beside it (UniTok)
    perceptual_weight: float = 0.1
    quantizer_weight: float = 1.0
    entropy_annealing_factor: float = 2.0  # the entropy term starts at 1 + factor times its weight ...
    entropy_annealing_steps: int = 2000  # ... and comes down to its weight linearly over these steps

    def __post_init__(self) -> None:
        super().__post_init__()
        known = " or ".join(RECONSTRUCTION_LOSSES)
        self.require(self.reconstruction in RECONSTRUCTION_LOSSES, f"reconstruction {known}", self.reconstruction)


@dataclass(frozen=True)
class LossTerms:
    """A loss to minimise and what it consists of; all but the total is detached, for logs."""

    total: Tensor  # scalar
    terms: dict[str, Tensor]  # the weighted terms, which sum up to the total, and statistics
    values: dict[str, Tensor]  # the terms before their weights, and the statistics


def frame_by_frame(x: Tensor) -> Tensor:
    """The frames (B T, C, H, W) of videos (B, C, T, H, W); images as they are."""
    return x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x


class VQGANLoss(nn.Module):
    """Both players' losses; the task alternates them, with one optimizer for the tokenizer and one for `discriminator`.

    Videos (B, C, T, H, W) count frame by frame.

    The perceptual network is frozen, and no part of the state.

    Args:
        config: weights and schedules.
        discriminator: images to logits; None for training without an adversary.
        perceptual: distance (images, targets) -> (B,) of images in [-1, 1], such as FeatureDistance or LogitDistance;
            None for no such term.
        image_range: lowest and highest value of the images that the tokenizer takes; they are moved to [-1, 1] for the
            perceptual term only, and never clamped.
    """

    def __init__(
        self,
        config: VQGANLossConfig,
        discriminator: nn.Module | None,
        perceptual: nn.Module | None = None,
        *,
        image_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.config = config
        self.image_range = image_range
        self.perceptual = None if perceptual is None else Frozen(perceptual)
        self.discriminator = discriminator
        self.lecam = None if discriminator is None else LeCam(config.lecam_decay, config.lecam_convention)

    def factor(self, step: int) -> float:
        """Factor of the adversarial terms: 0 before the start step and without a discriminator."""
        started = self.discriminator is not None and step >= self.config.discriminator_start
        return self.config.discriminator_factor if started else 0.0

    def generator_loss(
        self,
        images: Tensor,
        reconstructions: Tensor,
        quantizer_loss: Tensor,
        *,
        step: int,
        entropy_loss: Tensor | None = None,
        last_layer_weight: Tensor | None = None,
    ) -> LossTerms:
        """Loss of the tokenizer; in evaluation mode without the adversarial term.

        The gradient also runs into the discriminator's parameters unless they are set to need none.

        Args:
            images: (B, 3, H, W).
            reconstructions: the same shape and range, with gradient.
            quantizer_loss: scalar, all the quantizer's losses already weighted, the entropy term included.
            step: updates made so far.
            entropy_loss: scalar, the weighted entropy term alone, which is annealed; None for none.
            last_layer_weight: of the decoder; needed for the adaptive weight.

        Returns:
            Terms `reconstruction`, `perceptual`, `quantizer`, `adversarial`, and the statistic `adversarial_weight`.

        Raises:
            ValueError: if the adaptive weight is on and the last layer is missing.
        """
        config = self.config
        images, reconstructions = frame_by_frame(images), frame_by_frame(reconstructions)
        values = {"reconstruction": RECONSTRUCTION_LOSSES[config.reconstruction](reconstructions, images).mean()}
        terms = {"reconstruction": config.reconstruction_weight * values["reconstruction"]}
        if config.l1_weight:
            values["l1"] = RECONSTRUCTION_LOSSES["l1"](reconstructions, images).mean()
            terms["l1"] = config.l1_weight * values["l1"]
        if self.perceptual is not None:
            low, high = self.image_range
            scale, shift = 2 / (high - low), (high + low) / (high - low)
            values["perceptual"] = self.perceptual(reconstructions * scale - shift, images * scale - shift).mean()
            terms["perceptual"] = config.perceptual_weight * values["perceptual"]
        nll = sum(terms.values())
        if entropy_loss is not None:
            remaining = max(0.0, 1 - step / config.entropy_annealing_steps) if config.entropy_annealing_steps else 0.0
            quantizer_loss = quantizer_loss + remaining * config.entropy_annealing_factor * entropy_loss
        values["quantizer"] = quantizer_loss
        terms["quantizer"] = config.quantizer_weight * quantizer_loss
        statistics = {}
        factor = self.factor(step) if step >= config.generator_start else 0.0
        if self.training and self.discriminator is not None and factor:
            adversarial = GENERATOR_LOSSES[config.generator_objective](self.discriminator(reconstructions))
            if config.discriminator_warmup:
                factor *= min(1.0, (step - config.discriminator_start + 1) / config.discriminator_warmup)
            weight = adversarial.new_full((), factor * config.discriminator_weight)
            if config.adaptive_weight:
                if last_layer_weight is None:
                    raise ValueError(
                        "the adaptive weight needs last_layer_weight, the weight of the decoder's last layer"
                    )
                weight = weight * adaptive_weight(nll, adversarial, last_layer_weight, config.adaptive_weight_maximum)
            values["adversarial"] = adversarial
            terms["adversarial"] = weight * adversarial
            statistics["adversarial_weight"] = weight
        return _collect(terms, values, statistics)

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor, *, step: int) -> LossTerms:
        """Loss of the discriminator; in training mode LeCam's running means move.

        Real and reconstructed images pass one after the other, so batch norms see them apart.

        Args:
            images: (B, C, H, W).
            reconstructions: the same shape and range; detached here.
            step: updates of the generator made so far.

        Returns:
            Terms `adversarial`, `lecam`, `r1` and `consistency` (arXiv 2002.04724, of both kinds of images), and the
            statistics `logits_real` and `logits_fake` (means).

        Raises:
            ValueError: there is no discriminator.
        """
        if self.discriminator is None or self.lecam is None:
            raise ValueError("expected a discriminator, got None")
        config = self.config
        images, reconstructions = frame_by_frame(images), frame_by_frame(reconstructions)
        penalised = config.r1_weight > 0 and step % config.r1_interval == 0
        images = images.detach().requires_grad_(penalised)
        real = self.discriminator(images)
        fake = self.discriminator(reconstructions.detach())
        values = {"adversarial": DISCRIMINATOR_LOSSES[config.discriminator_objective](real, fake)}
        terms = {"adversarial": self.factor(step) * values["adversarial"]}
        if config.lecam_weight:
            values["lecam"] = self.lecam(real, fake)
            share = self.factor(step) if config.lecam_convention == "logits" else 1.0
            terms["lecam"] = share * config.lecam_weight * values["lecam"]
        if penalised:
            values["r1"] = r1_penalty(images, real)
            terms["r1"] = config.r1_weight * config.r1_interval * values["r1"]
        if config.consistency_weight:
            of_real = F.mse_loss(self.discriminator(images), real)
            values["consistency"] = of_real + F.mse_loss(self.discriminator(reconstructions.detach()), fake)
            terms["consistency"] = self.factor(step) * config.consistency_weight * values["consistency"]
        return _collect(terms, values, {"logits_real": real.float().mean(), "logits_fake": fake.float().mean()})


def _collect(terms: dict[str, Tensor], values: dict[str, Tensor], statistics: dict[str, Tensor]) -> LossTerms:
    total = sum(terms.values())
    logged = ({name: value.detach() for name, value in (losses | statistics).items()} for losses in (terms, values))
    return LossTerms(total, *logged)
