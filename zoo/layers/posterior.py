"""The diagonal Gaussian posterior of variational autoencoders (arXiv 1312.6114)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """A normal variable per element: mean and logarithm of the variance, which is cut to [-30, 20]."""

    mean: Tensor
    log_variance: Tensor

    @staticmethod
    def of(parameters: Tensor) -> Posterior:
        """From (..., 2 D), means first."""
        mean, log_variance = parameters.chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(-30.0, 20.0))

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Mean + deviation x noise, by default standard normal."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def divergence(self) -> Tensor:
        """KL divergence from the standard normal variable, in nats, of every element."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance)
