"""Straight-through Gumbel-softmax quantisation: a learned classifier over codes, sampled in training.

Papers: arXiv 1611.01144, 2102.12092 (DALL-E). As in taming-transformers' GumbelQuantize (MIT), whose eval mode samples,
while ours takes the most likely code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import nearest_code
from zoo.ops.precision import full_precision
from zoo.ops.recomputed import recomputed
from zoo.ops.soft_assignment import chunked
from zoo.quantizers.base import LinearTable, Quantized, Quantizer, QuantizerConfig


@dataclass(frozen=True)
class ClassifierConfig(QuantizerConfig):
    """Base of the configs of quantizers that classify latents of width `dim` over `codebook_size` codes."""

    own_gradient = True
    codebook_size: int = 8192
    dim: int = 256  # type: ignore[assignment]
    temperature: float = 1.0  # at the start; a task may lower the module's, see `temperature_annealing`

    def __post_init__(self) -> None:
        self.require(self.codebook_size >= 1 and self.dim >= 1, "a size and dim >= 1", (self.codebook_size, self.dim))
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


@dataclass(frozen=True)
class GumbelConfig(ClassifierConfig):
    """A linear classifier, and codes of the width of the latents."""

    kind = "gumbel"
    quantizer: ClassVar[type[Quantizer]]


class Gumbel(Quantizer):
    """Training: a sample of softmax(logits), backward as the Gumbel-softmax at `temperature`. Evaluation: the mode.

    Losses (training mode only): `kl` = mean KL divergence of softmax(logits) from the uniform distribution, in nats.
    """

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        self.temperature = config.temperature
        self.build_tables(config.codebook_size, config.dim)

    def build_tables(self, codebook_size: int, dim: int) -> None:
        """Set up what `tables` gives."""
        self.logits = LinearTable(dim, codebook_size)
        self.codebook = nn.Embedding(codebook_size, dim)

    def quantize(self, z: Tensor, noise: Tensor | None = None) -> Quantized:
        """Quantise latents (..., D); `noise` (..., K), Gumbel(0, 1), takes the place of fresh draws in any mode."""
        flat, (weight, bias, table) = z.flatten(0, -2), self.tables()
        if not self.training and noise is None:
            # the bias as one more dimension makes the most likely code one of largest inner product
            indices = nearest_code(F.pad(flat, (0, 1), value=1.0), torch.cat([weight, bias[:, None]], 1), "dot")
            return Quantized(F.embedding(indices, table).view_as(z), (indices.view(z.shape[:-1]),))
        noises = repeat(None) if noise is None else chunked(noise.flatten(0, -2), len(table))
        parts = [
            recomputed(self._sample, chunk, weight, bias, table, of_chunk)
            for chunk, of_chunk in zip(chunked(flat, len(table)), noises)
        ]
        codes, indices, divergences = zip(*parts)
        losses = {"kl": torch.stack(divergences).sum() / max(1, len(flat))} if self.training else {}
        return Quantized(torch.cat(codes).view_as(z), (torch.cat(indices).view(z.shape[:-1]),), losses)

    def divergence(self, z: Tensor) -> Tensor:
        """The `kl` loss of latents (..., D) in any mode."""
        with full_precision(z):
            weight, bias, _ = self.tables()
            chunks = chunked(z.float().flatten(0, -2), self.config.codebook_size)
            sums = [self._divergence(F.linear(chunk, weight, bias)) for chunk in chunks]
            return torch.stack(sums).sum() / z[..., 0].numel()

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return F.embedding(indices, self.tables()[2])

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight (K, D) and bias (K,) of the classifier, and the codes (K, D), in float32."""
        return self.logits.weight.float(), self.logits.bias.float(), self.codebook.weight.float()

    def _divergence(self, logits: Tensor) -> Tensor:
        """Sum over rows of KL(softmax(logits) | uniform)."""
        log_probability = logits.log_softmax(-1)
        return (log_probability.exp() * (log_probability + math.log(logits.shape[-1]))).sum()

    def _sample(
        self, z: Tensor, weight: Tensor, bias: Tensor, table: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, indices and summed divergence of a chunk."""
        logits = F.linear(z, weight, bias)
        if noise is None:
            noise = -torch.empty_like(logits).exponential_().log()
        perturbed = logits + noise
        indices = perturbed.argmax(-1)
        mixture = (perturbed / self.temperature).softmax(-1) @ table.detach()
        codes = F.embedding(indices, table) + (mixture - mixture.detach())
        return codes, indices, self._divergence(logits)


GumbelConfig.quantizer = Gumbel
