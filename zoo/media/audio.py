"""Audio: any real recording into the batch that a model takes, and back into files.

Files are read and written by libsndfile, sample rates changed by soxr at its very high quality.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from zoo.media.storage import MediaError, found_files, write_atomically

AudioSource: TypeAlias = str | Path | bytes | np.ndarray | Tensor

SUFFIXES = (".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav")

_QUALITY = "VHQ"
_LOUDEST = 2.0  # floats up to it are taken for overshoot of coding and are clipped; beyond it for another scale
_WRITERS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_BLOCK = 1 << 16  # frames that libsndfile writes at a time: its encoders put a whole call on the stack


class AudioSpec(Protocol):
    """What reading and writing audio needs to know of a model."""

    @property
    def modality(self) -> str: ...

    @property
    def channels(self) -> int: ...

    @property
    def value_range(self) -> tuple[float, float]: ...

    @property
    def sample_rate(self) -> int | None: ...


def load(source: AudioSource | Sequence[AudioSource], spec: AudioSpec, *, sample_rate: int | None = None) -> Tensor:
    """Read recordings of any kind into one batch.

    Stereo becomes mono by the mean, mono stereo by repetition. Floats beyond [-1, 1], as lossy coding and a change of
    the sample rate leave them, are clipped. A truncated file is refused, but for MP3, which does not state its length.

    Args:
        source: a path, the bytes of an audio file, an array (T,) or (T, C), a tensor (T,), (C, T) or (B, C, T), or a
            list of those. Arrays and tensors are int16, int32, or float in [-1, 1].
        spec: `channels` and `sample_rate` are what the recording is brought to.
        sample_rate: in Hz, of arrays and tensors; None: the model's. Files state their own.

    Returns:
        Float32 (B, C, T) in `spec.value_range`.

    Raises:
        MediaError: names the recording and says what was expected: no such file, empty, truncated or damaged, NaN,
            another scale, channels that cannot be mixed, unequal lengths.
    """
    sources = source if isinstance(source, list | tuple) else [source]
    names, signals = [], []
    for position, item in enumerate(sources):
        name = _name(item, position if len(sources) > 1 else None)
        for samples, rate in _read(item, name, sample_rate or _rate(spec)):
            names.append(name)
            signals.append(_in_range(_resampled(_mixed(samples, spec, name), rate, _rate(spec)), spec))
    if not signals:
        raise MediaError("expected at least one recording, got none")
    if len({len(signal) for signal in signals}) > 1:
        lengths = ", ".join(f"{name} {len(signal)}" for name, signal in zip(names, signals))
        raise MediaError(
            f"recordings of one batch need equal lengths, got {lengths} samples; load them one by one, and give encode "
            "the list of them"
        )
    return torch.from_numpy(np.stack(signals)).movedim(-1, 1).contiguous()


def blocks(path: str | Path, spec: AudioSpec, samples: int) -> Iterator[Tensor]:
    """Read a file of any length piece by piece, in bounded memory; joined, the pieces are what `load` gives.

    Args:
        path: the file.
        spec: as for `load`.
        samples: length of a piece at the model's sample rate; the last may be shorter.

    Yields:
        Float32 (1, C, samples).

    Raises:
        MediaError: as `load`.
    """
    import soundfile
    import soxr

    if samples < 1:
        raise MediaError(f"expected pieces of 1 sample or more, got {samples}")
    name, to_rate = str(path), _rate(spec)
    _check_file(Path(path))
    try:
        with open(path, "rb") as raw:
            _check_whole(raw, name)
            with soundfile.SoundFile(raw) as file:
                _check_count(file.frames, file.channels, name)
                change = soxr.ResampleStream(file.samplerate, to_rate, spec.channels, "float32", _QUALITY)
                waiting = np.zeros((0, spec.channels), np.float32)
                left = file.frames
                while left > 0:
                    piece = file.read(min(left, _BLOCK), "float32", always_2d=True)
                    left -= len(piece)
                    if len(piece) == 0:
                        raise MediaError(f"{name}: truncated or damaged: {left} of {file.frames} frames are missing")
                    _check_values(piece, name)
                    mixed = _mixed(piece, spec, name)
                    if file.samplerate != to_rate:
                        mixed = change.resample_chunk(mixed, last=left == 0)
                    waiting = np.concatenate([waiting, _in_range(mixed, spec)])
                    while len(waiting) >= samples:
                        yield torch.from_numpy(waiting[:samples].T.copy())[None]
                        waiting = waiting[samples:]
                if len(waiting) > 0:
                    yield torch.from_numpy(waiting.T.copy())[None]
    except (OSError, RuntimeError) as error:  # soundfile's errors are of the latter
        raise MediaError(f"cannot read {name}: {error}") from error


def save(signals: Tensor, path: str | Path, spec: AudioSpec) -> list[Path]:
    """Write recordings as WAV or FLAC (16 bits), Ogg Vorbis, Opus or MP3, by the suffix; see `zoo.media.save`.

    What lies outside the range is clipped. Opus files are of the nearest rate at or above the model's that Opus has.

    Args:
        signals: float (B, C, T) or (C, T) in `spec.value_range`.
        path: the file; missing folders are made. Several recordings become `name_0.wav`, `name_1.wav`, ...
        spec: the model's spec.

    Returns:
        The files written.

    Raises:
        MediaError: an unknown suffix, another shape, values that are not finite, a rate that the format does not have,
            a place that cannot be written. No half-written file stays.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise MediaError(f"cannot write {path}: expected a suffix among {', '.join(_WRITERS)}, got {suffix!r}")
    signals = signals[None] if signals.ndim == 2 else signals
    if signals.ndim != 3 or signals.shape[1] != spec.channels or 0 in signals.shape or not signals.is_floating_point():
        wanted = f"expected float signals (B, {spec.channels}, T)"
        raise MediaError(f"{wanted}, got {signals.dtype} {tuple(signals.shape)}")
    low, high = spec.value_range
    unit = (signals.detach().float().cpu() - low) / (high - low) * 2 - 1
    if not unit.isfinite().all():
        raise MediaError(f"expected finite values in [{low}, {high}], got NaN or infinity")
    numbered = [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(len(unit))]
    targets = [path] if len(unit) == 1 else numbered
    for target, signal in zip(targets, unit.clamp(-1, 1)):
        write_atomically(target, encoded(signal.T.numpy(), _rate(spec), suffix, str(target)))
    return targets


def encoded(samples: np.ndarray, rate: int, suffix: str, name: str) -> bytes:
    """The bytes of an audio file.

    Args:
        samples: float32 (T, C) in [-1, 1].
        rate: in Hz.
        suffix: of the format, as `save` takes it.
        name: what the message calls the file.
    """
    import soundfile

    kind, coding = _WRITERS[suffix]
    if coding == "OPUS":
        allowed = next((known for known in _OPUS_RATES if known >= rate), _OPUS_RATES[-1])
        samples, rate = _resampled(samples, rate, allowed), allowed
    if coding == "PCM_16":
        samples = np.rint(samples.astype(np.float64) * 32768).clip(-32768, 32767).astype(np.int16)
    buffer = BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], coding, format=kind) as file:
            for start in range(0, len(samples), _BLOCK):
                file.write(samples[start : start + _BLOCK])
    except (RuntimeError, ValueError) as error:
        raise MediaError(f"cannot write {name} at {rate} Hz, {samples.shape[1]} channels: {error}") from error
    return buffer.getvalue()


def files(path: str | Path) -> list[Path]:
    """The audio files that a path means, sorted.

    Args:
        path: a file (taken as it is), a folder (all its levels, without hidden files and folders), or a glob pattern.

    Raises:
        MediaError: there are none.
    """
    return found_files(path, SUFFIXES, "audio")


# -- reading -------------------------------------------------------------------------------------------------------


def _read(source: Any, name: str, rate: int) -> list[tuple[np.ndarray, int]]:
    """One source as float32 (T, C) and its rate; a batched tensor holds several recordings."""
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        if tensor.ndim == 0 or tensor.ndim > 3:
            raise MediaError(f"{name}: expected a tensor (T,), (C, T) or (B, C, T), got {tuple(tensor.shape)}")
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        batch = tensor[(None,) * (3 - tensor.ndim)]
        return [(_floats(item.T.numpy(), name), rate) for item in batch]
    if isinstance(source, np.ndarray):
        if source.ndim not in (1, 2):
            raise MediaError(f"{name}: expected an array (T,) or (T, C), got {source.shape}")
        return [(_floats(source if source.ndim == 2 else source[:, None], name), rate)]
    if isinstance(source, str | Path | bytes):
        return [_decoded(source, name)]
    raise MediaError(f"expected a path, bytes, array or tensor, got {name}")


def _decoded(source: str | Path | bytes, name: str) -> tuple[np.ndarray, int]:
    import soundfile

    if isinstance(source, bytes):
        if not source:
            raise MediaError(f"cannot read {name}: they are empty")
    else:
        _check_file(Path(source))
    try:
        with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as raw:
            _check_whole(raw, name)
            with soundfile.SoundFile(raw) as file:
                _check_count(file.frames, file.channels, name)
                samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
                if len(samples) < file.frames:
                    missing = file.frames - len(samples)
                    raise MediaError(f"{name}: truncated or damaged: {missing} of {file.frames} frames are missing")
    except (OSError, RuntimeError) as error:  # soundfile's errors are of the latter
        raise MediaError(f"cannot read {name}: {error}") from error
    _check_values(samples, name)
    return samples, rate


def _check_file(path: Path) -> None:
    if not path.exists():
        raise MediaError(f"cannot read {path}: no such file")
    if path.is_dir():
        raise MediaError(f"cannot read {path}: it is a folder (zoo.media.audio.files lists the recordings in it)")
    if path.stat().st_size == 0:
        raise MediaError(f"cannot read {path}: the file is empty")


def _check_whole(raw: BinaryIO, name: str) -> None:
    """Refuse cut WAV and Ogg files, of which libsndfile silently reads the part that is there."""
    size = raw.seek(0, 2)
    raw.seek(0)
    head = raw.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        at = 12
        while at + 8 <= size:
            raw.seek(at)
            kind, length = struct.unpack("<4sI", raw.read(8))
            open_ended = length in (0, 0xFFFFFFFF, 0x7FFFFFFF)  # as programs leave it that write to a pipe
            if kind == b"data" and not open_ended and at + 8 + length > size:
                raise MediaError(
                    f"{name}: truncated: its header states {length} bytes of samples, {size - at - 8} follow"
                )
            if kind == b"data":
                break
            at += 8 + length + length % 2
    elif head[:4] == b"OggS":
        raw.seek(max(0, size - (1 << 17)))  # a page has at most 65,307 bytes
        tail = raw.read()
        page = tail[tail.rfind(b"OggS") :]
        segments = page[26] if len(page) > 26 else 0
        if len(page) < 27 + segments or len(page) < 27 + segments + sum(page[27 : 27 + segments]) or not page[5] & 4:
            raise MediaError(f"{name}: truncated: its last page is not the end of the stream")
    raw.seek(0)


def _check_count(frames: int, channels: int, name: str) -> None:
    if frames < 1 or channels < 1:
        raise MediaError(f"{name}: expected at least one sample, got {frames} of {channels} channels")


def _floats(samples: np.ndarray, name: str) -> np.ndarray:
    """(T, C) of any kind -> float32 in [-1, 1]."""
    _check_count(samples.shape[0], samples.shape[1], name)
    if samples.shape[1] > 64:
        raise MediaError(f"{name}: expected samples along time, got {samples.shape[1]} channels of {len(samples)}")
    if samples.dtype in (np.int16, np.int32):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    if not np.issubdtype(samples.dtype, np.floating):
        raise MediaError(f"{name}: expected int16, int32 or float samples, got {samples.dtype}")
    _check_values(samples, name)
    return samples.astype(np.float32)


def _check_values(samples: np.ndarray, name: str) -> None:
    least, most = float(samples.min()), float(samples.max())
    if not (least >= -_LOUDEST and most <= _LOUDEST):  # also true of NaN
        raise MediaError(f"{name}: expected float samples in [-1, 1], got {least:g} to {most:g}")


def _name(source: Any, position: int | None) -> str:
    if isinstance(source, str | Path):
        return str(source)
    kinds = {bytes: "audio bytes", np.ndarray: "array", Tensor: "tensor"}
    kind = next((name for kind, name in kinds.items() if isinstance(source, kind)), type(source).__name__)
    return kind if position is None else f"{kind} {position}"


def _rate(spec: AudioSpec) -> int:
    if spec.sample_rate is None:
        raise MediaError("expected a spec with a sample rate, got none")
    return spec.sample_rate


def _mixed(samples: np.ndarray, spec: AudioSpec, name: str) -> np.ndarray:
    """(T, C) -> (T, spec.channels)."""
    channels = samples.shape[1]
    if channels == spec.channels:
        return samples
    if spec.channels == 1:
        return samples.mean(axis=1, keepdims=True, dtype=np.float32)
    if channels == 1:
        return samples.repeat(spec.channels, axis=1)
    raise MediaError(f"{name}: expected 1 or {spec.channels} channels, got {channels}; mix them first")


def _resampled(samples: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    import soxr

    return samples if rate == to_rate else soxr.resample(samples, rate, to_rate, _QUALITY)


def _in_range(samples: np.ndarray, spec: AudioSpec) -> np.ndarray:
    low, high = spec.value_range
    unit = samples.clip(-1, 1)
    return unit if (low, high) == (-1, 1) else ((unit + 1) / 2 * (high - low) + low).astype(np.float32)
