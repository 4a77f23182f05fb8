"""Finite scalar quantisation: each latent dimension is bounded and rounded to a few levels (arXiv 2309.15505)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, straight_through


@dataclass(frozen=True)
class FiniteScalarConfig(QuantizerConfig):
    """`levels`: how many values each dimension takes; its length is the latent width."""

    kind = "finite_scalar"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    margin: float = 1e-3  # how far beyond the outermost level the bound lies, as a share of the half range

    def __post_init__(self) -> None:
        self.require(len(self.levels) > 0 and min(self.levels) >= 2, "levels of at least 2 values each", self.levels)
        self.require(math.prod(self.levels) < 2**31, "fewer than 2^31 codes", self.levels)
        self.require(
            0 < self.margin < 1 / (max(self.levels) - 1),
            f"a margin between 0 and 1 / {max(self.levels) - 1}, beyond which rounding would leave the levels",
            self.margin,
        )

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)


class FiniteScalar(Quantizer):
    """FSQ. Codes lie in [-1, 1]; index = sum of digits times basis, dimension 0 being the fastest digit."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FiniteScalarConfig) -> None:
        super().__init__(config)
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        basis = [math.prod(config.levels[:i]) for i in range(config.dim)]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.margin = config.margin

    def bound(self, z: Tensor) -> Tensor:
        """Latents (..., D) -> values whose rounding gives the levels: tanh, shifted by a half for even counts."""
        half = (self.levels - 1) * (1 + self.margin) / 2
        offset = (self.levels % 2 == 0) * 0.5
        shift = (offset / half).atanh()
        return (z + shift).tanh() * half - offset

    def quantize(self, z: Tensor) -> Quantized:
        bounded = self.bound(z)
        digits = bounded.round()
        indices = ((digits + self.levels // 2).long() * self.basis).sum(-1)
        codes = straight_through(bounded, digits) / (self.levels // 2)
        return Quantized(codes, (indices,))

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        half = self.levels // 2
        return (indices[..., None] // self.basis % self.levels - half) / half


FiniteScalarConfig.quantizer = FiniteScalar
