"""Gradient balancing: each loss reaches the output with the share of the gradient that its weight states.

EnCodec, arXiv 2210.13438, section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.ops.collective import mean_over_ranks


@dataclass(frozen=True)
class BalancerConfig(Config):
    """How gradients are scaled.

    Attributes:
        names, weights: the losses, and the share of the gradient that each has, up to their sum.
        total_norm: norm of the gradient that all have together.
        decay: of the running means of the norms.
        per_item: norms are of each item of a batch, and then their mean; otherwise of the whole batch.
    """

    names: tuple[str, ...] = ("l1", "mel", "adversarial", "features")
    weights: tuple[float, ...] = (0.1, 2.0, 4.0, 4.0)
    total_norm: float = 1.0
    decay: float = 0.999
    per_item: bool = True

    def __post_init__(self) -> None:
        self.require(len(self.names) == len(self.weights) >= 1, "a weight for each name", (self.names, self.weights))
        self.require(len(set(self.names)) == len(self.names), "names that differ", self.names)
        self.require(min(self.weights) >= 0 and sum(self.weights) > 0, "weights >= 0, not all 0", self.weights)
        self.require(self.total_norm > 0, "a total_norm > 0", self.total_norm)
        self.require(0 <= self.decay < 1, "a decay in [0, 1)", self.decay)


@dataclass(frozen=True)
class Balanced:
    """The gradient to give to `output.backward`, and the sum of the losses with the factors they got."""

    gradient: Tensor
    effective: Tensor


class Balancer(nn.Module):
    """Keeps the running mean of the gradient norm of each loss; its state belongs into a training checkpoint."""

    sums: Tensor
    counts: Tensor

    def __init__(self, config: BalancerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("sums", torch.zeros(len(config.names)))
        self.register_buffer("counts", torch.zeros(len(config.names)))

    def forward(self, losses: Mapping[str, Tensor], output: Tensor) -> Balanced:
        """Scale the gradients of losses with respect to the model's output.

        Args:
            losses: scalars by the configured names; each may be missing.
            output: (B, ...) that the losses were computed from.

        Raises:
            ValueError: a name that the config does not have, or no loss.
        """
        config = self.config
        if unknown := sorted(set(losses) - set(config.names)) or not losses:
            raise ValueError(f"expected losses among {', '.join(config.names)}, got {unknown or 'none'}")
        chosen = [i for i, name in enumerate(config.names) if name in losses]
        slopes = [torch.autograd.grad(losses[config.names[i]], output, retain_graph=True)[0] for i in chosen]
        gradient, effective = torch.zeros_like(output), output.new_zeros(())
        whole = sum(config.weights[i] for i in chosen)
        for i, slope in zip(chosen, slopes):
            norm = slope.flatten(1).norm(dim=1).mean() if config.per_item else slope.norm()
            self.sums[i] = self.sums[i] * config.decay + mean_over_ranks(norm.detach())
            self.counts[i] = self.counts[i] * config.decay + 1
            factor = config.weights[i] / whole * config.total_norm / (1e-12 + self.sums[i] / self.counts[i])
            gradient = gradient + factor * slope
            effective = effective + factor * losses[config.names[i]].detach()
        return Balanced(gradient, effective)
