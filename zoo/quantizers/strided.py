"""A quantizer at a coarser rate than its latents: for residual levels that differ in rate (SNAC, arXiv 2410.14411)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from zoo.quantizers.base import AroundConfig, Quantized, Quantizer, QuantizerConfig
from zoo.quantizers.vector import VectorConfig


@dataclass(frozen=True)
class StridedConfig(AroundConfig):
    """`inner` on the means of windows of `stride` positions along every axis, which must be a multiple of it."""

    kind = "strided"
    inner: QuantizerConfig = VectorConfig()
    stride: int = 2

    def __post_init__(self) -> None:
        self.require(self.stride >= 1, "a stride >= 1", self.stride)

    @property
    def scales(self) -> bool:  # type: ignore[override]
        return self.stride > 1 or self.inner.scales

    def inner_positions(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """Position axes of what the inner quantizer gets.

        Raises:
            ValueError: positions that are no multiples of the stride.
        """
        if any(side % self.stride for side in positions):
            raise ValueError(f"expected positions in multiples of {self.stride}, got {positions}")
        return tuple(side // self.stride for side in positions)

    def level_shapes(self, positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return self.inner.level_shapes(self.inner_positions(positions))


class Strided(Quantizer):
    """Means of windows, the inner quantizer, and its codes repeated over the windows. Losses are the inner one's."""

    config: StridedConfig

    def __init__(self, config: StridedConfig) -> None:
        super().__init__(config)
        self.inner = config.inner.build()

    def quantize(self, z: Tensor) -> Quantized:
        for axis, side in enumerate(self.config.inner_positions(tuple(z.shape[1:-1])), start=1):
            z = z.unflatten(axis, (side, self.config.stride)).mean(axis + 1)
        quantized = self.inner.quantize(z)
        return replace(quantized, codes=self._repeat(quantized.codes))

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        return self._repeat(self.inner.indices_to_codes(*levels))

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        return self._repeat(self.inner.prefix_to_codes(self.config.inner_positions(positions), *levels))

    def _repeat(self, codes: Tensor) -> Tensor:
        for axis in range(1, codes.ndim - 1):
            codes = codes.repeat_interleave(self.config.stride, axis)
        return codes


StridedConfig.quantizer = Strided
