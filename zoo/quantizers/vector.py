"""Vector quantisation: the nearest code of a learned codebook (VQ-VAE, arXiv 1711.00937).

Its options are small configs that combine freely: the codebook (`codebooks.py`), the gradient estimator
(`gradients.py`) and further losses (`regularisers.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from zoo.ops import Metric, nearest_code, sample_codes
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, mean_squared_error
from zoo.quantizers.codebooks import (
    Affine,
    AffineConfig,
    Codebook,
    CodebookConfig,
    DirectionCodebookConfig,
    EmaCodebookConfig,
    GradientCodebookConfig,
    InPlaceCodebookConfig,
    PullOfUnused,
    RunningStatistics,
)
from zoo.quantizers.gradients import GradientConfig, StraightThroughConfig
from zoo.quantizers.regularisers import AssignmentConfig, CrossEntropyConfig, OrthogonalityConfig, SoftEntropyConfig


@dataclass(frozen=True)
class SamplingConfig(AssignmentConfig):
    """In training codes are drawn from the soft assignment at this temperature; in evaluation the nearest is taken."""

    temperature: float = 1.0


@dataclass(frozen=True)
class VectorConfig(QuantizerConfig):
    """A codebook of `codebook_size` vectors of width `dim`."""

    kind = "vector"
    codebook_size: int = 16384
    dim: int = 8  # type: ignore[assignment]
    metric: Metric = "euclidean"
    codebook: CodebookConfig = GradientCodebookConfig()
    entropy: SoftEntropyConfig | None = None
    gradient: GradientConfig = StraightThroughConfig()
    cross_entropy: CrossEntropyConfig | None = None
    orthogonality: OrthogonalityConfig | None = None
    sampling: SamplingConfig | None = None
    affine: AffineConfig | None = None
    unit_vectors: bool = True  # with "cosine": normalise latents and codes everywhere, or (DAC) in the search alone
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        self.require(self.codebook_size >= 1 and self.dim >= 1, "a size and dim >= 1", (self.codebook_size, self.dim))
        learned = isinstance(self.codebook, GradientCodebookConfig)
        if self.orthogonality is not None:
            self.require(learned, "a gradient codebook, which alone an orthogonality loss can move", self.codebook.kind)
        if isinstance(self.gradient, StraightThroughConfig) and self.gradient.synchronous > 0:
            self.require(learned, "a gradient codebook for the synchronous update", self.codebook.kind)
        if isinstance(self.codebook, InPlaceCodebookConfig):
            self.require(self.metric != "cosine", "another metric than cosine for an in-place codebook", self.metric)
            self.require(self.affine is None, "no affine reparametrisation of an in-place codebook", self.affine)
        if isinstance(self.codebook, DirectionCodebookConfig):
            self.require(self.metric == "cosine", "the cosine metric for a codebook of directions", self.metric)
        if self.affine is not None:
            self.require(self.metric != "cosine", "another metric than cosine for affine codes", self.metric)
        if not self.unit_vectors:
            self.require(self.metric == "cosine", "the cosine metric for unit_vectors=False", self.metric)
            soft = (self.entropy, self.cross_entropy, self.sampling)
            self.require(soft == (None,) * 3, "no entropy, cross_entropy or sampling with unit_vectors=False", soft)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


class Vector(Quantizer):
    """VQ. With the cosine metric latents and codes are normalised first (unless `unit_vectors` is off).

    Losses: `codebook` = mean((codes - sg(z))^2) (gradient codebook only), `commitment` = mean((z - sg(codes))^2); in
    training mode, when configured: `entropy`, `cross_entropy` and `orthogonality`.
    """

    config: VectorConfig

    def __init__(self, config: VectorConfig) -> None:
        super().__init__(config)
        self.metric: Metric = config.metric
        self.codebook = Codebook(config.codebook, config.codebook_size, config.dim, config.metric)
        self.affine = None if config.affine is None else Affine(config.affine, config.dim)
        self.ema: RunningStatistics | None = None
        rule = config.codebook
        if isinstance(rule, EmaCodebookConfig | DirectionCodebookConfig) or (
            isinstance(rule, GradientCodebookConfig) and rule.revive_below > 0
        ):
            self.ema = RunningStatistics(rule, self.codebook.weight)
        self.pull: PullOfUnused | None = None
        if isinstance(rule, GradientCodebookConfig) and rule.pull_unused:
            self.pull = PullOfUnused(rule, config.codebook_size)

    def codes(self) -> Tensor:
        """The codebook as it is used: (K, D) float32, with the cosine metric unit rows."""
        return self._normalise(self._table())

    def _table(self) -> Tensor:
        weight = self.codebook.weight.float()
        return weight if self.affine is None else self.affine.codes(weight)

    def _normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" and self.config.unit_vectors else vectors

    def quantize(self, z: Tensor) -> Quantized:
        flat = self._normalise(z).flatten(0, -2)
        if self.training:
            self._prepare(flat.detach())
        indices = self._search(flat.detach(), self._table().detach())
        quantized = self.assign(z, indices.view(z.shape[:-1]))
        if self.training:
            losses, statistics = self._further_losses(flat, indices)
            quantized.losses.update(losses)
            quantized.statistics.update(statistics)
            self._follow(flat.detach(), indices)
        return quantized

    def assign(self, z: Tensor, indices: Tensor) -> Quantized:
        """Latents (..., D) and the indices (...) found for them -> their codes, `commitment` and `codebook` losses."""
        z = self._normalise(z)
        codes = self._normalise(F.embedding(indices, self._table()))
        losses = {"commitment": mean_squared_error(z, codes.detach())}
        if isinstance(self.config.codebook, GradientCodebookConfig):
            losses["codebook"] = mean_squared_error(codes, z.detach())
        return Quantized(self.config.gradient.estimate(z, codes, self.training), (indices,), losses)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return self._normalise(F.embedding(indices, self._table()))

    def _search(self, z: Tensor, table: Tensor) -> Tensor:
        sampling = self.config.sampling
        if self.training and sampling is not None:
            return sample_codes(z, self._normalise(table), sampling.temperature, sampling.score(self.metric))
        return nearest_code(z, table, self.metric)

    def _further_losses(self, z: Tensor, indices: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        config = self.config
        losses: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        if config.entropy is None and config.cross_entropy is None and config.orthogonality is None:
            return losses, statistics
        codes = self.codes().clone()  # graphs keep it, and the codebook may move in place afterwards
        if config.entropy is not None:
            losses["entropy"], statistics = config.entropy.loss(z, codes, self.metric)
        if config.cross_entropy is not None:
            losses["cross_entropy"] = config.cross_entropy.loss(z, codes, indices, self.metric)
        if config.orthogonality is not None:
            losses["orthogonality"] = config.orthogonality.loss(codes, indices)
        return losses, statistics

    def _prepare(self, z: Tensor) -> None:
        """What a training pass does to the codebook before it is used: its start, and steps in place."""
        counts = self.codebook.start(z)
        if counts is not None and self.ema is not None:
            self.ema.restart(self.codebook.weight, counts)
        if self.affine is not None:
            self.affine.update(z, self.codebook.weight)
        self.codebook.step(z)

    def _follow(self, z: Tensor, indices: Tensor) -> None:
        """What a training pass does to the codebook after it was used: running means, revival, pull."""
        if self.affine is not None:
            z = self.affine.latents(z)
        if self.ema is not None:
            self.ema.update(self.codebook.weight, z, indices)
        if self.pull is not None:
            self.pull.update(self.codebook.weight, z, indices, self.metric)


VectorConfig.quantizer = Vector
