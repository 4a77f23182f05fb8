"""Lookup-free binary quantisation: the code is the sign of each latent dimension (LFQ, arXiv 2310.05737)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.config import Config
from zoo.ops import binary_entropy
from zoo.ops.binary_entropy import MAXIMUM_BITS
from zoo.quantizers.base import Quantized, Quantizer, mean_squared_error, straight_through
from zoo.quantizers.bit_indices import BitsConfig, bits_to_indices, indices_to_bits, require_bits


@dataclass(frozen=True)
class BinaryEntropyConfig(Config):
    """The entropy term: mean entropy of the soft assignments - gamma * entropy of their mean (to be minimised).

    Longer codes are cut into groups of `group_bits` consecutive bits, whose entropies are added (see
    `zoo.ops.binary_entropy`); None takes all bits together. Annealing the term is a schedule of its weight.
    """

    temperature: float = 0.01
    gamma: float = 1.0
    floor: float = 0.0  # lower clamp of probabilities inside logarithms; 0 is exact, MaskBit's training used 1e-5
    shift: float = 0.0  # added to the mean probabilities there; 0 is exact, Open-MAGVIT2's training used 1e-5
    group_bits: int | None = None

    def __post_init__(self) -> None:
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)
        self.require(0 <= self.floor < 1, "a floor in [0, 1)", self.floor)
        self.require(0 <= self.shift < 1, "a shift in [0, 1)", self.shift)
        wanted = f"group_bits of 1 to {MAXIMUM_BITS}, or None"
        self.require(self.group_bits is None or 1 <= self.group_bits <= MAXIMUM_BITS, wanted, self.group_bits)

    def require_bits(self, bits: int) -> None:
        """Raise a ConfigError unless the term can be computed for codes of so many bits."""
        if self.group_bits is None:
            choice = "entropy=None leaves it out, group_bits cuts longer codes"
            self.require(bits <= MAXIMUM_BITS, f"at most {MAXIMUM_BITS} bits with an entropy term ({choice})", bits)
        else:
            self.require(bits % self.group_bits == 0, f"group_bits that divide the {bits} bits", self.group_bits)

    def loss(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The term for latents (..., D), and both entropies as statistics."""
        sample, codebook = binary_entropy(
            z.flatten(0, -2), self.temperature, floor=self.floor, shift=self.shift, group_bits=self.group_bits
        )
        statistics = {"sample_entropy": sample.detach(), "codebook_entropy": codebook.detach()}
        return sample - self.gamma * codebook, statistics


@dataclass(frozen=True)
class BinaryConfig(BitsConfig):
    """`bits`: the latent width, one bit each; 2^bits codes."""

    kind = "binary"
    bits: int = 14
    entropy: BinaryEntropyConfig | None = BinaryEntropyConfig()
    scale: float = 1.0  # codes are -scale and +scale
    soft_clamp: float | None = None  # latents first pass tanh(z / soft_clamp) * soft_clamp
    subtokens: int = 1  # indices per position, each of as many consecutive bits
    most_significant_first: bool = False  # whether the first channel is the most significant bit of its index

    def __post_init__(self) -> None:
        require_bits(self, self.bits, self.subtokens)
        self.require(self.scale > 0, "a scale > 0", self.scale)
        self.require(self.soft_clamp is None or self.soft_clamp >= self.scale, "soft_clamp >= scale", self.soft_clamp)
        if self.entropy is not None:
            self.entropy.require_bits(self.bits)


class Binary(Quantizer):
    """LFQ. A latent above 0 is bit 1 and code +scale, else bit 0 and code -scale; NaN is bit 0.

    Losses: `commitment` = mean((z - sg(codes))^2); `entropy` (training mode only).
    """

    config: BinaryConfig

    def quantize(self, z: Tensor) -> Quantized:
        config = self.config
        if config.soft_clamp is not None:
            z = (z / config.soft_clamp).tanh() * config.soft_clamp
        ones = z > 0
        codes = (ones.float() * 2 - 1) * config.scale
        losses = {"commitment": mean_squared_error(z, codes)}
        statistics: dict[str, Tensor] = {}
        if self.training and config.entropy is not None:
            losses["entropy"], statistics = config.entropy.loss(z * config.scale)
        levels = bits_to_indices(ones, config.subtokens, config.most_significant_first)
        return Quantized(straight_through(z, codes), levels, losses, statistics)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        ones = indices_to_bits(levels, self.config.bits, self.config.most_significant_first)
        return (ones.float() * 2 - 1) * self.config.scale


BinaryConfig.quantizer = Binary
