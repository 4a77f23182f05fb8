"""Quantizers side by side on the same latent, whose codes are added.

Mimi's split residual quantizer (arXiv 2410.00037): one level apart, which is trained to carry meaning, and a residual
quantizer for the rest of the sound, each between projections of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig
from zoo.quantizers.composite import drops_levels, mean_by_name, require_levels, split_levels
from zoo.quantizers.projected import ProjectedConfig
from zoo.quantizers.residual import ResidualConfig
from zoo.quantizers.vector import VectorConfig


@dataclass(frozen=True)
class SummedConfig(QuantizerConfig):
    """`parts`: quantizers of one width, the levels of one after those of the other."""

    kind = "summed"
    parts: tuple[QuantizerConfig, ...] = (
        ProjectedConfig(512, VectorConfig(codebook_size=2048, dim=256)),
        ProjectedConfig(512, ResidualConfig(VectorConfig(codebook_size=2048, dim=256), num_levels=7)),
    )

    def __post_init__(self) -> None:
        self.require(len(self.parts) >= 1, "at least one part", len(self.parts))
        widths = {part.dim for part in self.parts}
        self.require(len(widths) == 1, "parts of one width", sorted(widths))
        self.require(
            not any(map(drops_levels, self.parts[:-1])), "dropout of levels in the last part alone", self.parts
        )

    @property
    def dim(self) -> int:
        return self.parts[0].dim

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return tuple(size for part in self.parts for size in part.vocab_sizes)

    def level_shapes(self, positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(shape for part in self.parts for shape in part.level_shapes(positions))

    @property
    def prefix(self) -> bool:  # type: ignore[override]
        return all(part.prefix or len(part.vocab_sizes) == 1 for part in self.parts)

    @property
    def scales(self) -> bool:  # type: ignore[override]
        return any(part.scales for part in self.parts)


class Summed(Quantizer):
    """The sum of the parts' codes. Losses and statistics are means over parts, weighed by their numbers of levels."""

    config: SummedConfig

    def __init__(self, config: SummedConfig) -> None:
        super().__init__(config)
        self.parts = nn.ModuleList(part.build() for part in config.parts)

    def quantize(self, z: Tensor) -> Quantized:
        parts = [part.quantize(z) for part in self.parts]  # type: ignore[operator]
        total = sum((part.codes for part in parts[1:]), parts[0].codes)
        levels = tuple(level for part in parts for level in part.levels)
        by_level = [part for part, config in zip(parts, self.config.parts) for _ in config.vocab_sizes]
        losses = mean_by_name([part.losses for part in by_level])
        return Quantized(total, levels, losses, mean_by_name([part.statistics for part in by_level]))

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        """Code vectors of indices; of the first levels alone where `config.prefix`."""
        return self._codes(levels, lambda part, own: part.indices_to_codes(*own))

    def first_levels(self, z: Tensor, count: int) -> tuple[Tensor, ...]:
        """The further levels, and parts of which none is asked for, are left out."""
        levels: tuple[Tensor, ...] = ()
        for part, config in zip(self.parts, self.config.parts):
            if len(levels) < count:
                levels += part.first_levels(z, min(count - len(levels), len(config.vocab_sizes)))  # type: ignore[operator]
        return levels

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        return self._codes(levels, lambda part, own: part.prefix_to_codes(positions, *own))

    def _codes(self, levels: Sequence[Tensor], decode: Callable[[Quantizer, Sequence[Tensor]], Tensor]) -> Tensor:
        require_levels(self.config, levels)
        split = split_levels(self.config.parts, levels)
        codes = [decode(part, own) for part, own in zip(self.parts, split) if own]  # type: ignore[arg-type]
        return sum(codes[1:], codes[0])


SummedConfig.quantizer = Summed
