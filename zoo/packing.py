"""The stored forms of tokens: packed bits with a short binary header, and safetensors.

Packed form, version 1: b"ZTK" and a version byte; then, all numbers as LEB128 varints: layout, prefix axis, batch,
levels, for each level its vocabulary size and position axes; lengths flag and lengths; source flag, name, fingerprint;
extent flag, sample rate, axes, sizes; where the flag is 2 or 4, of each item the number of gains and these as
big-endian float32; where it is 3 or 4, of each item one more than its last place and a bit for each place up to it,
set where a token is kept, padded to a whole byte; then the valid indices, level by level and item by item, each at
ceil(log2 K) bits. Bits come most significant first, padded with zeros to a whole byte.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from zoo.tokens import LAYOUTS, Extent, Source, Tokens

T = TypeVar("T")
MAGIC = b"ZTK"
VERSION = 1
_PREFIXES: tuple[Literal["positions", "levels"] | None, ...] = (None, "positions", "levels")
_MAXIMUM = 1 << 40  # no count in a header may exceed it
_MAXIMUM_VOCABULARY = 1 << 62
_UNPAID = 1 << 26  # positions beyond those that bits follow for: padding of ragged batches, vocabularies of one code


def pack(tokens: Tokens) -> bytes:
    header = bytearray(MAGIC + bytes([VERSION]))
    numbers = [LAYOUTS.index(tokens.layout), _PREFIXES.index(tokens.prefix), len(tokens), len(tokens.levels)]
    for level, vocab_size in zip(tokens.levels, tokens.vocab_sizes):
        numbers += [vocab_size, level.ndim - 1, *level.shape[1:]]
    numbers += [0] if tokens.lengths is None else [1, *tokens.lengths.flatten().tolist()]
    header += b"".join(map(_varint, numbers))
    header += _varint(0) if tokens.source is None else _varint(1) + _text(tokens.source.name)
    if tokens.source is not None:
        header += _text(tokens.source.fingerprint)
    header += _varint(0) if tokens.extent is None else _extent(tokens.extent)
    bits = np.concatenate([_bits(_valid(tokens, q), size) for q, size in enumerate(tokens.vocab_sizes)])
    _check_positions(len(tokens), [level.shape[1:] for level in tokens.levels], len(bits))
    return bytes(header) + np.packbits(bits).tobytes()


def unpack(data: bytes) -> Tokens:
    if not data.startswith(MAGIC):
        raise ValueError(f"expected packed tokens (they begin with {MAGIC!r}), got {data[:8]!r}")
    if data[3:4] != bytes([VERSION]):
        raise ValueError(f"expected packed tokens of version {VERSION}, got {data[3:4].hex() or 'nothing'}")
    reader = _Reader(data, 4)
    layout = reader.choice(LAYOUTS)
    prefix = reader.choice(_PREFIXES)
    batch, count = reader.number(), reader.number()
    vocab_sizes, shapes = [], []
    for _ in range(reader.bounded(count)):
        vocab_sizes.append(reader.number(_MAXIMUM_VOCABULARY))
        shapes.append(tuple(reader.number() for _ in range(reader.bounded(reader.number()))))
    lengths = None
    if reader.number():
        shape = (batch, count) if layout == "scales" else (batch,)
        found = [reader.number() for _ in range(reader.bounded(math.prod(shape)))]
        lengths = torch.tensor(found, dtype=torch.int64, device="cpu").view(shape)
    source = Source(reader.text(), reader.text()) if reader.number() else None
    extent = None
    if flag := reader.choice((0, 1, 2, 3, 4)):
        rate, axes = reader.number(), reader.bounded(reader.number())
        reader.bounded(batch * max(1, axes))
        sizes = tuple(tuple(reader.number() for _ in range(axes)) for _ in range(batch))
        gains = tuple(reader.floats(reader.number()) for _ in range(batch)) if flag in (2, 4) else None
        places = tuple(reader.places(reader.number()) for _ in range(batch)) if flag in (3, 4) else None
        extent = Extent(sizes, rate or None, gains, places)
    levels = _read_levels(data[reader.at :], batch, shapes, vocab_sizes, lengths)
    return Tokens(levels, tuple(vocab_sizes), layout, lengths, source, extent, prefix)


def to_safetensors(tokens: Tokens) -> bytes:
    tensors = {f"levels.{q}": level.cpu().contiguous() for q, level in enumerate(tokens.levels)}
    if tokens.lengths is not None:
        tensors["lengths"] = tokens.lengths.cpu()
    about = {
        "version": VERSION,
        "vocab_sizes": tokens.vocab_sizes,
        "layout": tokens.layout,
        "prefix": tokens.prefix,
        "source": tokens.source and [tokens.source.name, tokens.source.fingerprint],
        "extent": tokens.extent
        and [tokens.extent.sizes, tokens.extent.sample_rate, tokens.extent.gains, tokens.extent.places],
    }
    return safetensors.torch.save(tensors, {"tokens": json.dumps(about)})


def from_safetensors(data: bytes) -> Tokens:
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tokens"])
        if about["version"] != VERSION:
            raise ValueError(f"version: expected {VERSION}, got {about['version']}")
        extent = about["extent"]
        return Tokens(
            levels=tuple(tensors[f"levels.{q}"] for q in range(len(about["vocab_sizes"]))),
            vocab_sizes=tuple(about["vocab_sizes"]),
            layout=about["layout"],
            lengths=tensors.get("lengths"),
            source=Source(*map(str, about["source"])) if about["source"] else None,
            extent=_read_extent(*extent) if extent else None,
            prefix=about["prefix"],
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected a file of tokens, got something else ({error!r})") from error


def _read_extent(
    sizes: list[list[int]],
    rate: int | None,
    gains: list[list[float]] | None = None,
    places: list[list[int]] | None = None,
) -> Extent:
    kept = None if places is None else tuple(map(tuple, places))
    return Extent(tuple(map(tuple, sizes)), rate, None if gains is None else tuple(map(tuple, gains)), kept)


def _valid(tokens: Tokens, q: int) -> np.ndarray:
    """The valid indices of level q, item by item."""
    level = tokens.levels[q].cpu().flatten(1).numpy()
    if tokens.lengths is None:
        return level.reshape(-1)
    return level[np.arange(level.shape[1]) < tokens._lengths(q).cpu().numpy()[:, None]]


def _bits(values: np.ndarray, vocab_size: int) -> np.ndarray:
    """(N,) integers -> (N * width,) bits, most significant first."""
    shifts = np.arange((vocab_size - 1).bit_length() - 1, -1, -1)
    return ((values[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1)


def _read_levels(
    payload: bytes, batch: int, shapes: list[tuple[int, ...]], vocab_sizes: list[int], lengths: Tensor | None
) -> tuple[Tensor, ...]:
    if lengths is not None and any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"packed tokens: expected one position axis beside lengths, got shapes {shapes}")
    widths = [(size - 1).bit_length() for size in vocab_sizes]
    of_level = [lengths[:, q] if lengths is not None and lengths.ndim == 2 else lengths for q in range(len(shapes))]
    counts = [
        batch * math.prod(shape) if length is None else int(length.sum()) for shape, length in zip(shapes, of_level)
    ]
    total = sum(width * count for width, count in zip(widths, counts))
    if len(payload) != (total + 7) // 8:
        raise ValueError(f"packed tokens: expected {(total + 7) // 8} bytes of indices, got {len(payload)}")
    _check_positions(batch, shapes, total)
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), count=total)
    levels, at = [], 0
    for shape, width, count, length in zip(shapes, widths, counts, of_level):
        weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
        values = torch.from_numpy(bits[at : at + width * count].reshape(count, width) @ weights)
        at += width * count
        if length is None:
            levels.append(values.view(batch, *shape))
            continue
        if bool((length > shape[0]).any()):
            raise ValueError(f"packed tokens: expected lengths up to {shape[0]}, got {int(length.max())}")
        level = torch.zeros(batch, *shape, dtype=torch.int64, device="cpu")
        level[torch.arange(shape[0], device="cpu") < length[:, None]] = values
        levels.append(level)
    return tuple(levels)


def _check_positions(batch: int, shapes: Sequence[Sequence[int]], bits: int) -> None:
    """Refuse a few bytes that would become a vast tensor."""
    positions = sum(math.prod(max(1, side) for side in (batch, *shape)) for shape in shapes)
    if positions > bits + _UNPAID:
        raise ValueError(f"packed tokens: expected at most {bits + _UNPAID} positions for {bits} bits, got {positions}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def _text(text: str) -> bytes:
    return _varint(len(text.encode())) + text.encode()


def _extent(extent: Extent) -> bytes:
    axes = len(extent.sizes[0]) if extent.sizes else 0
    flag = 1 + (extent.gains is not None) + 2 * (extent.places is not None)
    numbers = [flag, extent.sample_rate or 0, axes, *(number for size in extent.sizes for number in size)]
    gains = (_varint(len(item)) + struct.pack(f">{len(item)}f", *item) for item in extent.gains or ())
    return b"".join(map(_varint, numbers)) + b"".join(gains) + b"".join(map(_kept, extent.places or ()))


def _kept(places: tuple[int, ...]) -> bytes:
    kept = np.zeros(places[-1] + 1 if places else 0, np.uint8)
    kept[list(places)] = 1
    return _varint(len(kept)) + np.packbits(kept).tobytes()


class _Reader:
    """Reads the header of the packed form; anything that does not fit is a ValueError."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def number(self, maximum: int = _MAXIMUM) -> int:
        value = shift = 0
        while True:
            if self.at >= len(self.data):
                raise ValueError(f"packed tokens end in their header, after {len(self.data)} bytes")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if value > maximum:
                raise ValueError(f"packed tokens: expected numbers up to {maximum} in the header, got {value}")
            if byte < 0x80:
                return value

    def bounded(self, count: int) -> int:
        """`count`, refused where so many numbers cannot follow."""
        if count > len(self.data) - self.at:
            raise ValueError(
                f"packed tokens: the header states {count} values, {len(self.data) - self.at} bytes follow"
            )
        return count

    def floats(self, count: int) -> tuple[float, ...]:
        end = self.at + 4 * self.bounded(count)
        if end > len(self.data):
            raise ValueError(f"packed tokens end in their header, after {len(self.data)} bytes")
        values, self.at = struct.unpack(f">{count}f", self.data[self.at : end]), end
        return values

    def places(self, count: int) -> tuple[int, ...]:
        end = self.at + self.bounded((count + 7) // 8)
        kept, self.at = np.unpackbits(np.frombuffer(self.data[self.at : end], np.uint8), count=count), end
        return tuple(kept.nonzero()[0].tolist())

    def choice(self, options: tuple[T, ...]) -> T:
        number = self.number()
        if number >= len(options):
            raise ValueError(f"packed tokens: expected a number below {len(options)}, got {number}")
        return options[number]

    def text(self) -> str:
        length = self.bounded(self.number())
        end = self.at + length
        text, self.at = self.data[self.at : end].decode(errors="strict"), end
        return text
