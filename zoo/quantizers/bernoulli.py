"""Bernoulli binary quantisation: bits drawn with the probabilities that a projection of the latent gives.

The binary auto-encoder (BAE) of arXiv 2410.16257, after the binary latents of arXiv 2304.04820.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.quantizers.base import Quantized, Quantizer, linear, straight_through
from zoo.quantizers.bit_indices import BitsConfig, bits_to_indices, indices_to_bits, require_bits


@dataclass(frozen=True)
class BernoulliConfig(BitsConfig):
    """`dim`: width of latents and codes; `bits`: of a code, which is the sum of the embeddings of its set bits."""

    kind = "bernoulli"
    own_gradient = True
    dim: int = 256  # type: ignore[assignment]
    bits: int = 16
    stochastic: bool = True  # whether training draws the bits; else they are those of probability > 1/2
    subtokens: int = 1  # indices per position, each of as many consecutive bits
    most_significant_first: bool = True  # whether the first bit is the most significant of its index
    temperature: float = 1.0  # that divides the logits where bits are drawn; the gradient is that of temperature 1
    uncertainty_of: Literal["sigmoid", "probability"] = "sigmoid"  # of p as published by BAE, or p (Instella-T2I)

    def __post_init__(self) -> None:
        self.require(self.dim >= 1, "dim >= 1", self.dim)
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)
        require_bits(self, self.bits, self.subtokens)


class Bernoulli(Quantizer):
    """BAE. Evaluation takes the bits of probability > 1/2; the originals draw there too (give `quantize` the noise).

    The gradient passes from the bits to their probabilities p unchanged. Loss: `uncertainty` = mean(s (1 - s)) with
    s = sigmoid(p), the form that BAE published although p is a probability already, or s = p.
    """

    config: BernoulliConfig

    def __init__(self, config: BernoulliConfig) -> None:
        super().__init__(config)
        self.projection = nn.Linear(config.dim, config.bits)
        self.embedding = nn.Parameter(torch.randn(config.bits, config.dim))

    def quantize(self, z: Tensor, noise: Tensor | None = None) -> Quantized:
        """Quantise float32 latents (..., dim).

        Args:
            z: (..., dim).
            noise: (..., bits) uniform in [0, 1): bit d is 1 where it is below the probability. None draws it in
                training, if stochastic, and is 1/2 otherwise.
        """
        return self.quantize_logits(linear(self.projection, z), noise)

    def quantize_logits(self, logits: Tensor, noise: Tensor | None = None) -> Quantized:
        """`quantize` from the logits (..., bits) of the bits on."""
        return self.quantize_probabilities(logits.sigmoid(), noise, (logits / self.config.temperature).sigmoid())

    def quantize_probabilities(
        self, probability: Tensor, noise: Tensor | None = None, drawn_with: Tensor | None = None
    ) -> Quantized:
        """`quantize` from the probabilities (..., bits) of the bits on; `drawn_with`: those of drawing, if others."""
        if noise is None:
            drawn = self.training and self.config.stochastic
            noise = torch.rand_like(probability) if drawn else torch.full_like(probability, 0.5)
        ones = noise < (probability if drawn_with is None else drawn_with)
        codes = self._codes(straight_through(probability, ones.float()))
        share = probability.sigmoid() if self.config.uncertainty_of == "sigmoid" else probability
        losses = {"uncertainty": (share * (1 - share)).sum() / max(1, share.numel())}
        return Quantized(
            codes, bits_to_indices(ones, self.config.subtokens, self.config.most_significant_first), losses
        )

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        return self._codes(indices_to_bits(levels, self.config.bits, self.config.most_significant_first).float())

    def _codes(self, ones: Tensor) -> Tensor:
        return ones @ self.embedding.float()


BernoulliConfig.quantizer = Bernoulli
