"""Residual quantisation: each level codes what the levels before it left over (SoundStream, arXiv 2107.03312).

Over any quantizer: vectors (RVQ), projected vectors (DAC, arXiv 2306.06546), finite scalars, signs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.ops import residual_codes
from zoo.ops.beam_codes import beam_codes
from zoo.ops.precision import full_precision
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, straight_through
from zoo.quantizers.binary import BinaryConfig
from zoo.quantizers.composite import (
    drops_levels,
    each,
    evaluating,
    mean_by_name,
    needs_its_gradient,
    require_levels,
    split_levels,
)
from zoo.quantizers.finite_scalar import FiniteScalarConfig
from zoo.quantizers.grouped import GroupedConfig
from zoo.quantizers.level_dropout import LevelDropoutConfig
from zoo.quantizers.vector import VectorConfig


@dataclass(frozen=True)
class ResidualConfig(QuantizerConfig):
    """`num_levels` quantizers of one width, each of what is left over.

    Attributes:
        level: the quantizer of every level, or a tuple of one for each.
        num_levels: how many.
        shared: one module, and so one codebook, serves all levels.
        gradient: what reaches the latent and the levels in training.
            "straight_through": the sum of codes passes the decoder's gradient to the latent unchanged, whatever the
            levels' own rule, and the losses of every level reach the latent (audiocraft, Mimi). Not for levels with
            parameters that learn by the gradient of the codes, such as projections.
            "through": gradients pass through each level and through the residual that it leaves, as computed (EnCodec's
            first release, DAC, SNAC). With straight-through levels the losses of all but the first are then cut off
            from the latent.
            "per_level": each level passes the decoder's gradient by its own rule and takes its residual as a constant
            away, so that the latent gets the sum over levels (vector-quantize-pytorch).
        refinement: how much finer each level is than the one before, one number or one a dimension: level i quantises
            its residual times refinement^i, and its codes are divided by that. None: where one config stands for all
            levels the number of values of each dimension for finite scalars and 2 for signs, otherwise 1.
        soft_clamp: bounds c > 0, one or one a dimension; the latent becomes c tanh(z / c) before the first level.
            Finite scalars of L values should be symmetric and clamp, after a soft clamp to L / (L - 1).
        dropout: quantizer dropout, in training mode.
        beam: width of the search in evaluation mode; 1 is greedy, more is for Euclidean vectors.
    """

    kind = "residual"
    level: QuantizerConfig | tuple[QuantizerConfig, ...] = VectorConfig(codebook_size=1024, dim=8)
    num_levels: int = 8
    shared: bool = False
    gradient: Literal["straight_through", "through", "per_level"] = "straight_through"
    refinement: float | tuple[float, ...] | None = None
    soft_clamp: float | tuple[float, ...] | None = None
    dropout: LevelDropoutConfig | None = None
    beam: int = 1

    def __post_init__(self) -> None:
        levels, alike = self.levels, isinstance(self.level, QuantizerConfig)
        self.require(self.num_levels >= 1, "num_levels >= 1", self.num_levels)
        self.require(
            alike or len(levels) == self.num_levels,
            f"one level config, or one for each of the {self.num_levels} levels",
            len(levels),
        )
        widths = {level.dim for level in levels}
        self.require(len(widths) == 1, "levels of one width", sorted(widths))
        for name in ("refinement", "soft_clamp"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (1.0 if value is None else value,)
            self.require(min(values, default=0) > 0, f"a {name} > 0", value)
            self.require(not isinstance(value, tuple) or len(value) == self.dim, f"{self.dim} values", value)
        self.require(not self.shared or alike, "one level config when the levels share it", self.level)
        self.require(
            not (self.shared and (self.scales or self.gradient == "through")),
            "a gradient other than 'through', and levels of the same positions, when the levels share a module",
            self.gradient,
        )
        self.require(
            self.gradient != "straight_through" or not any(map(needs_its_gradient, levels)),
            "a gradient of 'through' or 'per_level' for levels that bring their own",
            self.gradient,
        )
        self.require(not any(map(drops_levels, levels)), "levels without dropout of their own", self.level)
        if self.dropout is not None:
            self.require(self.prefix, "levels whose prefixes make sense, for dropout", self.level)
            self.require(
                self.dropout.minimum <= self.num_levels,
                f"a least number of 1 to {self.num_levels} levels",
                self.dropout.minimum,
            )
            self.require(not (self.dropout.per_item and self.shared), "dropout of whole batches when shared", "items")
        self.require(self.beam >= 1, "a beam >= 1", self.beam)
        self.require(self.beam == 1 or self.searches_vectors, "Euclidean vectors for a beam > 1", self.level)

    @property
    def levels(self) -> tuple[QuantizerConfig, ...]:
        """The config of each level."""
        return each(self.level, self.num_levels)

    @property
    def dim(self) -> int:
        return self.levels[0].dim

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return tuple(size for level in self.levels for size in level.vocab_sizes)

    def level_shapes(self, positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(shape for level in self.levels for shape in level.level_shapes(positions))

    @property
    def prefix(self) -> bool:  # type: ignore[override]
        return all(_adds_up(level) for level in self.levels)

    @property
    def scales(self) -> bool:  # type: ignore[override]
        return any(level.scales for level in self.levels)

    @property
    def searches_vectors(self) -> bool:
        """Whether the levels are Euclidean codebooks in the latent's own space, which one kernel searches at once."""
        vectors = all(isinstance(level, VectorConfig) and level.metric == "euclidean" for level in self.levels)
        return vectors and self.refinement in (None, 1.0)

    def refinement_of(self, q: int) -> tuple[float, ...] | None:
        """refinement^q for each dimension, or None where it is 1."""
        if self.refinement is not None:
            base = self.refinement if isinstance(self.refinement, tuple) else (self.refinement,) * self.dim
        elif isinstance(self.level, FiniteScalarConfig):
            base = tuple(float(values) for values in self.level.levels)
        elif isinstance(self.level, BinaryConfig):
            base = (2.0,) * self.dim
        else:
            return None
        return None if q == 0 or set(base) == {1.0} else tuple(value**q for value in base)


def _adds_up(level: QuantizerConfig) -> bool:
    """Whether some of a level's codebooks alone bring the sum closer."""
    groups = level.groups if isinstance(level, GroupedConfig) else ()
    return level.prefix or len(level.vocab_sizes) == 1 or (len(groups) > 0 and all(map(_adds_up, groups)))


class Residual(Quantizer):
    """The code is the sum of the levels' codes. Losses and statistics are means over the levels that were used.

    Losses are those of the levels for what they quantise, which `refinement` scales. With dropout per item, a level's
    losses are of the items that use it, times their share of the batch, and the mean is over all levels.

    With dropout of batches, `Quantized.levels` holds the levels that were used. With dropout per item it holds all
    levels of all items, though `codes` leaves out those beyond an item's number.
    """

    config: ResidualConfig

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__(config)
        self.levels = nn.ModuleList(level.build() for level in config.levels[: 1 if config.shared else None])

    def quantize(self, z: Tensor) -> Quantized:
        dropout = self.config.dropout if self.training else None
        counts, used = None, range(self.config.num_levels)
        if dropout is not None and dropout.per_item:
            counts = self.draw_items(len(z))
        elif dropout is not None:
            used = range(dropout.draw_batch(self.config.num_levels, z.device))
        return self._quantize_levels(z, used, counts)

    def _quantize_levels(self, z: Tensor, used: range, counts: Tensor | None = None) -> Quantized:
        """By the levels `used`; with `counts` (B,), the codes of each item are of its first levels."""
        config = self.config
        if config.soft_clamp is not None:
            bound = z.new_tensor(config.soft_clamp)
            z = (z / bound).tanh() * bound
        if self.training and config.shared:
            return self._quantize_shared(z, used)
        found = None if self.training else self._search(z, len(used))
        residual, total, parts = z, torch.zeros_like(z), []
        for q in used:
            level, inputs = self.level(q), self._refined(residual, q)
            if counts is not None:
                part = _of_items(level, inputs, counts > q)
            elif found is not None:
                part = level.assign(inputs, found[q])  # type: ignore[operator]
            else:
                part = level.quantize(inputs)
            codes = self._coarsened(part.codes, q)
            residual = residual - (codes if config.gradient == "through" else codes.detach())
            total = total + (codes if counts is None else codes * _per_item((counts > q).to(z.device), codes))
            parts.append(part)
        return self._joined(z, total, parts)

    def _quantize_masked(self, z: Tensor, mask: Tensor) -> Quantized:
        if self.training and self.config.dropout is not None and self.config.dropout.per_item:
            raise ValueError("dropout per item takes no mask: the positions that are left no longer show their items")
        return super()._quantize_masked(z, mask)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        """Code vectors of indices; of the first levels alone where `config.prefix`."""
        return self._codes(levels, lambda level, own: level.indices_to_codes(*own))

    def first_levels(self, z: Tensor, count: int) -> tuple[Tensor, ...]:
        """The further levels are left out, where each has one codebook."""
        config = self.config
        if self.training or config.beam > 1 or any(len(level.vocab_sizes) != 1 for level in config.levels):
            return super().first_levels(z, count)
        with full_precision(z):
            return self._quantize_levels(z.float(), range(count)).levels

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        return self._codes(levels, lambda level, own: level.prefix_to_codes(positions, *own))

    def _codes(self, levels: Sequence[Tensor], decode: Callable[[Quantizer, Sequence[Tensor]], Tensor]) -> Tensor:
        require_levels(self.config, levels)
        split = split_levels(self.config.levels, levels)
        parts = [self._coarsened(decode(self.level(q), own), q) for q, own in enumerate(split) if own]
        return sum(parts, torch.zeros_like(parts[0]))

    def level(self, q: int) -> Quantizer:
        """The quantizer of level q."""
        return self.levels[0 if self.config.shared else q]  # type: ignore[return-value]

    def draw_items(self, items: int) -> Tensor:
        """(B,) how many levels each item of a training batch uses, by the dropout per item."""
        dropout = self.config.dropout or LevelDropoutConfig()
        return dropout.draw_items(self.config.num_levels, items)

    def _search(self, z: Tensor, count: int) -> list[Tensor] | None:
        """The indices of the first levels in one pass, where they are plain codebooks that one kernel searches."""
        if not self.config.searches_vectors:
            return None
        codebooks = [self.level(q).codes() for q in range(count)]  # type: ignore[operator]
        flat = z.flatten(0, -2)
        found = (
            residual_codes(flat, codebooks) if self.config.beam == 1 else beam_codes(flat, codebooks, self.config.beam)
        )
        return [indices.view(z.shape[:-1]) for indices in found.unbind(1)]

    def _quantize_shared(self, z: Tensor, used: range) -> Quantized:
        """The levels of one module as one batch of all their residuals, so that a running codebook moves once."""
        level = self.level(0)
        residual, inputs = z, []
        for q in used:
            inputs.append(self._refined(residual, q))
            with evaluating(level):
                codes = level.quantize(inputs[-1]).codes
            residual = residual - self._coarsened(codes, q)
        part = level.quantize(torch.stack(inputs))
        total = torch.zeros_like(z)
        for q in used:
            total = total + self._coarsened(part.codes[q], q)
        levels = tuple(indices[q] for q in used for indices in part.levels)
        return self._joined(z, total, [Quantized(total, levels, part.losses, part.statistics)])

    def _joined(self, z: Tensor, total: Tensor, parts: list[Quantized]) -> Quantized:
        codes = straight_through(z, total) if self.config.gradient == "straight_through" else total
        levels = tuple(level for part in parts for level in part.levels)
        losses, statistics = (
            mean_by_name([getattr(part, name) for part in parts]) for name in ("losses", "statistics")
        )
        return Quantized(codes, levels, losses, statistics)

    def _refined(self, residual: Tensor, q: int) -> Tensor:
        factor = self.config.refinement_of(q)
        return residual if factor is None else residual * residual.new_tensor(factor)

    def _coarsened(self, codes: Tensor, q: int) -> Tensor:
        factor = self.config.refinement_of(q)
        return codes if factor is None else codes / codes.new_tensor(factor)


def _of_items(level: Quantizer, z: Tensor, used: Tensor) -> Quantized:
    """A level in training on the items (B,) that use it, which the CPU tells; the others get their codes and indices,
    and nothing else.
    """
    inside, outside = (items.nonzero().flatten().to(z.device) for items in (used, ~used))
    part = level.quantize(z[inside])
    with evaluating(level):
        rest = level.quantize(z[outside])
    share = used.float().mean() if len(z) else z.new_ones(())
    return Quantized(
        _merged(inside, part.codes, outside, rest.codes),
        tuple(_merged(inside, a, outside, b) for a, b in zip(part.levels, rest.levels)),
        {name: loss * share for name, loss in part.losses.items()},
        part.statistics,
    )


def _merged(inside: Tensor, where: Tensor, outside: Tensor, elsewhere: Tensor) -> Tensor:
    merged = where.new_zeros(len(inside) + len(outside), *where.shape[1:])
    return merged.index_put((inside,), where).index_put((outside,), elsewhere)


def _per_item(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...) with as many axes as `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


ResidualConfig.quantizer = Residual
