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
from torch.utils.checkpoint import checkpoint

from zoo.ops import nearest_code
from zoo.ops.soft_assignment import chunked
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, linear


@dataclass(frozen=True)
class GumbelConfig(QuantizerConfig):
    """A linear classifier of latents of width `dim` over `codebook_size` codes of the same width."""

    kind = "gumbel"
    own_gradient = True
    codebook_size: int = 8192
    dim: int = 256  # type: ignore[assignment]
    temperature: float = 1.0  # at the start; the task may lower the module's `temperature` as training goes on
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        self.require(self.codebook_size >= 1 and self.dim >= 1, "a size and dim >= 1", (self.codebook_size, self.dim))
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


class Gumbel(Quantizer):
    """Training: a sample of softmax(logits), backward as the Gumbel-softmax at `temperature`. Evaluation: the mode.

    Losses (training mode only): `kl` = mean KL divergence of softmax(logits) from the uniform distribution, in nats.
    """

    config: GumbelConfig

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__(config)
        self.logits = nn.Linear(config.dim, config.codebook_size)
        self.codebook = nn.Embedding(config.codebook_size, config.dim)
        self.temperature = config.temperature

    def quantize(self, z: Tensor, noise: Tensor | None = None) -> Quantized:
        """Quantise latents (..., D); `noise` (..., K), Gumbel(0, 1), takes the place of fresh draws in any mode."""
        flat, table = z.flatten(0, -2), self.codebook.weight.float()
        if not self.training and noise is None:
            # the bias as one more dimension makes the most likely code one of largest inner product
            weight, bias = self.logits.weight.float(), self.logits.bias.float()
            indices = nearest_code(F.pad(flat, (0, 1), value=1.0), torch.cat([weight, bias[:, None]], 1), "dot")
            return Quantized(F.embedding(indices, table).view_as(z), (indices.view(z.shape[:-1]),))
        noises = repeat(None) if noise is None else chunked(noise.flatten(0, -2), len(table))
        parts = [
            checkpoint(self._sample, chunk, table, of_chunk, use_reentrant=False)
            for chunk, of_chunk in zip(chunked(flat, len(table)), noises)
        ]
        codes, indices, divergences = zip(*parts)
        losses = {"kl": torch.stack(divergences).sum() / max(1, len(flat))} if self.training else {}
        return Quantized(torch.cat(codes).view_as(z), (torch.cat(indices).view(z.shape[:-1]),), losses)

    def divergence(self, z: Tensor) -> Tensor:
        """The `kl` loss of latents (..., D) in any mode."""
        chunks = chunked(z.float().flatten(0, -2), self.config.codebook_size)
        return torch.stack([self._divergence(linear(self.logits, chunk)) for chunk in chunks]).sum() / z[..., 0].numel()

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return F.embedding(indices, self.codebook.weight.float())

    def _divergence(self, logits: Tensor) -> Tensor:
        """Sum over rows of KL(softmax(logits) | uniform)."""
        log_probability = logits.log_softmax(-1)
        return (log_probability.exp() * (log_probability + math.log(logits.shape[-1]))).sum()

    def _sample(self, z: Tensor, table: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, indices and summed divergence of a chunk."""
        logits = linear(self.logits, z)
        if noise is None:
            noise = -torch.empty_like(logits).exponential_().log()
        perturbed = logits + noise
        indices = perturbed.argmax(-1)
        mixture = (perturbed / self.temperature).softmax(-1) @ table.detach()
        codes = F.embedding(indices, table) + (mixture - mixture.detach())
        return codes, indices, self._divergence(logits)


GumbelConfig.quantizer = Gumbel
