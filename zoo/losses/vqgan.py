"""The training loss of VQGAN-like tokenizers: both players' terms, with their weights and schedules.

The defaults are those of MaskBit and VQGAN+ (arXiv 2409.16211); other values give VQGAN's (arXiv 2012.09841), TiTok's
and Open-MAGVIT2's.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from zoo.losses.adversarial import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, AdversarialKind, LeCam, adaptive_weight
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES


@dataclass(frozen=True)
class VQGANLossConfig:
    """Weights and schedules; a step is one update of the generator."""

    reconstruction: Literal["l1", "l2"] = "l2"
    reconstruction_weight: float = 4.0
    perceptual_weight: float = 0.1
    quantizer_weight: float = 1.0
    entropy_annealing_factor: float = 2.0  # the entropy term starts at 1 + factor times its weight ...
    entropy_annealing_steps: int = 2000  # ... and comes down to its weight linearly over these steps
    discriminator_objective: AdversarialKind = "hinge"
    generator_objective: AdversarialKind = "hinge"
    discriminator_weight: float = 0.02
    discriminator_factor: float = 1.0  # of the adversarial terms of both players; 0 before discriminator_start
    discriminator_start: int = 20000
    adaptive_weight: bool = False
    adaptive_weight_maximum: float = 1e4
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999
    lecam_convention: Literal["means", "logits"] = "means"

    def __post_init__(self) -> None:
        if self.reconstruction not in RECONSTRUCTION_LOSSES:
            raise ValueError(
                f"expected reconstruction {' or '.join(RECONSTRUCTION_LOSSES)}, got {self.reconstruction!r}"
            )
        for kind in (self.discriminator_objective, self.generator_objective):
            if kind not in DISCRIMINATOR_LOSSES:
                raise ValueError(f"expected an adversarial loss of {', '.join(DISCRIMINATOR_LOSSES)}, got {kind!r}")
        if self.lecam_convention not in ("means", "logits"):
            raise ValueError(f"expected lecam_convention means or logits, got {self.lecam_convention!r}")


@dataclass(frozen=True)
class LossTerms:
    """A loss to minimise and what it consists of."""

    total: Tensor  # scalar
    terms: dict[str, Tensor]  # the weighted terms, which sum up to the total, and statistics; detached, for logs


class VQGANLoss(nn.Module):
    """Both players' losses; the task alternates them, with one optimizer for the tokenizer and one for `discriminator`.

    Args:
        config: weights and schedules.
        discriminator: images to logits.
        perceptual: distance (images, targets) -> (B,) of images in [-1, 1], such as FeatureDistance or LogitDistance;
            None for no such term.
        image_range: lowest and highest value of the images that the tokenizer takes; they are moved to [-1, 1] for the
            perceptual term only, and never clamped.
    """

    def __init__(
        self,
        config: VQGANLossConfig,
        discriminator: nn.Module,
        perceptual: nn.Module | None = None,
        *,
        image_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.config = config
        self.image_range = image_range
        self.discriminator = discriminator
        self.perceptual = perceptual
        self.lecam = LeCam(config.lecam_decay, config.lecam_convention)

    def factor(self, step: int) -> float:
        """Factor of the adversarial terms: 0 before the start step."""
        return self.config.discriminator_factor if step >= self.config.discriminator_start else 0.0

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
        """Loss of the tokenizer.

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
        reconstruction = RECONSTRUCTION_LOSSES[config.reconstruction](reconstructions, images).mean()
        terms = {"reconstruction": config.reconstruction_weight * reconstruction}
        if self.perceptual is not None:
            low, high = self.image_range
            scale, shift = 2 / (high - low), (high + low) / (high - low)
            distance = self.perceptual(reconstructions * scale - shift, images * scale - shift)
            terms["perceptual"] = config.perceptual_weight * distance.mean()
        nll = sum(terms.values())
        if entropy_loss is not None:
            remaining = max(0.0, 1 - step / config.entropy_annealing_steps) if config.entropy_annealing_steps else 0.0
            quantizer_loss = quantizer_loss + remaining * config.entropy_annealing_factor * entropy_loss
        terms["quantizer"] = config.quantizer_weight * quantizer_loss
        statistics = {}
        if factor := self.factor(step):
            adversarial = GENERATOR_LOSSES[config.generator_objective](self.discriminator(reconstructions))
            weight = reconstruction.new_full((), factor * config.discriminator_weight)
            if config.adaptive_weight:
                if last_layer_weight is None:
                    raise ValueError(
                        "the adaptive weight needs last_layer_weight, the weight of the decoder's last layer"
                    )
                weight = weight * adaptive_weight(nll, adversarial, last_layer_weight, config.adaptive_weight_maximum)
            terms["adversarial"] = weight * adversarial
            statistics["adversarial_weight"] = weight
        return _collect(terms, statistics)

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor, *, step: int) -> LossTerms:
        """Loss of the discriminator; in training mode LeCam's running means move.

        Real and reconstructed images pass one after the other, so batch norms see them apart.

        Args:
            images: (B, C, H, W).
            reconstructions: the same shape and range; detached here.
            step: updates of the generator made so far.

        Returns:
            Terms `adversarial` and `lecam`, and the statistics `logits_real` and `logits_fake` (means).
        """
        config = self.config
        real = self.discriminator(images.detach())
        fake = self.discriminator(reconstructions.detach())
        terms = {"adversarial": self.factor(step) * DISCRIMINATOR_LOSSES[config.discriminator_objective](real, fake)}
        if config.lecam_weight:
            terms["lecam"] = config.lecam_weight * self.lecam(real, fake)
        return _collect(terms, {"logits_real": real.float().mean(), "logits_fake": fake.float().mean()})


def _collect(terms: dict[str, Tensor], statistics: dict[str, Tensor]) -> LossTerms:
    total = sum(terms.values())
    return LossTerms(total, {name: value.detach() for name, value in (terms | statistics).items()})
