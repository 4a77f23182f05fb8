"""Segments of EEG and MEG recordings as batches, whatever the number of sensors; prepared once."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audio.brainomni import placed, scaled
from trainers.data.loading import mixed_seed
from trainers.data.module import SourceData
from trainers.data.rows import Rows
from zoo.media import MediaError, sensors
from zoo.media.sources import IndexedSource, Record, Skipped, Source, unreadable

_FEWEST = 2  # sensors, of which training hides at least one


@dataclass(frozen=True)
class SensorSignals(Rows):
    """A batch of segments of as many sensors.

    Attributes:
        signals: (B, C, samples), see `audio.brainomni.scaled`.
        places: (B, C, 6) and types (B, C) of the sensors, see `audio.brainomni.placed`.
        seeds: (B,) int64, of what is random in a training pass.
    """

    signals: Tensor
    places: Tensor
    types: Tensor
    seeds: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the signals."""
        return self.signals.shape

    def __getitem__(self, items: slice) -> SensorSignals:
        return replace(self, **{name: value[items] for name, value in vars(self).items()})


class SensorData(SourceData):
    """Batches of `SensorSignals` from recordings of EEG and MEG, see `zoo.media.sensors.load`.

    Every recording is filtered, brought to one sample rate, and cut to segments without overlap; what is left at
    its end is dropped, and one that is shorter than a segment is followed by zeros. Recordings of several devices may
    lie side by side: a batch has segments of as many sensors. A file that cannot be read is named in the log and stands
    in `skipped`.

    Args:
        train: folder (all its levels), file or glob pattern of the training recordings.
        val: of the validation recordings; None: no validation.
        sample_rate: in Hz; other recordings are resampled.
        seconds: of a segment.
        batch_size: per process.
        band: lowest and highest frequency in Hz, see `zoo.media.sensors.Recording.filtered`.
        mains: frequencies in Hz that are filtered out.
        montage: name of MNE's montage, for its files without positions of electrodes.
        cache: folder that keeps prepared recordings, which are then read from there; None keeps them in memory.
        workers: loading processes; 0 loads in the main process.
        seed: of the order, and of what is random in training.

    Raises:
        MediaError: no such place, or (when loading starts) no recording in it can be read.
        ValueError: a setting that cannot work.
        ImportError: (when loading starts) files of MNE without it.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        sample_rate: int = 256,
        seconds: float = 10.0,
        batch_size: int = 16,
        band: tuple[float, float] = (0.1, 96.0),
        mains: tuple[float, ...] = (50.0, 60.0),
        montage: str | None = None,
        cache: str | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        samples = round(seconds * sample_rate)
        for name, value in (("batch_size", batch_size), ("samples of a segment", samples)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 <= band[0] < band[1]:
            raise ValueError(f"band: expected a lowest frequency >= 0 and a higher one, got {band}")
        preparation = Preparation(sample_rate, (band[0], band[1]), tuple(mains), montage)
        super().__init__(
            Segments(train, samples, preparation, cache),
            None if val is None else Segments(val, samples, preparation, cache),
            SegmentReader(samples),
            SegmentReader(samples, fixed=True),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        self.save_hyperparameters()

    def _cached(self, source: Source) -> Source:
        return source.prepared() if isinstance(source, Segments) else source


@dataclass(frozen=True)
class Preparation:
    """What is done to a whole recording; the attributes are arguments of `SensorData`."""

    sample_rate: int
    band: tuple[float, float]
    mains: tuple[float, ...]
    montage: str | None

    def __call__(self, path: Path) -> Prepared:
        """Raises a MediaError for a file that is no recording, or one of fewer than two sensors."""
        recording = sensors.load(path, self.montage)
        if len(recording.types) < _FEWEST:
            raise MediaError(f"{path}: expected at least {_FEWEST} sensors, got {len(recording.types)}")
        types = torch.from_numpy(recording.types.astype(np.int64))
        positions, directions = torch.from_numpy(recording.positions), torch.from_numpy(recording.directions)
        places = placed(positions, directions, types)
        filtered = recording.filtered(*self.band, self.mains)  # first: a step at an offset's ends would ring
        return Prepared(filtered.resampled(self.sample_rate).signals.astype(np.float32), places, types)


@dataclass(frozen=True)
class Prepared:
    """Signals (C, T), float32, places (C, 6) and types (C,)."""

    signals: np.ndarray
    places: Tensor
    types: Tensor


class Segments(IndexedSource):
    """Segments of the recordings of a place, once `prepared`; those of as many sensors are a group."""

    def __init__(self, place: str, samples: int, preparation: Preparation, cache: str | None = None) -> None:
        self.paths = sensors.files(place)
        self.samples, self.preparation = samples, preparation
        self.cache = None if cache is None else Path(cache)
        self.recordings: list[tuple[Path, Prepared]] = []
        self.starts: list[tuple[int, int]] = []  # of each segment: number of the recording, and first sample
        self.ranges: list[range] = []

    def prepared(self) -> Segments:
        """This source, with all files read."""
        if self.recordings:
            return self
        found = [self._prepare(path) for path in self.paths]
        self.skipped = tuple(item for item in found if isinstance(item, Skipped))
        read = [(path, item) for path, item in zip(self.paths, found) if isinstance(item, Prepared)]
        if not read:
            name, reason = self.skipped[0].name, self.skipped[0].reason
            raise MediaError(f"no recording of {len(found)} can be read, the first being {name}: {reason}")
        self.recordings = sorted(read, key=lambda pair: len(pair[1].types))
        self.starts = [
            (number, segment * self.samples)
            for number, (_, recording) in enumerate(self.recordings)
            for segment in range(max(1, recording.signals.shape[1] // self.samples))
        ]
        counts = [len(self.recordings[number][1].types) for number, _ in self.starts]
        for _, group in groupby(range(len(counts)), key=counts.__getitem__):
            first, *others = group
            self.ranges.append(range(first, first + 1 + len(others)))
        return self

    def __len__(self) -> int:
        return len(self.prepared().starts)

    @property
    def groups(self) -> Sequence[range]:
        return self.prepared().ranges

    def read(self, index: int) -> Record | Skipped:
        number, start = self.prepared().starts[index]
        path, recording = self.recordings[number]
        signals = np.array(recording.signals[:, start : start + self.samples])
        return Record(str(path), signals, {"places": recording.places, "types": recording.types})

    def _prepare(self, path: Path) -> Prepared | Skipped:
        try:
            return self.preparation(path) if self.cache is None else self._of_cache(path, self.cache)
        except MediaError as error:
            return unreadable(Record(str(path), b""), error)

    def _of_cache(self, path: Path, folder: Path) -> Prepared:
        """From files there that are whole or not there, made where they are not."""
        state = path.stat()
        settings = [str(path.resolve()), state.st_size, state.st_mtime_ns, *vars(self.preparation).values()]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
        signals, others = folder / f"{name}.npy", folder / f"{name}.npz"
        if not signals.is_file():
            made = self.preparation(path)
            folder.mkdir(parents=True, exist_ok=True)
            _write(others, lambda file: np.savez(file, places=made.places.numpy(), types=made.types.numpy()))
            _write(signals, lambda file: np.save(file, made.signals))
        with np.load(others) as content:
            places, types = torch.from_numpy(content["places"]), torch.from_numpy(content["types"])
        return Prepared(np.load(signals, mmap_mode="r"), places, types)


@dataclass(frozen=True)
class SegmentReader:
    """Segments (C, up to samples) to batches of one.

    Attributes:
        samples: of a segment; zeros follow a shorter one.
        fixed: what is random in a pass with it is the same in every epoch.
    """

    samples: int
    fixed: bool = False

    def __call__(self, record: Record, key: Sequence[int]) -> SensorSignals:
        """Its seed is a function of `key` alone."""
        signals, types = torch.from_numpy(np.asarray(record.data)), record.kept["types"]
        signals = F.pad(scaled(signals, types), (0, self.samples - signals.shape[1]))
        seed, epoch, index = key
        drawn = torch.tensor([mixed_seed(seed, 0 if self.fixed else epoch, index)])
        return SensorSignals(signals[None], record.kept["places"][None], types[None], drawn)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """A file that is whole or not there, though several processes write it."""
    partial = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
