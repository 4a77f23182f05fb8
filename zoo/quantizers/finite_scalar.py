"""Finite scalar quantisation (FSQ): each latent dimension is bounded and rounded to a few levels (arXiv 2309.15505).

The symmetric levels and the noise of training are those of arXiv 2411.19842 (section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.config import Config
from zoo.quantizers.base import DigitsConfig, Quantized, Quantizer, straight_through


@dataclass(frozen=True)
class NoiseDropoutConfig(Config):
    """In training, a random share of the elements is not rounded but gets uniform noise; indices stay the rounded ones.

    `around`: "latent" adds to the bounded latent noise as wide as one level, the rounding error's own distribution
    (arXiv 2411.19842); "code" adds noise of width 1 to the rounded code and cuts the sum off at -1 and 1
    (vector-quantize-pytorch).
    """

    probability: float = 0.5
    around: Literal["latent", "code"] = "latent"

    def __post_init__(self) -> None:
        self.require(0 < self.probability <= 1, "a probability in (0, 1]", self.probability)
        self.require(self.around in ("latent", "code"), "around latent or code", self.around)


@dataclass(frozen=True)
class FiniteScalarConfig(DigitsConfig):
    """`levels`: how many values each dimension takes; its length is the latent width."""

    kind = "finite_scalar"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    margin: float = 1e-3  # how far beyond the outermost level the bound lies, as a share of the half range
    symmetric: bool = False  # levels spread evenly over [-1, 1], so that an even count has none at 0
    squash: Literal["tanh", "clamp"] = "tanh"  # what bounds the latents; "clamp" is for latents bounded before
    noise: NoiseDropoutConfig | None = None
    bound_twice: bool = False  # as X-codec2 and ResidualFSQ of vector-quantize-pytorch 1.17: the bound of the bound

    def __post_init__(self) -> None:
        self.require_levels(least=2)
        self.require(self.squash in ("tanh", "clamp"), "squash tanh or clamp", self.squash)
        self.require(
            0 <= self.margin < 1 / (max(self.levels) - 1),
            f"a margin from 0 to below 1 / {max(self.levels) - 1}, beyond which rounding would leave the levels",
            self.margin,
        )
        self.require(not (self.bound_twice and self.symmetric), "levels around 0 for a second bound", self.symmetric)
        self.require(
            self.symmetric or self.margin > 0 or min(self.levels) > 2,
            "a margin > 0 with levels of 2 (without, their bound is infinite)",
            self.margin,
        )


class FiniteScalar(Quantizer):
    """FSQ. Codes lie in [-1, 1]; index = sum of digits times basis, dimension 0 being the fastest digit.

    There are no losses. The gradient passes the rounding unchanged, and the bound as its derivative. A latent that is
    NaN gets digit 0 and a code of NaN.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FiniteScalarConfig) -> None:
        super().__init__(config)
        self.register_constant("levels", torch.tensor, config.levels)
        self.register_constant("basis", torch.tensor, config.basis)
        self.margin, self.symmetric, self.squash = config.margin, config.symmetric, config.squash
        self.noise, self.bound_twice = config.noise, config.bound_twice

    def bound(self, z: Tensor) -> Tensor:
        """Latents (..., D) -> codes before rounding (..., D), within about [-1, 1].

        Symmetric: tanh(z). Otherwise the level L // 2 has code 0, for which an even L needs a shift by half a level.
        """
        squash = torch.tanh if self.squash == "tanh" else _clamp
        if self.symmetric:
            return squash(z)
        half = (self.levels - 1).float() * (1 + self.margin) / 2
        offset = (self.levels % 2 == 0).float() * 0.5
        shift = (offset / half).atanh() if self.squash == "tanh" else offset / half
        return (squash(z + shift) * half - offset) / (self.levels // 2)

    def quantize(self, z: Tensor) -> Quantized:
        bounded = self.bound(z)
        if self.bound_twice:
            bounded = self.bound(bounded * (self.levels // 2))
        if self.symmetric:
            digits = ((self.levels - 1) * (bounded.detach() + 1) / 2 + 0.5).floor()
        else:
            digits = (bounded.detach() * (self.levels // 2)).round() + self.levels // 2
        digits = digits.nan_to_num(nan=0.0)
        codes = straight_through(bounded, self._codes(digits))
        if self.training and self.noise is not None:
            codes = self._perturb(bounded, codes, self.noise)
        return Quantized(codes, ((digits.long() * self.basis).sum(-1),))

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return self._codes(indices[..., None] // self.basis % self.levels)

    def _codes(self, digits: Tensor) -> Tensor:
        if self.symmetric:
            return digits * (2 / (self.levels - 1).float()) - 1
        half = self.levels // 2
        return (digits - half).float() / half

    def _perturb(self, bounded: Tensor, codes: Tensor, noise: NoiseDropoutConfig) -> Tensor:
        chosen = torch.empty_like(codes).bernoulli_(noise.probability).bool()
        offset = torch.rand_like(codes) - 0.5
        if noise.around == "code":
            return torch.where(chosen, codes + offset, codes).clamp(-1, 1)
        step = (2 / (self.levels - 1).float()) if self.symmetric else 1 / (self.levels // 2).float()
        return torch.where(chosen, bounded + offset * step, codes)


def _clamp(z: Tensor) -> Tensor:
    return z.clamp(-1, 1)


FiniteScalarConfig.quantizer = FiniteScalar
