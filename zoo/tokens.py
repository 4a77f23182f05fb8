"""Tokens: what `encode` returns and `decode` takes; packing, storage and flattening for a language model."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["grid", "sequence", "frames", "scales"]
Order = Literal["frame", "level"]
LAYOUTS: tuple[Layout, ...] = ("grid", "sequence", "frames", "scales")
PAD = -1  # fills the rows of `flatten` beyond an item's own length


@dataclass(frozen=True)
class Source:
    """The model that made the tokens: its name and the fingerprint of its weights and config."""

    name: str
    fingerprint: str

    @property
    def described(self) -> str:
        """For messages."""
        return f"{self.name} (weights {self.fingerprint})"


@dataclass(frozen=True)
class Extent:
    """Size of each item before padding, which decoding restores.

    Attributes:
        sizes: one tuple per item: (height, width) in pixels, (frames, height, width) or (samples,).
        sample_rate: in Hz, of audio.
        gains: of models that code loudness apart from the tokens, for each item the factor of each of its segments,
            as float32 holds it.
        places: of models that keep some tokens of a row, for each item the places that its tokens had in it, ascending;
            None where every item's tokens are the first of the row.

    Raises:
        ValueError: sizes that are no positive integers, or not all of as many axes; gains or places of another number
            of items; places that do not ascend.
    """

    sizes: tuple[tuple[int, ...], ...]
    sample_rate: int | None = None
    gains: tuple[tuple[float, ...], ...] | None = None
    places: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        sides = [side for size in self.sizes for side in size]
        if any(not isinstance(side, int) or side < 1 for side in sides):
            raise ValueError(f"extent: expected positive integers, got {self.sizes}")
        if len({len(size) for size in self.sizes}) > 1 or () in self.sizes:
            raise ValueError(f"extent: expected sizes of as many axes each, got {self.sizes}")
        if self.gains is not None and len(self.gains) != len(self.sizes):
            raise ValueError(f"extent: expected gains of {len(self.sizes)} items, got {len(self.gains)}")
        if not all(math.isfinite(gain) for item in self.gains or () for gain in item):
            raise ValueError(f"extent: expected finite gains, got {self.gains}")
        if self.places is not None and len(self.places) != len(self.sizes):
            raise ValueError(f"extent: expected places of {len(self.sizes)} items, got {len(self.places)}")
        for item in self.places or ():
            if any(before >= after for before, after in pairwise((-1, *item))):
                raise ValueError(f"extent: expected places that ascend from 0, got {item}")

    def __getitem__(self, items: Sequence[int]) -> Extent:
        """The extent of some items."""
        gains = None if self.gains is None else tuple(self.gains[item] for item in items)
        places = None if self.places is None else tuple(self.places[item] for item in items)
        return replace(self, sizes=tuple(self.sizes[item] for item in items), gains=gains, places=places)


@dataclass(frozen=True)
class Tokens:
    """Integers that stand for a batch of signals.

    Attributes:
        levels: int64 index tensors, one per codebook level, each (B, *positions).
        vocab_sizes: number of codes of each level.
        layout: `grid` (B, H, W), of video (B, T, H, W); `sequence` (B, N); `frames` (B, T) at each level; `scales`
            (levels of any length).
        lengths: valid positions of each item where items differ: (B,), or (B, Q) for `scales`; entries beyond are 0.
        source: who made them; None stands for an unknown maker, whose tokens any model of fitting layout decodes.
        extent: what undoes the padding of the signals.
        prefix: along which axis a prefix is a coarser version of the same signal: "positions", "levels" or None.

    Raises:
        ValueError: levels that do not fit together, or an index outside its vocabulary.
    """

    levels: tuple[Tensor, ...]
    vocab_sizes: tuple[int, ...]
    layout: Layout
    lengths: Tensor | None = None
    source: Source | None = None
    extent: Extent | None = None
    prefix: Literal["positions", "levels"] | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not self.levels or len(self.levels) != len(self.vocab_sizes):
            raise ValueError(f"expected a vocabulary size per level, got {len(self.levels)} and {self.vocab_sizes}")
        if any(not isinstance(size, int) or size < 1 for size in self.vocab_sizes):
            raise ValueError(f"expected integer vocabulary sizes >= 1, got {self.vocab_sizes}")
        if self.prefix not in (None, "positions", "levels"):
            raise ValueError(f"prefix: expected 'positions', 'levels' or None, got {self.prefix!r}")
        positions = {"sequence": (1,), "frames": (1,), "grid": (2, 3)}.get(self.layout)
        for level, vocab_size in zip(self.levels, self.vocab_sizes):
            if level.dtype != torch.int64:
                raise ValueError(f"expected int64 indices, got {level.dtype}")
            if level.ndim < 2 or (positions is not None and level.ndim - 1 not in positions):
                wanted = " or ".join(map(str, positions or ("some",)))
                raise ValueError(f"layout {self.layout}: expected {wanted} position axes, got {tuple(level.shape)}")
            if len(level) != len(self.levels[0]):
                raise ValueError(f"expected equal batch sizes, got {[len(level) for level in self.levels]}")
            if self.layout != "scales" and level.shape != self.levels[0].shape:
                raise ValueError(f"expected levels of one shape, got {[tuple(level.shape) for level in self.levels]}")
            if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < vocab_size:
                raise ValueError(f"expected indices in [0, {vocab_size}), got {int(level.min())} to {int(level.max())}")
        self._check_lengths()
        if self.extent is not None and len(self.extent.sizes) != len(self):
            raise ValueError(f"expected an extent of {len(self)} items, got {len(self.extent.sizes)}")
        if self.extent is not None and self.extent.places is not None:
            counts = [len(item) for item in self.extent.places]
            if counts != self._lengths(0).tolist():
                raise ValueError(f"expected a place for each of {self._lengths(0).tolist()} tokens, got {counts}")

    def _check_lengths(self) -> None:
        if self.lengths is None:
            return
        shape = (len(self), len(self.levels)) if self.layout == "scales" else (len(self),)
        if self.layout == "grid" or any(level.ndim != 2 for level in self.levels):
            raise ValueError(f"layout {self.layout} with shape {tuple(self.levels[0].shape)} takes no lengths")
        if self.lengths.shape != shape or self.lengths.dtype != torch.int64:
            raise ValueError(f"lengths: expected int64 {shape}, got {self.lengths.dtype} {tuple(self.lengths.shape)}")
        for q, level in enumerate(self.levels):
            lengths = self._lengths(q)
            if len(self) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= level.shape[1]:
                raise ValueError(f"lengths: expected 0 to {level.shape[1]}, got {lengths.tolist()}")
            beyond = torch.arange(level.shape[1], device=level.device) >= lengths[:, None]
            if bool((level * beyond).any()):
                raise ValueError("expected zeros beyond an item's length")

    def _lengths(self, q: int) -> Tensor:
        """(B,) valid positions of level q."""
        if self.lengths is None:
            return torch.full((len(self),), math.prod(self.levels[q].shape[1:]), dtype=torch.int64, device="cpu")
        return self.lengths[:, q] if self.lengths.ndim == 2 else self.lengths

    def _places(self) -> tuple[tuple[int, ...], ...]:
        """Of each item the places that its tokens had in the row."""
        if self.extent is not None and self.extent.places is not None:
            return self.extent.places
        return tuple(tuple(range(length)) for length in self._lengths(0).tolist())

    # -- views -----------------------------------------------------------------------------------------------------

    @property
    def indices(self) -> Tensor:
        """The array users expect: (B, H, W), of video (B, T, H, W), (B, N), (B, Q, T); with Q > 1 levels of a grid or
        sequence (B, Q, ...).

        Levels of different length (`scales`) are joined one after the other: (B, N).
        """
        if self.layout == "scales":
            return torch.cat([level.flatten(1) for level in self.levels], dim=1)
        if len(self.levels) == 1 and self.layout != "frames":
            return self.levels[0]
        return torch.stack(self.levels, dim=1)

    @property
    def device(self) -> torch.device:
        return self.levels[0].device

    @property
    def bits(self) -> tuple[int, ...]:
        """Exact size of each item in bits: each index packed at ceil(log2 K) bits, each gain at 32, and of a row of
        which some tokens are kept one bit for each place up to the last.
        """
        widths = [(size - 1).bit_length() for size in self.vocab_sizes]
        counts = [self._lengths(q).tolist() for q in range(len(self.levels))]
        gains = None if self.extent is None else self.extent.gains
        apart = [32 * len(item) for item in gains] if gains is not None else [0] * len(self)
        if self.extent is not None and self.extent.places is not None:
            apart = [bits + (item[-1] + 1 if item else 0) for bits, item in zip(apart, self.extent.places)]
        return tuple(sum(width * count[b] for width, count in zip(widths, counts)) + apart[b] for b in range(len(self)))

    def __len__(self) -> int:
        return self.levels[0].shape[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokens):
            return NotImplemented
        same = len(self.levels) == len(other.levels) and (self.lengths is None) == (other.lengths is None)
        names = ("vocab_sizes", "layout", "source", "extent", "prefix")
        return (
            same
            and all(getattr(self, name) == getattr(other, name) for name in names)
            and all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(self.levels, other.levels))
            and (self.lengths is None or torch.equal(self.lengths.cpu(), other.lengths.cpu()))  # type: ignore[union-attr]
        )

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, items: int | slice | Sequence[int] | Tensor) -> Tokens:
        """The tokens of some items; an integer keeps the batch axis (a batch of one).

        Raises:
            IndexError: no such item, or a mask: `mask.nonzero()[:, 0]` are its items.
        """
        count = len(self)
        plain = items.tolist() if hasattr(items, "tolist") else items  # of torch and NumPy
        chosen = list(range(count))[plain] if isinstance(plain, slice) else plain
        chosen = [chosen] if isinstance(chosen, int) else chosen
        if any(isinstance(item, bool) or not -count <= item < count for item in chosen):
            raise IndexError(f"expected items in [0, {count}), got {items}")
        chosen = [item % count for item in chosen]
        extent = self.extent and self.extent[chosen]
        index = torch.tensor(chosen, dtype=torch.int64, device=self.device)
        lengths = None if self.lengths is None else self.lengths[index]
        return replace(self, levels=tuple(level[index] for level in self.levels), lengths=lengths, extent=extent)

    def require_from(
        self, source: Source, layout: Layout, vocab_sizes: tuple[int, ...], prefix: str | None = None
    ) -> None:
        """Raise a ValueError, with expected and got, unless these are tokens of a model; levels may be missing at the
        end where its `prefix` is "levels"."""
        if self.source is not None and self.source != source:
            raise ValueError(f"expected tokens of {source.described}, got tokens of {self.source.described}")
        if self.layout != layout:
            raise ValueError(f"expected tokens of layout {layout}, got {self.layout}")
        expected = vocab_sizes[: len(self.levels)] if prefix == "levels" else vocab_sizes
        if self.vocab_sizes != expected:
            raise ValueError(f"expected vocabularies of {expected} codes, got {self.vocab_sizes}")

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return replace(self, levels=tuple(level.to(device) for level in self.levels), lengths=lengths)

    @staticmethod
    def cat(batches: Sequence[Tokens]) -> Tokens:
        """One batch of several; all must be of one model, layout and shape (lengths may differ)."""
        if not batches:
            raise ValueError("expected at least one batch of tokens, got none")
        first = batches[0]
        for other in batches[1:]:
            for name in ("vocab_sizes", "layout", "source", "prefix"):
                if getattr(first, name) != getattr(other, name):
                    raise ValueError(f"{name}: expected {getattr(first, name)}, got {getattr(other, name)}")
        ragged = first.layout in ("sequence", "frames", "scales") and all(level.ndim == 2 for level in first.levels)
        shapes = [[tuple(level.shape[1:]) for level in batch.levels] for batch in batches]
        differ = any(shape != shapes[0] for shape in shapes)
        if differ and not ragged:
            raise ValueError(f"expected equal shapes, got {shapes}")
        lengths = None
        if differ or any(batch.lengths is not None for batch in batches):
            per_level = [torch.cat([b._lengths(q).to(first.device) for b in batches]) for q in range(len(first.levels))]
            lengths = torch.stack(per_level, dim=1) if first.layout == "scales" else per_level[0]
        levels = []
        for q in range(len(first.levels)):
            longest = max(batch.levels[q].shape[1] for batch in batches)
            parts = [
                torch.nn.functional.pad(batch.levels[q], (0, longest - batch.levels[q].shape[1]))
                if differ
                else batch.levels[q]
                for batch in batches
            ]
            levels.append(torch.cat(parts))
        extent = None
        if all(batch.extent is not None for batch in batches):
            rates = {batch.extent.sample_rate for batch in batches}  # type: ignore[union-attr]
            if len(rates) != 1:
                raise ValueError(f"expected one sample rate, got {sorted(map(str, rates))}")
            sizes = tuple(size for batch in batches for size in batch.extent.sizes)  # type: ignore[union-attr]
            parts = [batch.extent.gains for batch in batches]  # type: ignore[union-attr]
            if len({part is None for part in parts}) != 1:
                raise ValueError("expected gains in all batches or in none")
            gains = None if parts[0] is None else tuple(gain for part in parts for gain in part or ())
            places = None
            if any(batch.extent.places is not None for batch in batches):  # type: ignore[union-attr]
                places = tuple(item for batch in batches for item in batch._places())
            extent = Extent(sizes, rates.pop(), gains, places)
        return replace(first, levels=tuple(levels), lengths=lengths, extent=extent)

    def truncate(self, k: int) -> Tokens:
        """The first k positions (or levels) of every item, where a prefix is a coarser version of the same signal.

        Raises:
            ValueError: k outside 1 to the number present, or tokens of a model whose prefixes mean nothing.
        """
        if self.prefix is None:
            raise ValueError(
                f"tokens of {self.source.name if self.source else 'this model'} cannot be truncated: its positions are "
                "not ordered from coarse to fine"
            )
        present = len(self.levels) if self.prefix == "levels" else self.levels[0].shape[1]
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= present:
            raise ValueError(f"expected 1 to {present} {self.prefix}, got {k!r}")
        if self.prefix == "levels":
            lengths = self.lengths[:, :k] if self.lengths is not None and self.lengths.ndim == 2 else self.lengths
            return replace(self, levels=self.levels[:k], vocab_sizes=self.vocab_sizes[:k], lengths=lengths)
        lengths = None if self.lengths is None else self.lengths.clamp(max=k)
        return replace(self, levels=tuple(level[:, :k] for level in self.levels), lengths=lengths)

    # -- one id stream for a language model ------------------------------------------------------------------------

    @property
    def offsets(self) -> tuple[int, ...]:
        """First id of each level in the joint vocabulary of `flatten`."""
        return tuple(sum(self.vocab_sizes[:q]) for q in range(len(self.vocab_sizes)))

    def flatten(self, order: Order = "frame") -> Tensor:
        """All indices of an item as one stream of ids, each level in its own range of a joint vocabulary.

        Args:
            order: "frame": all levels of a position before the next position (levels whose lengths are whole multiples
                of the first one's are interleaved in that ratio); "level": one level after the other.

        Returns:
            (B, N) int64; rows of shorter items end in `PAD` (-1).

        Raises:
            ValueError: frame order where the lengths of the levels are no whole multiples.
        """
        slots = flat_slots([math.prod(level.shape[1:]) for level in self.levels], order).to(self.device)
        values = torch.cat([level.flatten(1) + offset for level, offset in zip(self.levels, self.offsets)], dim=1)
        if self.lengths is None:
            return values[:, slots]
        valid = torch.cat(
            [
                torch.arange(level.shape[1], device=self.device) < self._lengths(q).to(self.device)[:, None]
                for q, level in enumerate(self.levels)
            ],
            dim=1,
        )[:, slots]
        valid_first = (~valid).sort(dim=1, stable=True).indices
        longest = int(valid.sum(dim=1).max()) if len(self) else 0
        return values[:, slots].masked_fill(~valid, PAD).gather(1, valid_first)[:, :longest]

    def unflatten(self, ids: Tensor, order: Order = "frame") -> Tokens:
        """Tokens of the shape of these from ids (B, N) of `flatten`, in the same order.

        Raises:
            ValueError: another number of ids, or an id outside its level's range.
        """
        levels = unflatten_ids(
            ids, [tuple(level.shape[1:]) for level in self.levels], self.vocab_sizes, order, lengths=self.lengths
        )
        return replace(self, levels=levels)

    # -- storage ---------------------------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """Compact bytes: a short header (version, model, shapes) and the indices at ceil(log2 K) bits each."""
        from zoo import packing

        return packing.pack(self)

    @staticmethod
    def unpack(data: bytes) -> Tokens:
        """The tokens of `pack`.

        Raises:
            ValueError: bytes that are no packed tokens, of a later version, or cut short.
        """
        from zoo import packing

        return packing.unpack(data)

    def save(self, path: str | Path) -> None:
        """Write a file: safetensors where the name ends so, else the packed form."""
        from zoo import packing

        path = Path(path)
        data = packing.to_safetensors(self) if path.suffix == ".safetensors" else self.pack()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | Path) -> Tokens:
        """Read a file of `save`.

        Raises:
            ValueError: a file that holds no tokens.
            OSError: a file that cannot be read.
        """
        from zoo import packing

        data = Path(path).read_bytes()
        try:
            return packing.unpack(data) if data.startswith(packing.MAGIC) else packing.from_safetensors(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def require_tokens(tokens: object) -> None:
    """Raise a ValueError, with expected and got, unless these are tokens."""
    if not isinstance(tokens, Tokens):
        raise ValueError(f"expected Tokens, which `model.tokens` makes of indices, got {type(tokens).__name__}")


def integers(indices: object) -> Tensor:
    """Indices or ids of any integer type as int64.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(indices, Tensor):
        raise ValueError(f"expected a tensor of integers, got {type(indices).__name__}")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"expected integers, got {indices.dtype}")
    return indices.long()


def flat_slots(counts: Sequence[int], order: Order) -> Tensor:
    """Where each id of a flattened item comes from, as positions in the levels laid one after the other."""
    if order not in ("frame", "level"):
        raise ValueError(f"order: expected 'frame' or 'level', got {order!r}")
    total = sum(counts)
    if order == "level" or len(counts) == 1 or total == 0:
        return torch.arange(total, device="cpu")
    frames = min(counts)
    if frames == 0 or any(count % frames for count in counts):
        raise ValueError(f"frame order needs levels whose lengths are whole multiples, got {list(counts)}; use 'level'")
    starts = [sum(counts[:q]) for q in range(len(counts))]
    return torch.cat(
        [
            start + torch.arange(count, device="cpu").view(frames, count // frames)
            for start, count in zip(starts, counts)
        ],
        dim=1,
    ).flatten()


def unflatten_ids(
    ids: Tensor,
    shapes: Sequence[tuple[int, ...]],
    vocab_sizes: Sequence[int],
    order: Order = "frame",
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Index tensors of levels of the given position shapes from ids (B, N) of `Tokens.flatten`."""
    if ids.ndim != 2 or ids.dtype != torch.int64:
        raise ValueError(f"expected int64 ids (B, N), got {ids.dtype} {tuple(ids.shape)}")
    counts = [math.prod(shape) for shape in shapes]
    slots = flat_slots(counts, order).to(ids.device)
    total = len(slots)
    level_of = torch.arange(len(counts), device=ids.device).repeat_interleave(torch.tensor(counts, device=ids.device))
    offsets = torch.tensor([sum(vocab_sizes[:q]) for q in range(len(counts))], device=ids.device)
    sizes = torch.tensor(list(vocab_sizes), device=ids.device)
    if lengths is None:
        if ids.shape[1] != total:
            raise ValueError(f"expected {total} ids an item, got {ids.shape[1]}")
        values = torch.empty_like(ids)
        values[:, slots] = ids
        valid = torch.ones_like(values, dtype=torch.bool)
    else:
        if len(lengths) != len(ids):
            raise ValueError(f"expected ids of {len(lengths)} items, got {len(ids)}")
        position = torch.cat([torch.arange(count, device=ids.device) for count in counts])
        of_level = lengths if lengths.ndim == 2 else lengths[:, None].expand(-1, len(counts))
        valid = position < of_level.to(ids.device)[:, level_of]
        values = torch.zeros(len(ids), total, dtype=torch.int64, device=ids.device)
        for row, keep, out in zip(ids, valid, values):
            places = slots[keep[slots]]
            if len(row) < len(places) or bool((row[len(places) :] != PAD).any()):
                raise ValueError(f"expected {len(places)} ids and then {PAD}, got {int((row != PAD).sum())} ids")
            out[places] = row[: len(places)]
    local = torch.where(valid, values - offsets[level_of], 0)
    if bool(((local < 0) | (local >= sizes[level_of])).any()):
        raise ValueError("expected each id inside the range of its level, got ids of another level or vocabulary")
    parts = local.split(counts, dim=1)
    return tuple(part.reshape(len(ids), *shape) for part, shape in zip(parts, shapes))
