"""Binary spherical quantisation (BSQ, arXiv 2406.07548): signs of latents on the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from zoo.quantizers.base import Quantized, Quantizer, mean_squared_error, straight_through
from zoo.quantizers.binary import BinaryEntropyConfig
from zoo.quantizers.bit_indices import BitsConfig, bits_to_indices, indices_to_bits, require_bits


@dataclass(frozen=True)
class SphericalBinaryConfig(BitsConfig):
    """`bits`: the latent width D, one bit each; the codes are the 2^D unit vectors of entries +-D^-1/2.

    `entropy`: the paper's soft entropy, of softmax(2 u.c / temperature). Its published forms are `group_bits` of 9
    ("group") and of 1 ("analytical"); all bits together are exact too. `gradient`: "sign" passes the gradient between
    the unit vector and its signs, before their division by D^1/2, as published, so that it shrinks by that factor;
    "code" passes it between the unit vector and the code, as vector-quantize-pytorch does.
    """

    kind = "spherical_binary"
    bits: int = 18
    entropy: BinaryEntropyConfig | None = BinaryEntropyConfig(temperature=1.0)
    gradient: Literal["sign", "code"] = "sign"
    subtokens: int = 1  # indices per position, each of as many consecutive bits
    most_significant_first: bool = True  # whether the first channel is the most significant bit of its index

    def __post_init__(self) -> None:
        require_bits(self, self.bits, self.subtokens)
        self.require(self.gradient in ("sign", "code"), "gradient sign or code", self.gradient)
        if self.entropy is not None:
            self.entropy.require_bits(self.bits)


class SphericalBinary(Quantizer):
    """BSQ. Latents are normalised to unit length; an entry above 0 is bit 1, else (NaN too) bit 0.

    Losses: `commitment` = mean((u - sg(codes))^2) over all entries of the unit vectors u (the paper's sum over channels
    is D times it); `entropy` (training mode only).
    """

    config: SphericalBinaryConfig

    def quantize(self, z: Tensor) -> Quantized:
        return self.quantize_unit(F.normalize(z, dim=-1))

    def quantize_unit(self, unit: Tensor) -> Quantized:
        """Quantise float32 latents (..., D) that lie on the unit sphere already; no gradient of the normalisation."""
        config = self.config
        ones = unit > 0
        codes = self._codes(ones)
        losses = {"commitment": mean_squared_error(unit, codes)}
        statistics: dict[str, Tensor] = {}
        if self.training and config.entropy is not None:
            losses["entropy"], statistics = config.entropy.loss(unit * config.bits**-0.5)
        levels = bits_to_indices(ones, config.subtokens, config.most_significant_first)
        through = unit * config.bits**-0.5 if config.gradient == "sign" else unit
        return Quantized(straight_through(through, codes), levels, losses, statistics)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        return self._codes(indices_to_bits(levels, self.config.bits, self.config.most_significant_first))

    def _codes(self, ones: Tensor) -> Tensor:
        return (ones.float() * 2 - 1) * self.config.bits**-0.5


SphericalBinaryConfig.quantizer = SphericalBinary
