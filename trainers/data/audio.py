"""Recordings of a folder as batches of random segments, decoded once and kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainers.data.module import SourceData
from zoo.media import MediaError, audio
from zoo.media.sources import IndexedSource, Record, Skipped, Source, unreadable
from zoo.metrics.loudness import normalized
from zoo.tokenizer import InputSpec


class AudioFolderData(SourceData):
    """Batches (B, channels, samples) in [-1, 1] from audio files, of any rate and length.

    Training: random segments, augmented as the arguments say; a recording shorter than a segment is followed by
    zeros, or by itself. Validation: the middle of each recording. A file that cannot be read is named in the log and
    stands in `skipped`.

    Args:
        train: folder (all its levels), file or glob pattern of the training recordings; several are dealt in equal
            shares, whatever their sizes: an epoch has as many segments of each as of that with the most recordings.
        val: of the validation recordings; None: no validation.
        sample_rate: in Hz; other recordings are resampled.
        channels: of the signals.
        seconds: of a segment.
        batch_size: per process.
        fixed: every epoch and pass has the same segment of a recording, which alone then is cut and augmented once.
        passes: segments of each recording in one epoch.
        speeds: factors; every recording is there at each of them, its pitch changed with it.
        peak: least and largest level in dB of full scale, drawn evenly, to which the highest sample of a recording is
            brought before a segment is cut; None: its own.
        gain: least and largest gain in dB, drawn evenly.
        invert: segments are inverted at random.
        reverse: share of the segments that run backwards.
        tilt: largest slope of a random filter that is straight over log frequency, in dB an octave either way.
        mix: share of the segments with a second recording below, 0 to 20 dB fainter.
        loudness: in LUFS, to which a segment is brought at last, its peak at most at full scale; None: its own.
        shift_phase: all phases of a segment are then shifted by one random angle.
        repeat: a recording shorter than a segment is repeated, in validation too, instead of zeros.
        workers: loading processes; 0 loads in the main process.
        seed: of the order and of the augmentation.

    Raises:
        MediaError: no such place, or (when loading starts) no recording in it can be read.
        ValueError: a setting that cannot work.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | None = None,
        sample_rate: int = 24_000,
        channels: int = 1,
        seconds: float = 1.0,
        batch_size: int = 16,
        fixed: bool = False,
        passes: int = 1,
        speeds: tuple[float, ...] = (1.0,),
        peak: tuple[float, float] | None = None,
        gain: tuple[float, float] = (0.0, 0.0),
        invert: bool = False,
        reverse: float = 0.0,
        tilt: float = 0.0,
        mix: float = 0.0,
        loudness: float | None = None,
        shift_phase: bool = False,
        repeat: bool = False,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        samples = round(seconds * sample_rate)
        for name, value in (("batch_size", batch_size), ("passes", passes), ("samples of a segment", samples)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not speeds or min(speeds) <= 0:
            raise ValueError(f"speeds: expected factors > 0, got {speeds}")
        if peak is not None and not peak[0] <= peak[1] <= 0:
            raise ValueError(f"peak: expected a least and a largest level, at most 0 dB, got {peak}")
        if loudness is not None and loudness > 0:
            raise ValueError(f"loudness: expected at most 0 LUFS, got {loudness}")
        spec = InputSpec("audio", channels, (-1.0, 1.0), sample_rate=sample_rate)
        recordings = Recordings(train, spec, tuple(speeds), passes)
        training = Segments(
            samples, recordings, peak, (gain[0], gain[1]), invert, reverse, tilt, mix, fixed, loudness, shift_phase,
            repeat,
        )  # fmt: skip
        super().__init__(
            recordings,
            None if val is None else Recordings(val, spec),
            training,
            Segments(samples, repeat=repeat),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        self.save_hyperparameters()

    def _cached(self, source: Source) -> Source:
        return source.decoded() if isinstance(source, Recordings) else source


class Recordings(IndexedSource):
    """The audio files of a place; once `decoded`, each at every speed, `passes` times one after the other.

    Several places take turns until all files have come; those of the smaller ones come again and again.
    """

    def __init__(
        self, places: str | list[str], spec: InputSpec, speeds: tuple[float, ...] = (1.0,), passes: int = 1
    ) -> None:
        found = [audio.files(place) for place in ([places] if isinstance(places, str) else places)]
        if not found:
            raise ValueError("train: expected at least one place, got none")
        turns = range(max(map(len, found)))
        self.paths = [paths[turn % len(paths)] for turn in turns for paths in found]
        self.spec, self.speeds, self.passes = spec, speeds, passes
        self.signals: list[Record | Skipped] = []

    def decoded(self) -> Recordings:
        """This source, with all files in memory."""
        if not self.signals:
            found = {path: self._read(str(path)) for path in dict.fromkeys(self.paths)}
            if not any(isinstance(item, Record) for item in found.values()):
                reason = next(f"{item.name}: {item.reason}" for item in found.values() if isinstance(item, Skipped))
                raise MediaError(f"no recording of {len(found)} can be read, the first being {reason}")
            for speed in self.speeds:
                changed = {path: self._at(item, speed) for path, item in found.items()}
                self.signals += [changed[path] for path in self.paths]
        return self

    def __len__(self) -> int:
        return len(self.paths) * len(self.speeds) * self.passes

    @property
    def period(self) -> int:
        """Positions after which the recordings come again."""
        return len(self.paths) * len(self.speeds)

    def read(self, index: int) -> Record | Skipped:
        signals = self.decoded().signals
        return signals[index % len(signals)]

    def _read(self, path: str) -> Record | Skipped:
        try:
            return Record(path, audio.load(path, self.spec)[0].T.numpy())
        except MediaError as error:
            return unreadable(Record(path, b""), error)

    def _at(self, item: Record | Skipped, speed: float) -> Record | Skipped:
        import soxr

        if isinstance(item, Skipped) or speed == 1:
            return item
        return replace(item, data=soxr.resample(item.data, speed, 1.0, "VHQ").clip(-1, 1))


@dataclass(frozen=True)
class Segments:
    """Recordings (T, C) in memory -> segments (C, samples), float32 in [-1, 1]: random ones, or the middle.

    Attributes:
        samples: of a segment.
        others: what is mixed in; None: not training, the middle of the recording as it is.
        peak, gain, invert, reverse, tilt, mix, fixed, loudness, shift_phase, repeat: as for `AudioFolderData`.
    """

    samples: int
    others: Recordings | None = None
    peak: tuple[float, float] | None = None
    gain: tuple[float, float] = (0.0, 0.0)
    invert: bool = False
    reverse: float = 0.0
    tilt: float = 0.0
    mix: float = 0.0
    fixed: bool = False
    loudness: float | None = None
    shift_phase: bool = False
    repeat: bool = False

    def __call__(self, record: Record, key: Sequence[int]) -> Tensor:
        """The segment; what is random in it is a function of `key` alone."""
        signal = np.asarray(record.data)
        if self.others is None:
            return torch.from_numpy(self._filled(signal[max(0, len(signal) - self.samples) // 2 :]).T.copy())
        seed, epoch, index = key
        draw = np.random.default_rng((seed, index % self.others.period) if self.fixed else (seed, epoch, index))
        segment = self._segment(signal, draw)
        if draw.random() < self.mix:
            other = self.others.read(int(draw.integers(len(self.others))))
            if isinstance(other, Record):
                segment = segment + self._segment(np.asarray(other.data), draw) * _factor(draw.uniform(-20, 0))
        if self.tilt > 0:
            segment = _tilted(segment, draw.uniform(-self.tilt, self.tilt))
        if draw.random() < self.reverse:
            segment = segment[::-1]
        sign = -1 if self.invert and draw.random() < 0.5 else 1
        segment = _within(segment * (sign * _factor(draw.uniform(*self.gain))))
        if self.loudness is not None:
            sound = torch.from_numpy(segment.T.copy())[None]
            segment = _within(normalized(sound, self.others.spec.sample_rate, self.loudness)[0].T.numpy())  # type: ignore[arg-type]
        if self.shift_phase:
            turn = np.exp(1j * draw.uniform(-np.pi, np.pi))
            segment = _within(np.fft.irfft(np.fft.rfft(segment, axis=0) * turn, len(segment), axis=0))
        return torch.from_numpy(segment.T.astype(np.float32))

    def _segment(self, signal: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        if self.peak is not None:
            signal = signal * (_factor(draw.uniform(*self.peak)) / max(float(np.abs(signal).max(initial=0)), 1e-9))
        start = int(draw.integers(max(1, len(signal) - self.samples + 1)))
        return self._filled(signal[start:])

    def _filled(self, signal: np.ndarray) -> np.ndarray:
        """The first samples of (T, C), itself or zeros after its end."""
        signal = signal[: self.samples]
        missing = self.samples - len(signal)
        return np.pad(signal, ((0, missing), (0, 0)), mode="wrap" if self.repeat else "constant")


def _within(segment: np.ndarray) -> np.ndarray:
    """A segment whose peak is at most at full scale."""
    return segment / max(1.0, float(np.abs(segment).max()))


def _factor(decibels: float) -> float:
    return 10.0 ** (decibels / 20)


def _tilted(segment: np.ndarray, slope: float) -> np.ndarray:
    """A filter of `slope` dB an octave; it leaves the energy of the segment as it is."""
    spectrum = np.fft.rfft(segment, axis=0)
    octaves = np.log2(np.maximum(np.arange(len(spectrum)), 1) / len(spectrum))
    tilted = spectrum * (10.0 ** (slope * octaves / 20))[:, None]
    loss = float(np.linalg.norm(tilted)) / max(float(np.linalg.norm(spectrum)), 1e-12)
    return np.fft.irfft(tilted / max(loss, 1e-12), len(segment), axis=0)
