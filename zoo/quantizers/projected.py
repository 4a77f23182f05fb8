"""A quantizer in a space of another width: project in, quantise, project out (ViT-VQGAN, arXiv 2110.04627)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops.precision import full_precision
from zoo.quantizers.base import AroundConfig, Quantized, Quantizer, QuantizerConfig, linear
from zoo.quantizers.vector import VectorConfig


@dataclass(frozen=True)
class ProjectedConfig(AroundConfig):
    """Latents of width `dim` around a quantizer of any width."""

    kind = "projected"
    own_gradient = True
    dim: int = 256  # type: ignore[assignment]
    inner: QuantizerConfig = VectorConfig()
    layer_norm: bool = False  # after the projection to the inner width
    bias: bool = True  # of the projections
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        self.require(self.dim >= 1, "dim >= 1", self.dim)


class Projected(Quantizer):
    """Linear maps around the inner quantizer, whose losses and statistics are its own, in its own space."""

    config: ProjectedConfig

    def __init__(self, config: ProjectedConfig) -> None:
        super().__init__(config)
        self.inner = config.inner.build()
        self.project_in = nn.Linear(config.dim, config.inner.dim, bias=config.bias)
        self.norm = nn.LayerNorm(config.inner.dim) if config.layer_norm else None
        self.project_out = nn.Linear(config.inner.dim, config.dim, bias=config.bias)

    def quantize(self, z: Tensor) -> Quantized:
        quantized = self.inner.quantize(self._inside(z))
        return replace(quantized, codes=linear(self.project_out, quantized.codes))

    def _inside(self, z: Tensor) -> Tensor:
        """Latents in the inner quantizer's space."""
        z = linear(self.project_in, z)
        if self.norm is not None:
            z = F.layer_norm(z, self.norm.normalized_shape, self.norm.weight.float(), self.norm.bias.float())
        return z

    def first_levels(self, z: Tensor, count: int) -> tuple[Tensor, ...]:
        with full_precision(z):
            return self.inner.first_levels(self._inside(z.float()), count)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        return linear(self.project_out, self.inner.indices_to_codes(*levels))

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        return linear(self.project_out, self.inner.prefix_to_codes(positions, *levels))


ProjectedConfig.quantizer = Projected
