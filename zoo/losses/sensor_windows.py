"""Losses on windows of sensor signals, EEG and MEG: samples, correlation, amplitudes and phases of the spectrum.

BrainOmni, arXiv 2505.18185.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.ops.collective import mean_over_ranks
from zoo.ops.precision import full_precision


@dataclass(frozen=True)
class WindowLossConfig(Config):
    """Weights of the terms of `window_losses`; the defaults are those of BrainOmni's recipe."""

    time_weight: float = 1.0
    correlation_weight: float = 1.0
    amplitude_weight: float = 1.0
    phase_weight: float = 0.5

    def __post_init__(self) -> None:
        weights = tuple(self.weights.values())
        self.require(min(weights) >= 0 and max(weights) > 0, "weights >= 0 that are not all 0", weights)

    @property
    def weights(self) -> dict[str, float]:
        """By the names of the terms."""
        return {
            "time": self.time_weight,
            "correlation": self.correlation_weight,
            "amplitude": self.amplitude_weight,
            "phase": self.phase_weight,
        }


class WindowLoss(nn.Module):
    """Reconstructed and target windows (..., window) -> their weighted sum, and each term; there is no discriminator.

    In training the terms are those of the joined batch of all processes.
    """

    discriminator = None

    def __init__(self, config: WindowLossConfig) -> None:
        super().__init__()
        self.config = config

    def factor(self, step: int) -> float:
        """That of the discriminator which there is not."""
        return 0.0

    def forward(self, reconstruction: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with full_precision(target):
            values = window_losses(reconstruction.float(), target.float(), joined=self.training)
        total = sum(
            (weight * values[name] for name, weight in self.config.weights.items()), start=values["time"].new_zeros(())
        )
        return total, values


def normalized(windows: Tensor) -> Tensor:
    """Each window (..., window) at mean 0 and deviation 1: what training reconstructs."""
    centred = windows - windows.mean(-1, keepdim=True)
    return centred / (windows.std(-1, keepdim=True) + 1e-6)


def window_losses(reconstruction: Tensor, target: Tensor, *, joined: bool = False) -> dict[str, Tensor]:
    """The terms on windows (..., window) of one shape.

    `time`: L1; `correlation`: exp(-mean of Pearson's coefficients); `amplitude` and `phase`: L1 of the spectra's, under
    a Hamming window, phases in [-pi, pi] and not unwrapped. `joined`: that mean, of which a function is taken, is over
    all processes, which then call this together.
    """
    mean = correlations(reconstruction, target).mean()
    one, other = spectra(reconstruction), spectra(target)
    return {
        "time": F.l1_loss(reconstruction, target),
        "correlation": (-(mean_over_ranks(mean) if joined else mean)).exp(),
        "amplitude": F.l1_loss(one.abs(), other.abs()),
        "phase": F.l1_loss(one.angle(), other.angle()),
    }


def spectra(windows: Tensor) -> Tensor:
    """Windows (..., window) -> (..., window / 2 + 1), complex, of unit energy, under a periodic Hamming window."""
    taper = torch.hamming_window(windows.shape[-1], dtype=windows.dtype, device=windows.device)
    return torch.fft.rfft(windows * taper, norm="ortho")


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's coefficients (...) of pairs of windows (..., window)."""
    centred = [signal - signal.mean(-1, keepdim=True) for signal in (one, other)]
    covariance = (centred[0] * centred[1]).sum(-1) / (one.shape[-1] - 1)
    return covariance / (one.std(-1) * other.std(-1) + 1e-6)
