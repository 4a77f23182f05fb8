"""The interface of every quantizer: latents in, code vectors and integers out, losses by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.config import Config


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns.

    Attributes:
        codes: (B, *positions, D) code vectors; gradients pass to the latent (straight-through).
        levels: int64 indices, one tensor (B, *positions) per codebook level.
        losses: auxiliary losses by name, unweighted scalars; the task weighs them.
        statistics: detached scalars by name (usage, perplexity, entropies), in training mode only.
    """

    codes: Tensor
    levels: tuple[Tensor, ...]
    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def indices(self) -> Tensor:
        """The indices as one tensor: (B, *positions), or (B, *positions, Q) where there are Q > 1 levels."""
        return self.levels[0] if len(self.levels) == 1 else torch.stack(self.levels, dim=-1)


class QuantizerConfig(Config):
    """Base of the quantizers' configs; `kind` is the quantizer's name."""

    quantizer: ClassVar[type[Quantizer]]

    @property
    def dim(self) -> int:
        """Width D of the latent that the quantizer takes and of the codes that it returns."""
        raise NotImplementedError

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        raise NotImplementedError

    def build(self) -> Quantizer:
        """The quantizer module, freshly initialised."""
        return self.quantizer(self)


class Quantizer(nn.Module):
    """Base of all quantizers. Channels last; computes in float32 whatever the autocast state."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, z: Tensor) -> Quantized:
        """Quantise latents.

        Args:
            z: (B, *positions, D) floating point.

        Returns:
            `Quantized`; auxiliary losses that exist only for training appear in training mode alone.

        Raises:
            ValueError: a last dimension other than `config.dim`.
        """
        if z.shape[-1] != self.config.dim:
            raise ValueError(f"expected latents (..., {self.config.dim}), got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            quantized = self.quantize(z.float())
        if self.training:
            quantized.statistics.update(usage_statistics(quantized.levels, self.config.vocab_sizes))
        return quantized

    def quantize(self, z: Tensor) -> Quantized:
        """What a quantizer writes: `forward` on float32 latents outside autocast."""
        raise NotImplementedError

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        """Code vectors of indices: one int64 tensor (B, *positions) per level -> (B, *positions, D) float32."""
        raise NotImplementedError


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """`codes` in the forward pass, the identity's gradient to `z` in the backward pass (arXiv 1308.3432)."""
    return z + (codes - z).detach()


def usage_statistics(levels: tuple[Tensor, ...], vocab_sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Means over levels: `usage` (share of the codes seen) and `perplexity` (exp of the indices' entropy, in codes)."""
    usages, perplexities = [], []
    for indices, vocab_size in zip(levels, vocab_sizes):
        counts = indices.unique(return_counts=True)[1]
        probability = counts.double() / max(1, indices.numel())
        usages.append(counts.new_tensor(len(counts)) / vocab_size)
        perplexities.append((-(probability * probability.log()).sum()).exp().float())
    return {"usage": torch.stack(usages).mean(), "perplexity": torch.stack(perplexities).mean()}


def bits_per_code(vocab_size: int) -> int:
    """Bits of one packed index: ceil(log2 K)."""
    return math.ceil(math.log2(vocab_size)) if vocab_size > 1 else 0
