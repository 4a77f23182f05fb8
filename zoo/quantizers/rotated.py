"""A quantizer in a randomly rotated space, which spreads what few channels hold over all of them (arXiv 2307.13304)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zoo.quantizers.base import AroundConfig, Quantized, Quantizer, QuantizerConfig
from zoo.quantizers.finite_scalar import FiniteScalarConfig


@dataclass(frozen=True)
class RotatedConfig(AroundConfig):
    """A fixed random rotation around a quantizer that treats each channel by itself (scalar, binary, grouped)."""

    kind = "rotated"
    inner: QuantizerConfig = FiniteScalarConfig(levels=(8, 8, 8, 8))


class Rotated(Quantizer):
    """Latents times an orthogonal matrix, the inner quantizer, codes times its transpose; losses are the inner ones."""

    config: RotatedConfig
    rotation: Tensor

    def __init__(self, config: RotatedConfig) -> None:
        super().__init__(config)
        self.inner = config.inner.build()
        self.register_buffer("rotation", nn.init.orthogonal_(torch.empty(config.dim, config.dim)))

    def quantize(self, z: Tensor) -> Quantized:
        quantized = self.inner.quantize(z @ self.rotation.float())
        return replace(quantized, codes=self._back(quantized.codes))

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        return self._back(self.inner.indices_to_codes(*levels))

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        return self._back(self.inner.prefix_to_codes(positions, *levels))

    def _back(self, codes: Tensor) -> Tensor:
        return codes @ self.rotation.float().T


RotatedConfig.quantizer = Rotated
