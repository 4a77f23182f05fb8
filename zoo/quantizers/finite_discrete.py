"""Finite discrete tokens (FDT, arXiv 2303.14865): latents become sparse mixtures of the entries of a dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import nearest_code, sparsemax
from zoo.ops.precision import full_precision
from zoo.ops.recomputed import recomputed
from zoo.ops.soft_assignment import chunked
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig


@dataclass(frozen=True)
class FiniteDiscreteConfig(QuantizerConfig):
    """A dictionary of `codebook_size` entries of width `dim`, normally distributed at the start.

    Attributes:
        codebook_size: entries K.
        dim: of latents and entries.
        assignment: "sparsemax", which leaves most entries without weight, or "softmax".
        temperature: at the start; the task may lower the module's `temperature` as training goes on. The lower it is,
            the fewer entries mix; sparsemax leaves one alone as soon as its score leads by the temperature.
    """

    kind = "finite_discrete"
    own_gradient = True
    codebook_size: int = 16384
    dim: int = 512  # type: ignore[assignment]
    assignment: Literal["sparsemax", "softmax"] = "sparsemax"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        self.require(self.codebook_size >= 1 and self.dim >= 1, "a size and dim >= 1", (self.codebook_size, self.dim))
        self.require(self.assignment in ("sparsemax", "softmax"), "assignment sparsemax or softmax", self.assignment)
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


class FiniteDiscrete(Quantizer):
    """Weights over the dictionary are assignment(z.d / sqrt(D) / temperature).

    Training: codes are the mixtures, whose gradient reaches latents and dictionary; the statistic `support` is the mean
    number of entries that have weight. Evaluation: the entry of the largest weight, which its index alone tells. The
    published model goes on with mixtures of all patches at once, which are no tokens. There are no losses.
    """

    config: FiniteDiscreteConfig

    def __init__(self, config: FiniteDiscreteConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Embedding(config.codebook_size, config.dim)
        self.temperature = config.temperature

    def weights(self, z: Tensor) -> Tensor:
        """Shares (..., K) of the dictionary's entries in latents (..., D)."""
        with full_precision(z):
            scores = z.float() @ self.codebook.weight.float().T / (self.config.dim**0.5 * self.temperature)
            return sparsemax(scores) if self.config.assignment == "sparsemax" else scores.softmax(-1)

    def quantize(self, z: Tensor) -> Quantized:
        flat, table = z.flatten(0, -2), self.codebook.weight.float()
        indices = nearest_code(flat, table, "dot")
        levels = (indices.view(z.shape[:-1]),)
        if not self.training:
            return Quantized(F.embedding(indices, table).view_as(z), levels)
        parts = [recomputed(self._mix, chunk) for chunk in chunked(flat, len(table))]
        codes, supports = zip(*parts)
        support = torch.stack(supports).sum().float() / max(1, len(flat))
        return Quantized(torch.cat(codes).view_as(z), levels, statistics={"support": support})

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return F.embedding(indices, self.codebook.weight.float())

    def _mix(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mixtures, and the summed number of entries that have weight, of a chunk."""
        weights = self.weights(z)
        return weights @ self.codebook.weight.float(), (weights.detach() > 0).sum()


FiniteDiscreteConfig.quantizer = FiniteDiscrete
