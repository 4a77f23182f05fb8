"""The training loss of audio codecs: waveform, spectra, intelligibility, discriminators and their features.

Weighed by fixed numbers as in DAC (arXiv 2306.06546), or by shares of the gradient as in EnCodec (arXiv 2210.13438).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.losses.audio_discriminators import (
    Judgement,
    Objective,
    STFTDiscriminatorConfig,
    WaveDiscriminatorConfig,
    discriminator_loss,
    feature_loss,
    generator_loss,
    summed_feature_loss,
)
from zoo.losses.balancer import Balancer, BalancerConfig
from zoo.losses.frequency_discriminators import FrequencyDiscriminatorConfig
from zoo.losses.intelligibility import IntelligibilityLoss
from zoo.losses.magnitude_discriminators import MagnitudeDiscriminatorConfig
from zoo.losses.mel import LogMelLoss, LogMelLossConfig
from zoo.losses.multi_resolution import CompressedSpectrumLoss, MultiResolutionSTFT, MultiResolutionSTFTConfig
from zoo.losses.scale_discriminators import PeriodDiscriminatorConfig, ScaleDiscriminatorConfig
from zoo.losses.spectral import MultiScaleMelLoss, MultiScaleMelLossConfig, STFTDistance
from zoo.losses.spectrum_discriminators import SpectrumDiscriminatorConfig
from zoo.losses.vqgan import LossTerms
from zoo.ops.precision import full_precision

AnyDiscriminators = (
    STFTDiscriminatorConfig
    | WaveDiscriminatorConfig
    | MagnitudeDiscriminatorConfig
    | ScaleDiscriminatorConfig
    | PeriodDiscriminatorConfig
    | FrequencyDiscriminatorConfig
    | SpectrumDiscriminatorConfig
)
_CHANCE = {"hinge": 2.0, "clamped_hinge": 2.0, "least_squares": 0.5}


@dataclass(frozen=True)
class JuryConfig(Config):
    """Discriminators that judge together, and the generator's two terms of them.

    Attributes:
        discriminators: all losses are means over all of them.
        objective: of both players.
        adversarial_weight, feature_weight: of the generator's two terms.
        summed: losses are sums over the discriminators, and over their feature maps, instead of means (DAC).
    """

    discriminators: tuple[AnyDiscriminators, ...] = (STFTDiscriminatorConfig(),)
    objective: Objective = "hinge"
    adversarial_weight: float = 4.0
    feature_weight: float = 4.0
    summed: bool = False

    def __post_init__(self) -> None:
        self.require(len(self.discriminators) >= 1, "at least one discriminator", self.discriminators)
        weights = (self.adversarial_weight, self.feature_weight)
        self.require(min(weights) >= 0, "weights >= 0", weights)


@dataclass(frozen=True)
class CodecAdversaryConfig(JuryConfig):
    """All discriminators: one jury, and any number of others; a step is one update of the generator.

    Attributes:
        discriminator_start: the step from which the discriminators learn and count.
        others: juries with an objective and terms of their own; what all discriminators minimise is the sum.
    """

    discriminator_start: int = 0
    others: tuple[JuryConfig, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.discriminator_start >= 0, "discriminator_start >= 0", self.discriminator_start)

    @property
    def juries(self) -> tuple[JuryConfig, ...]:
        return (self, *self.others)

    @property
    def chance(self) -> float:
        """The mean over the juries of the loss of a discriminator, before any sum, that tells nothing."""
        return sum(_CHANCE[jury.objective] for jury in self.juries) / len(self.juries)


@dataclass(frozen=True)
class CodecLossConfig(Config):
    """Terms and weights; the defaults are those of EnCodec's recipe. A term whose weight is 0 is left out.

    Attributes:
        waveform_weight: of the mean absolute difference of samples.
        mel: spectra at several resolutions; None for no such term.
        mel_weight: of it.
        stft_weight: of `STFTDistance`.
        multi_resolution: any number of `MultiResolutionSTFT`, which bring their weights; one term, their sum.
        compressed_weight: of `CompressedSpectrumLoss`.
        intelligibility_weight: of `IntelligibilityLoss`, which is close to STOI.
        balanced: weights are shares of the gradient at the reconstruction, see `zoo.losses.balancer`.
        balancer_decay: of its running means.
    """

    waveform_weight: float = 0.1
    mel: LogMelLossConfig | MultiScaleMelLossConfig | None = MultiScaleMelLossConfig()
    mel_weight: float = 2.0
    stft_weight: float = 0.0
    multi_resolution: tuple[MultiResolutionSTFTConfig, ...] = ()
    compressed_weight: float = 0.0
    intelligibility_weight: float = 0.0
    balanced: bool = True
    balancer_decay: float = 0.999

    def __post_init__(self) -> None:
        weights = (
            self.waveform_weight, self.mel_weight, self.stft_weight, self.compressed_weight, self.intelligibility_weight
        )  # fmt: skip
        self.require(min(weights) >= 0, "weights >= 0", weights)


class CodecLoss(nn.Module):
    """Both players' losses; the task alternates them, with one optimizer for the codec and one for `discriminator`.

    Args:
        config: of the terms on signals and spectra.
        adversary: of the discriminators; None for training without.
        sample_rate: of the signals in Hz, for the terms that have no setting of their own for it.

    Raises:
        ValueError: all weights are 0.
    """

    def __init__(
        self, config: CodecLossConfig, adversary: CodecAdversaryConfig | None = None, sample_rate: int = 24_000
    ) -> None:
        super().__init__()
        self.config, self.adversary = config, adversary
        self.weights = {
            "waveform": config.waveform_weight,
            "mel": config.mel_weight,
            "stft": config.stft_weight,
            "multi_resolution": float(len(config.multi_resolution) > 0),
            "compressed": config.compressed_weight,
            "intelligibility": config.intelligibility_weight,
        }
        self.mel: LogMelLoss | MultiScaleMelLoss | None = None
        if config.mel is not None:
            self.mel = (LogMelLoss if isinstance(config.mel, LogMelLossConfig) else MultiScaleMelLoss)(config.mel)  # type: ignore[arg-type]
        self.stft = STFTDistance()
        self.multi_resolution = nn.ModuleList(MultiResolutionSTFT(part) for part in config.multi_resolution)
        self.compressed = CompressedSpectrumLoss(sample_rate)
        self.intelligibility = IntelligibilityLoss(sample_rate)
        self.discriminator: nn.ModuleList | None = None
        if adversary is not None:
            self.discriminator = nn.ModuleList(
                part.build() for jury in adversary.juries for part in jury.discriminators
            )
            for jury, (adversarial, features) in zip(adversary.juries, self._terms):
                self.weights |= {adversarial: jury.adversarial_weight, features: jury.feature_weight}
        if max(self.weights.values()) == 0:
            raise ValueError(f"expected weights that are not all 0, got {self.weights}")
        self.balancer: Balancer | None = None
        if config.balanced:
            names = tuple(name for name, weight in self.weights.items() if weight > 0)
            weights = tuple(self.weights[name] for name in names)
            self.balancer = Balancer(BalancerConfig(names, weights, decay=config.balancer_decay))

    def factor(self, step: int) -> float:
        """1 in the steps in which the discriminators learn and count, otherwise 0."""
        return float(self.adversary is not None and step >= self.adversary.discriminator_start)

    def generator_loss(self, signal: Tensor, reconstruction: Tensor, quantizer_loss: Tensor, *, step: int) -> LossTerms:
        """Loss of the codec; in evaluation mode without the adversarial terms.

        With balanced gradients the value of the total is that of the balanced sum, and its gradient the balanced one.

        Args:
            signal: (B, C, T).
            reconstruction: the same shape, with gradient.
            quantizer_loss: scalar, the quantizer's and other losses already weighted; never balanced.
            step: updates made so far.

        Returns:
            Terms `waveform`, `mel`, `stft`, `multi_resolution`, `compressed`, `intelligibility`, `adversarial` and
            `features` (those of the second jury are `adversarial_2` and `features_2`), as far as they count, and
            `quantizer`.
        """
        values = self._distances(signal, reconstruction)
        if self.training and self.factor(step) > 0:
            values |= self._adversarial(signal, reconstruction)
        terms = {name: self.weights[name] * value for name, value in values.items()}
        if self.balancer is not None and values and torch.is_grad_enabled() and reconstruction.requires_grad:
            with full_precision(signal):  # which would change the types of gradients
                balanced = self.balancer(values, reconstruction)
            surrogate = (balanced.gradient.detach() * reconstruction).sum()
            total = surrogate + (balanced.effective - surrogate).detach()
        else:
            total = sum(terms.values(), start=reconstruction.new_zeros(()))
        terms["quantizer"] = values["quantizer"] = quantizer_loss
        return LossTerms(total + quantizer_loss, _detached(terms), _detached(values))

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, step: int) -> LossTerms:
        """Loss of the discriminators on signals and detached reconstructions.

        Raises:
            ValueError: there are none.
        """
        juries, judged, mistaken = self._of_adversary.juries, self._judge(real), self._judge(fake.detach())
        losses = [discriminator_loss(a, b, jury.objective) for jury, a, b in zip(juries, judged, mistaken)]
        totals = [loss * len(a) if jury.summed else loss for jury, loss, a in zip(juries, losses, judged)]
        loss, total = torch.stack(losses).mean(), torch.stack(totals).sum()
        logits = {
            name: torch.stack([one.logits.detach().float().mean() for jury in judgements for one in jury]).mean()
            for name, judgements in (("logits_real", judged), ("logits_fake", mistaken))
        }
        return LossTerms(total, {"adversarial": total.detach(), **logits}, {"adversarial": loss.detach(), **logits})

    def _distances(self, signal: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        values = {}
        with full_precision(signal):
            one, other = reconstruction.float(), signal.float()
            if self.weights["waveform"] > 0:
                values["waveform"] = F.l1_loss(one, other)
            if self.mel is not None and self.weights["mel"] > 0:
                values["mel"] = self.mel(one, other)
            if self.weights["stft"] > 0:
                values["stft"] = self.stft(one, other)
            if self.weights["multi_resolution"] > 0:
                parts = [part.config.weight * part(one, other) for part in self.multi_resolution]  # type: ignore[union-attr]
                values["multi_resolution"] = torch.stack(parts).sum()
            if self.weights["compressed"] > 0:
                values["compressed"] = self.compressed(one, other)
            if self.weights["intelligibility"] > 0:
                values["intelligibility"] = self.intelligibility(one, other)
        return values

    def _adversarial(self, signal: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            real = self._judge(signal)
        fake = self._judge(reconstruction)
        values = {}
        for jury, (adversarial, features), a, b in zip(self._of_adversary.juries, self._terms, real, fake):
            values[adversarial] = generator_loss(b, jury.objective) * (len(b) if jury.summed else 1)
            values[features] = (summed_feature_loss if jury.summed else feature_loss)(a, b)
        return values

    def _judge(self, signal: Tensor) -> list[tuple[Judgement, ...]]:
        """The judgements of each jury."""
        parts = iter(self.discriminator or ())
        juries = self._of_adversary.juries
        return [tuple(one for _ in jury.discriminators for one in next(parts)(signal)) for jury in juries]

    @property
    def _terms(self) -> list[tuple[str, str]]:
        """Names of the generator's two terms of each jury."""
        marks = ["", *(f"_{i}" for i, _ in enumerate(self._of_adversary.others, 2))]
        return [(f"adversarial{mark}", f"features{mark}") for mark in marks]

    @property
    def _of_adversary(self) -> CodecAdversaryConfig:
        if self.adversary is None:
            raise ValueError("expected a loss with discriminators, got one without")
        return self.adversary


def _detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}
