"""Finite scalar perturbation (FSP, arXiv 2602.17133): scalars in [0, 1], trained with noise in place of rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.config import Config
from zoo.quantizers.base import DigitsConfig, Quantized, Quantizer, straight_through

Distribution = Literal["tanh", "sigmoid", "normal", "laplace", "cauchy"]

_UNIFORM_DEVIATION = 12**-0.5  # standard deviation of the uniform distribution on [0, 1]


def _tanh(z: Tensor) -> Tensor:
    return (z.tanh() + 1) / 2


def _tanh_inverse(p: Tensor) -> Tensor:
    return (2 * p - 1).atanh()


def _laplace(z: Tensor) -> Tensor:
    return (1 - torch.expm1(-z.abs()) * z.sign()) / 2


def _laplace_inverse(p: Tensor) -> Tensor:
    return -(p - 0.5).sign() * torch.log1p(-2 * (p - 0.5).abs())


def _cauchy(z: Tensor) -> Tensor:
    return z.atan() / math.pi + 0.5


def _cauchy_inverse(p: Tensor) -> Tensor:
    return ((p - 0.5) * math.pi).tan()


# cumulative distribution functions and their inverses
_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (_tanh, _tanh_inverse),
    "sigmoid": (torch.sigmoid, torch.logit),
    "normal": (torch.special.ndtr, torch.special.ndtri),
    "laplace": (_laplace, _laplace_inverse),
    "cauchy": (_cauchy, _cauchy_inverse),
}


@dataclass(frozen=True)
class MomentsConfig(Config):
    """What the moments of each dimension over the batch are pulled to: those of the distribution, with its variance.

    The variances: tanh pi^2 / 12, sigmoid pi^2 / 3, normal 1, laplace 2, cauchy none.
    """

    mean: float = 0.0
    variance: float = 0.8225
    skewness: float = 0.0
    kurtosis: float = 0.0  # excess over the normal distribution's


@dataclass(frozen=True)
class FiniteScalarPerturbationConfig(DigitsConfig):
    """`levels`: how many values each dimension takes; its length is the latent width."""

    kind = "finite_scalar_perturbation"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    distribution: Distribution = "tanh"  # whose cumulative distribution function maps latents to [0, 1]
    quantize_rate: float = 0.0  # share of the elements that training rounds; the others get noise within a level
    inverse: bool = False  # whether codes go back through the inverse function; else they have unit variance
    moments: MomentsConfig = MomentsConfig()

    def __post_init__(self) -> None:
        self.require_levels(least=2)
        known = get_args(Distribution)
        self.require(self.distribution in known, f"distribution {', '.join(known)}", self.distribution)
        self.require(0 <= self.quantize_rate <= 1, "a quantize_rate in [0, 1]", self.quantize_rate)


class FiniteScalarPerturbation(Quantizer):
    """FSP. Level k of L is the middle (k + 1/2) / L of its part of [0, 1]; dimension 0 is the fastest digit.

    In training an element that is not rounded gets uniform noise of the width of a level, unless that would leave
    [0, 1]; indices stay the rounded ones. A latent that is NaN gets digit 0 and a code of NaN.

    Losses (training mode only): `moment_mean`, `moment_variance`, `moment_skewness` and `moment_kurtosis`, mean squared
    distances of the moments of each dimension over the batch to those of the config; 0 for less than two latents. The
    paper's weights: 0.1, 0.07, 0.06 and 0.05.
    """

    config: FiniteScalarPerturbationConfig
    levels: Tensor
    basis: Tensor

    def __init__(self, config: FiniteScalarPerturbationConfig) -> None:
        super().__init__(config)
        self.register_constant("levels", torch.tensor, config.levels)
        self.register_constant("basis", torch.tensor, config.basis)
        self.function, self.inverse = _FUNCTIONS[config.distribution]

    def quantize(self, z: Tensor) -> Quantized:
        share = self.function(z)
        scaled = (share.detach() * self.levels).floor().nan_to_num(nan=0.0)
        digits = torch.minimum(scaled, self.levels - 1)
        rounded = straight_through(share, (digits + 0.5) / self.levels)
        losses = {}
        if self.training:
            losses = self._moment_losses(z.flatten(0, -2))
            if self.config.quantize_rate < 1:
                rounded = self._perturb(share, rounded)
        if self.config.inverse:
            codes = straight_through(z, self._codes(rounded.detach()))
        else:
            codes = self._codes(rounded)
        return Quantized(codes, ((digits.long() * self.basis).sum(-1),), losses)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        digits = indices[..., None] // self.basis % self.levels
        return self._codes((digits.float() + 0.5) / self.levels)

    def _codes(self, share: Tensor) -> Tensor:
        if self.config.inverse:
            eps = torch.finfo(share.dtype).eps
            return self.inverse(share.clamp(eps, 1 - eps))
        return (share - 0.5) / _UNIFORM_DEVIATION

    def _perturb(self, share: Tensor, rounded: Tensor) -> Tensor:
        moved = share + (torch.rand_like(share) * 2 - 1) / (2 * self.levels)
        moved = torch.where((moved > 0) & (moved < 1), moved, share)
        return torch.where(torch.rand_like(share) > self.config.quantize_rate, moved, rounded)

    def _moment_losses(self, z: Tensor) -> dict[str, Tensor]:
        wanted = self.config.moments
        if len(z) < 2:
            zero = (z * 0).sum()
            return {f"moment_{name}": zero for name in ("mean", "variance", "skewness", "kurtosis")}
        variance, mean = torch.var_mean(z, dim=0)
        scores = (z - mean) / variance.clamp_min(1e-16).sqrt()
        kurtosis = scores.pow(4).mean(0) - 3
        return {
            "moment_mean": (mean - wanted.mean).square().mean(),
            "moment_variance": (variance - wanted.variance).square().mean(),
            "moment_skewness": (scores.pow(3).mean(0) - wanted.skewness).square().mean(),
            "moment_kurtosis": (kurtosis - wanted.kurtosis).square().mean(),
        }


FiniteScalarPerturbationConfig.quantizer = FiniteScalarPerturbation
