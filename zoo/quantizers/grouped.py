"""Grouped (product) quantisation: the channels are split into groups, each quantised by itself.

Used as multi-head codebooks (NWT, arXiv 2106.04283), grouped residual codes (HiFi-Codec, arXiv 2305.02765) and UniTok's
multi-codebook quantisation (arXiv 2502.20321: 8 cosine codebooks of 4096 x 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig
from zoo.quantizers.composite import drops_levels, each, mean_by_name
from zoo.quantizers.multi_scale import MultiScaleConfig
from zoo.quantizers.vector import VectorConfig


@dataclass(frozen=True)
class GroupedConfig(QuantizerConfig):
    """`num_groups` quantizers side by side; `dim` is the sum of theirs.

    Attributes:
        group: the quantizer of every group, or a tuple of one for each.
        num_groups: how many.
        shared: one module, and so one codebook, serves all groups.
    """

    kind = "grouped"
    group: QuantizerConfig | tuple[QuantizerConfig, ...] = VectorConfig(codebook_size=4096, dim=8, metric="cosine")
    num_groups: int = 8
    shared: bool = False

    def __post_init__(self) -> None:
        self.require(self.num_groups >= 1, "num_groups >= 1", self.num_groups)
        alike = isinstance(self.group, QuantizerConfig)
        self.require(
            alike or len(self.groups) == self.num_groups,
            f"one group config, or one for each of the {self.num_groups} groups",
            len(self.groups),
        )
        scaled = isinstance(self.group, MultiScaleConfig)
        self.require(
            scaled or not any(map(drops_levels, self.groups)),
            "groups without dropout (a residual quantizer of grouped levels drops those of all groups at once), or one "
            "config of several scales for all groups",
            self.group,
        )
        depths = {len(group.vocab_sizes) for group in self.groups}
        self.require(len(depths) == 1, "groups of equally many levels", sorted(depths))
        self.require(not self.shared or alike, "one group config when the groups share it", self.group)
        self.require(
            not (self.shared and self.scales), "groups whose levels have the same positions when shared", self.group
        )

    @property
    def groups(self) -> tuple[QuantizerConfig, ...]:
        """The config of each group."""
        return each(self.group, self.num_groups)

    @property
    def dim(self) -> int:
        return sum(group.dim for group in self.groups)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return tuple(size for level in zip(*(group.vocab_sizes for group in self.groups)) for size in level)

    def level_shapes(self, positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        shapes = (group.level_shapes(positions) for group in self.groups)
        return tuple(shape for level in zip(*shapes) for shape in level)

    @property
    def prefix(self) -> bool:  # type: ignore[override]
        return all(group.prefix for group in self.groups)

    @property
    def scales(self) -> bool:  # type: ignore[override]
        return any(group.scales for group in self.groups)


class Grouped(Quantizer):
    """Consecutive channels form a group. Losses and statistics are means over the groups.

    Levels are ordered by level, then by group: the first level of every group, then the second of every group ... so
    that, where the groups allow prefixes, the first levels are a coarser version of all channels. Dropout of scales
    leaves all groups of an item with the same number of them.
    """

    def __init__(self, config: GroupedConfig) -> None:
        super().__init__(config)
        self.shared = config.shared
        self.num_groups = config.num_groups
        self.widths = [group.dim for group in config.groups]
        self.drops = any(map(drops_levels, config.groups))
        self.groups = nn.ModuleList(group.build() for group in config.groups[: 1 if config.shared else None])

    def quantize(self, z: Tensor) -> Quantized:
        if self.shared:
            return self._quantize_shared(z)
        options = {"counts": self.groups[0].draw_items(len(z))} if self.training and self.drops else {}  # type: ignore[operator]
        parts = [group.quantize(chunk, **options) for group, chunk in zip(self.groups, z.split(self.widths, dim=-1))]  # type: ignore[operator]
        codes = torch.cat([part.codes for part in parts], dim=-1)
        levels = tuple(level for same_depth in zip(*(part.levels for part in parts)) for level in same_depth)
        losses, statistics = (
            mean_by_name([getattr(part, name) for part in parts]) for name in ("losses", "statistics")
        )
        return Quantized(codes, levels, losses, statistics)

    def _quantize_shared(self, z: Tensor) -> Quantized:
        """All groups in one pass, as one more axis of positions."""
        part = self.groups[0].quantize(z.unflatten(-1, (self.num_groups, -1)))  # type: ignore[operator]
        levels = tuple(level for same_depth in part.levels for level in same_depth.unbind(-1))
        return Quantized(part.codes.flatten(-2), levels, part.losses, part.statistics)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        """Code vectors of indices; also of the first levels alone, where a group without any gives zeros."""
        return self._codes(levels, lambda group, own: group.indices_to_codes(*own))

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        return self._codes(levels, lambda group, own: group.prefix_to_codes(positions, *own))

    def _codes(self, levels: Sequence[Tensor], decode: Callable[[Quantizer, Sequence[Tensor]], Tensor]) -> Tensor:
        if not 0 < len(levels) <= len(self.config.vocab_sizes):
            raise ValueError(f"expected 1 to {len(self.config.vocab_sizes)} levels, got {len(levels)}")
        own = [levels[g :: self.num_groups] for g in range(self.num_groups)]
        codes = [decode(self.groups[0 if self.shared else g], part) for g, part in enumerate(own) if part]  # type: ignore[arg-type]
        missing = sum(self.widths[len(codes) :])
        return torch.cat([*codes, codes[0].new_zeros(*codes[0].shape[:-1], missing)], dim=-1)


GroupedConfig.quantizer = Grouped
