"""Dimension-wise quantisation of trained continuous latents into Gaussian bins (TokenBridge, arXiv 2503.16430)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, straight_through


@dataclass(frozen=True)
class DimensionWiseConfig(QuantizerConfig):
    """`dim`: latent width; each dimension is a level of 2^`bits` codes.

    Latents from -`limit` to `limit` are mapped linearly to -`deviations` to `deviations` of a standard normal variable,
    whose quantiles bound 2^bits bins.
    """

    kind = "dimension_wise"
    dim: int = 16  # type: ignore[assignment]
    bits: int = 6
    limit: float = 5.0
    deviations: float = 3.0

    def __post_init__(self) -> None:
        self.require(self.dim >= 1, "dim >= 1", self.dim)
        self.require(self.limit > 0, "a limit > 0", self.limit)
        self.require(self.deviations > 0, "deviations > 0", self.deviations)
        most = math.ceil(-math.log2(math.erfc(self.deviations / 2**0.5) / 2)) - 1  # 2^-bits > P(below -deviations)
        wanted = f"1 to {most} bits, beyond which bins would lie outside the {self.deviations} deviations"
        self.require(1 <= self.bits <= most, wanted, self.bits)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (2**self.bits,) * self.dim


class DimensionWise(Quantizer):
    """The code of a bin is the mean of the normal variable in it, mapped back; a latent takes the nearest code.

    Indices ascend with the codes, and of two equally near codes the lower is taken; NaN gets index 0 and a code of NaN.
    There are no losses; the gradient passes unchanged.
    """

    config: DimensionWiseConfig

    def quantize(self, z: Tensor) -> Quantized:
        codebook = self.codebook(z.device)
        middles = (codebook[1:].double() + codebook[:-1].double()) / 2
        indices = torch.searchsorted(middles, z.detach().double().nan_to_num(nan=-math.inf).contiguous())
        return Quantized(straight_through(z, codebook[indices]), indices.unbind(-1))

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        indices = torch.stack(levels, dim=-1)
        return self.codebook(indices.device)[indices]

    def codebook(self, device: torch.device | None = None) -> Tensor:
        """The codes of each dimension, ascending: (2^bits,) float32."""
        # not a buffer: a model cast to half precision would round it
        values = gaussian_bin_means(2**self.config.bits, self.config.deviations)
        return (values * (self.config.limit / self.config.deviations)).float().to(device)


def gaussian_bin_means(count: int, deviations: float) -> Tensor:
    """(count,) float64: means of a standard normal variable in its `count` equally likely bins.

    The quantiles that bound the bins are cut off at +-deviations.
    """
    quantiles = torch.special.ndtri(torch.linspace(0, 1, count + 1, dtype=torch.float64, device="cpu"))
    bounds = quantiles.clamp(-deviations, deviations)
    density = torch.exp(-bounds.square() / 2) / math.sqrt(2 * math.pi)
    return -density.diff() / torch.special.ndtr(bounds).diff()


DimensionWiseConfig.quantizer = DimensionWise
