"""The two stages between a record and its tokens, which every engine runs alike: decode, and encode in buckets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import media
from zoo.bulk.job import Job
from zoo.media.image import evaluation_crop
from zoo.media.pixels import read_pixels
from zoo.media.sources import Record, Skipped, unreadable
from zoo.media.storage import MediaError
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens


@dataclass(frozen=True)
class Decoded:
    """A signal of the size that the model takes: pixels (H, W, 3), uint8 or float32 in [0, 1], or samples (C, T)."""

    name: str
    signal: np.ndarray
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """The tokens of one item, a batch of one."""

    name: str
    tokens: Tokens
    kept: dict[str, Any]


def decode(record: Record | Skipped, spec: InputSpec, size: int | None) -> Decoded | Skipped:
    """Read a file's bytes; what cannot be read is told and no error."""
    if isinstance(record, Skipped):
        return record
    try:
        if spec.modality == "image":
            (signal,) = read_pixels(record.data, record.name)
            target = spec.size or (None if size is None else (size, size))
            if target is not None:
                signal = evaluation_crop(signal, target, record.name)
        else:
            signal = media.load(record.data, spec)[0].numpy()
    except MediaError as error:
        return unreadable(record, error)
    return Decoded(record.name, signal, record.kept)


def to_batch(signals: list[np.ndarray], spec: InputSpec, device: torch.device) -> Tensor:
    """Equal signals to what `encode` takes; the same values as those of `zoo.media.load`."""
    batch = torch.from_numpy(np.stack(signals)).to(device)
    if spec.modality != "image":
        return batch
    if batch.dtype == torch.uint8:
        batch = batch.float() / 255
    low, high = spec.value_range
    return (batch * (high - low) + low).permute(0, 3, 1, 2).contiguous()


class Encoder:
    """Signals of one part to tokens, in batches of equal size; the batches depend on the part alone."""

    def __init__(self, model: Tokenizer, job: Job) -> None:
        if refused := sorted(set(job.encode_options) - model.encode_options):
            raise ValueError(f"encode of {model.name} does not take {', '.join(refused)}")
        self.model, self.job, self._count = model, job, 0
        self.device = next(model.parameters()).device
        self._buckets: dict[tuple[Any, ...], list[tuple[int, Decoded]]] = {}
        self._made: dict[int, Made] = {}
        self.skipped: list[Skipped] = []

    def add(self, item: Decoded | Skipped) -> None:
        """Take the next item; encodes where a batch is full."""
        if isinstance(item, Skipped):
            self.skipped.append(item)
            return
        bucket = self._buckets.setdefault((item.signal.shape, item.signal.dtype.str), [])
        bucket.append((self._count, item))
        self._count += 1
        if len(bucket) == self.job.batch_size:
            self._encode(self._buckets.pop((item.signal.shape, item.signal.dtype.str)))

    def end(self) -> tuple[list[Made], list[Skipped]]:
        """Encode what is left; all items of the part in their order, and the skipped ones."""
        for bucket in list(self._buckets.values()):
            self._encode(bucket)
        made, skipped = [self._made[position] for position in sorted(self._made)], self.skipped
        self._buckets, self._made, self.skipped, self._count = {}, {}, [], 0
        return made, skipped

    def _encode(self, bucket: list[tuple[int, Decoded]]) -> None:
        try:
            self._made |= zip((position for position, _ in bucket), self._tokens([item for _, item in bucket]))
        except ValueError as error:  # what one item has, NaN say, is no reason to leave out the others
            if len(bucket) == 1:
                self.skipped.append(Skipped(bucket[0][1].name, str(error)))
                return
            for pair in bucket:
                self._encode([pair])

    def _tokens(self, items: list[Decoded]) -> Iterator[Made]:
        batch = to_batch([item.signal for item in items], self.model.spec, self.device)
        lower = torch.autocast(self.device.type, torch.bfloat16) if self.job.bfloat16 else contextlib.nullcontext()
        with torch.inference_mode(), lower:
            tokens = self.model.encode(batch, **self.job.encode_options).to("cpu")
        return (Made(item.name, tokens[place], item.kept) for place, item in enumerate(items))
