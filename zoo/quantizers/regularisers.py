"""Further losses of a codebook: entropies and cross-entropy of the soft assignment, and orthogonality of the codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import Config
from zoo.ops import Metric, soft_cross_entropy, soft_entropy
from zoo.ops.collective import sum_over_ranks
from zoo.ops.joined_batch import joined_seed
from zoo.ops.soft_assignment import Score


@dataclass(frozen=True)
class AssignmentConfig(Config):
    """Softmax over codes of -|z - c|^2 / temperature; with the dot metric, of z.c / temperature.

    `squared=False` takes the distance itself, as vector-quantize-pytorch does.
    """

    temperature: float = 0.01
    squared: bool = True

    def __post_init__(self) -> None:
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)

    def score(self, metric: Metric) -> Score:
        """What the softmax is of, for codes that are searched by `metric`."""
        return "dot" if metric == "dot" else "squared_distance" if self.squared else "distance"


@dataclass(frozen=True)
class SoftEntropyConfig(Config):
    """The entropy term: sample_weight * mean entropy of the assignments - gamma * entropy of their mean.

    With sample_weight 0 it is the codebook diversity alone. The assignment is the softmax of -|z - c|^2 / temperature,
    or as `AssignmentConfig` tells. The published codes round their logarithms in two ways, needed to match them:
    `clamp` (MaskBit, 1e-5) is a lower bound of every probability inside a logarithm, `shift` (LlamaGen, 1e-5) is added
    to the mean probabilities there.
    """

    temperature: float = 0.01
    gamma: float = 1.0
    clamp: float = 0.0
    shift: float = 0.0
    sample_weight: float = 1.0
    squared: bool = True

    def __post_init__(self) -> None:
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)
        self.require(0 <= self.clamp < 1 and 0 <= self.shift < 1, "clamp and shift in [0, 1)", (self.clamp, self.shift))
        self.require(self.sample_weight >= 0, "sample_weight >= 0", self.sample_weight)

    def loss(self, z: Tensor, codes: Tensor, metric: Metric) -> tuple[Tensor, dict[str, Tensor]]:
        """The term for latents (N, D) and codes (K, D), and both entropies as statistics."""
        score = AssignmentConfig(self.temperature, self.squared).score(metric)
        sample, codebook = soft_entropy(z, codes, self.temperature, score=score, clamp=self.clamp, shift=self.shift)
        statistics = {"sample_entropy": sample.detach(), "codebook_entropy": codebook.detach()}
        return self.sample_weight * sample - self.gamma * codebook, statistics


@dataclass(frozen=True)
class CrossEntropyConfig(AssignmentConfig):
    """Commitment as a classification: cross-entropy of the soft assignment at the chosen code (NaturalSpeech 2)."""

    temperature: float = 1.0

    def loss(self, z: Tensor, codes: Tensor, indices: Tensor, metric: Metric) -> Tensor:
        """Mean over latents (N, D) with indices (N,), for codes (K, D)."""
        return soft_cross_entropy(z, codes, indices, self.temperature, self.score(metric))


@dataclass(frozen=True)
class OrthogonalityConfig(Config):
    """Mean squared deviation of the codes' cosines from those of orthogonal codes (arXiv 2112.00384, equation 2).

    `codes`: all, or those active in the batch. `maximum`: at most that many of them, drawn afresh each step.
    """

    codes: Literal["all", "active"] = "all"
    maximum: int | None = None

    def __post_init__(self) -> None:
        self.require(self.maximum is None or self.maximum >= 1, "a maximum >= 1", self.maximum)

    def loss(self, codes: Tensor, indices: Tensor) -> Tensor:
        """|C C^T - I|^2 / n^2 of the n unit rows C chosen from codes (K, D); indices: those of the batch."""
        if self.codes == "active":
            active = torch.zeros(len(codes), device=codes.device).index_fill_(0, indices, 1)
            sum_over_ranks(active)
            codes = codes if codes.is_meta else codes[active > 0]
        if self.maximum is not None and len(codes) > self.maximum:
            generator = torch.Generator().manual_seed(joined_seed(codes.device))
            codes = codes[torch.randperm(len(codes), generator=generator)[: self.maximum].to(codes.device)]
        unit = F.normalize(codes, dim=-1)
        count, dim = unit.shape
        if count == 0:
            return unit.sum()
        gram = unit.T @ unit if dim < count else unit @ unit.T  # both have the same norm
        return gram.square().sum() / count**2 - 1 / count
