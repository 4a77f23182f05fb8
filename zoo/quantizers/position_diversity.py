"""A codebook for rows, of which every position is spread over the codes in training (Selftok, arXiv 2505.07538)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.collective import mean_over_ranks, sum_over_ranks
from zoo.quantizers.base import AroundConfig, Quantized, Quantizer
from zoo.quantizers.codebooks import EmaCodebookConfig
from zoo.quantizers.vector import VectorConfig


@dataclass(frozen=True)
class PositionDiversityConfig(AroundConfig):
    """A codebook for rows of `positions` latents, in training with a loss that spreads each position over the codes."""

    kind = "position_diversity"
    positions: int = 512
    inner: VectorConfig = VectorConfig(32768, 16, metric="cosine", codebook=EmaCodebookConfig())
    sharpness: float = 10.0  # of the soft assignment: factor on the cosines
    running_share: float = 0.8  # of the running frequencies, in the mean with those of the batch
    decay: float = 0.99
    groups: int = 64  # of neighbouring positions, whose means are spread too
    full_below: float = 0.1  # mean share of the codes that a position uses; up to it the loss has its full weight, 1/2
    none_above: float = 0.3  # from there on it has none

    def __post_init__(self) -> None:
        self.require(self.inner.metric == "cosine", "an inner quantizer with the cosine metric", self.inner.metric)
        self.require(min(self.positions, self.groups) >= 1, "positions and groups >= 1", (self.positions, self.groups))
        self.require(self.full_below < self.none_above, "full_below < none_above", (self.full_below, self.none_above))


class PositionDiversity(Quantizer):
    """The inner quantizer; its losses and, in training, `diversity`, the weighted negative entropy of the positions."""

    config: PositionDiversityConfig
    frequencies: Tensor
    started: Tensor

    def __init__(self, config: PositionDiversityConfig) -> None:
        super().__init__(config)
        self.inner = config.inner.build()
        size = config.inner.codebook_size
        self.register_buffer("frequencies", torch.full((config.positions, size), 1 / size))
        self.register_buffer("started", torch.zeros(1))

    def quantize(self, z: Tensor) -> Quantized:
        config = self.config
        if z.ndim != 3 or z.shape[1] != config.positions:
            raise ValueError(f"expected latents (batch, {config.positions}, {config.dim}), got {tuple(z.shape)}")
        if not self.training:
            return self.inner.quantize(z)
        table = self.inner.codes().detach().clone()  # type: ignore[operator]  # it moves in the next line
        quantized = self.inner.quantize(z)
        soft = (config.sharpness * F.normalize(z, dim=-1) @ table.T).softmax(-1)
        running = self._follow(quantized.indices)
        mixed = torch.lerp(mean_over_ranks(soft.mean(0)), running, config.running_share)
        groups = mixed.tensor_split(min(config.groups, config.positions))
        by_position = _entropy(mixed).mean()
        by_group = torch.stack([_entropy(group.mean(0)) for group in groups]).mean()
        used = _entropy(running).exp().mean() / len(table)
        weight = ((config.none_above - used) / (config.none_above - config.full_below)).clamp(0, 1) / 2
        quantized.losses["diversity"] = -weight * (by_position + by_group) / 2
        quantized.statistics["position_entropy"] = by_position.detach()
        quantized.statistics["sample_entropy"] = _entropy(soft).mean().detach()
        return quantized

    @torch.no_grad()
    def _follow(self, indices: Tensor) -> Tensor:
        """The running frequencies (positions, codes), after a step with indices (B, positions)."""
        counts = torch.zeros_like(self.frequencies, dtype=torch.float32)
        counts.scatter_add_(1, indices.T, torch.ones_like(indices.T, dtype=torch.float32))
        sum_over_ranks(counts)
        decay = torch.where(self.started > 0, self.config.decay, 0.3).to(counts)
        running = torch.lerp(counts / counts.sum(1, keepdim=True), self.frequencies.float(), decay)
        self.frequencies.copy_(running)
        self.started.fill_(1)
        return running

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        return self.inner.indices_to_codes(*levels)


def _entropy(shares: Tensor) -> Tensor:
    return torch.special.entr(shares).sum(-1)


PositionDiversityConfig.quantizer = PositionDiversity
