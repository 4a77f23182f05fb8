"""Lookup-free binary quantisation: the code is the sign of each latent dimension (LFQ, arXiv 2310.05737)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.config import Config
from zoo.ops import binary_entropy
from zoo.ops.binary_entropy import MAXIMUM_BITS
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, mean_squared_error, straight_through


@dataclass(frozen=True)
class BinaryEntropyConfig(Config):
    """The entropy term: mean entropy of the soft assignments - gamma * entropy of their mean (to be minimised)."""

    temperature: float = 0.01
    gamma: float = 1.0
    floor: float = 0.0  # lower clamp of probabilities inside logarithms; 0 is exact, MaskBit's training used 1e-5

    def __post_init__(self) -> None:
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)
        self.require(0 <= self.floor < 1, "a floor in [0, 1)", self.floor)


@dataclass(frozen=True)
class BinaryConfig(QuantizerConfig):
    """`bits`: the latent width, one bit each; 2^bits codes."""

    kind = "binary"
    bits: int = 14
    entropy: BinaryEntropyConfig | None = BinaryEntropyConfig()

    def __post_init__(self) -> None:
        self.require(1 <= self.bits <= 62, "1 to 62 bits", self.bits)
        self.require(
            self.entropy is None or self.bits <= MAXIMUM_BITS,
            f"at most {MAXIMUM_BITS} bits with an entropy term (entropy=None leaves it out)",
            self.bits,
        )

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (2**self.bits,)


class Binary(Quantizer):
    """LFQ. A latent above 0 is bit 1 and code +1, else bit 0 and code -1; channel 0 is the least significant bit.

    Losses: `commitment` = mean((z - sg(codes))^2); `entropy` (training mode only).
    """

    basis: Tensor

    def __init__(self, config: BinaryConfig) -> None:
        super().__init__(config)
        self.entropy = config.entropy
        self.register_buffer("basis", 2 ** torch.arange(config.bits), persistent=False)

    def quantize(self, z: Tensor) -> Quantized:
        ones = z > 0
        codes = ones * 2.0 - 1
        indices = (ones * self.basis).sum(-1)
        losses = {"commitment": mean_squared_error(z, codes)}
        statistics = {}
        if self.training and self.entropy is not None and z.numel() > 0:
            sample, codebook = binary_entropy(z.flatten(0, -2), self.entropy.temperature, self.entropy.floor)
            losses["entropy"] = sample - self.entropy.gamma * codebook
            statistics = {"sample_entropy": sample.detach(), "codebook_entropy": codebook.detach()}
        return Quantized(straight_through(z, codes), (indices,), losses, statistics)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return (indices[..., None] // self.basis % 2) * 2.0 - 1


BinaryConfig.quantizer = Binary
