"""Recordings of many sensors, EEG and MEG: an array with its sensors in one .npz file, or what MNE-Python reads.

Sample rates are changed by soxr at its very high quality; filters have no delay.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from zoo.media.storage import MediaError, found_files, write_atomically

TYPES = ("eeg", "magnetometer", "gradiometer")  # their numbers are 0, 1 and 2
OWN = ".npz"
OF_MNE = (".bdf", ".cnt", ".edf", ".fif", ".gdf", ".set", ".vhdr")
SUFFIXES = (OWN, *OF_MNE)

_KEYS = ("signals", "sample_rate", "positions", "directions", "types")
_REQUIRED = 3  # the first keys; without the others all sensors are EEG
_NOTCH = 1.0  # Hz beside a mains frequency from which on a signal passes whole


@dataclass(frozen=True)
class Recording:
    """Signals of sensors, and where these are.

    Attributes:
        signals: (C, T) floats, in V (EEG), T (magnetometers) and T/m (gradiometers).
        sample_rate: in Hz.
        positions: (C, 3) in any unit, x to the right, y to the nose, z up.
        directions: (C, 3): see `audio.brainomni.placed`; 0 for EEG.
        types: (C,) numbers in `TYPES`.

    Raises:
        MediaError: shapes that do not fit each other, values that are not finite, or a type that there is not.
    """

    signals: np.ndarray
    sample_rate: float
    positions: np.ndarray
    directions: np.ndarray
    types: np.ndarray

    def __post_init__(self) -> None:
        shape = self.signals.shape
        _require(len(shape) == 2 and 0 not in shape, "signals (sensors, samples)", shape)
        _require(np.issubdtype(self.signals.dtype, np.floating), "signals that are floats", self.signals.dtype)
        _require(0 < self.sample_rate < np.inf, "a sample_rate > 0", self.sample_rate)
        for name, wanted in (("positions", (shape[0], 3)), ("directions", (shape[0], 3)), ("types", (shape[0],))):
            got = getattr(self, name)
            _require(got.shape == wanted, f"{name} {wanted} for {shape[0]} sensors", got.shape)
            _require(bool(np.isfinite(got).all()), f"{name} that are finite", "NaN or infinity")
        wrong = sorted({*self.types.tolist()} - {*range(len(TYPES))})
        _require(not wrong, f"types 0 to {len(TYPES) - 1} ({', '.join(TYPES)})", wrong)
        broken = (~np.isfinite(self.signals).all(1)).nonzero()[0].tolist()
        _require(not broken, "finite samples", f"NaN or infinity in the sensors {broken}")

    def resampled(self, rate: float) -> Recording:
        """At another sample rate in Hz."""
        import soxr

        if rate == self.sample_rate:
            return self
        return replace(self, signals=soxr.resample(self.signals.T, self.sample_rate, rate, "VHQ").T, sample_rate=rate)

    def filtered(self, low: float, high: float, mains: Sequence[float] = ()) -> Recording:
        """Without what lies outside a band, or at frequencies of mains.

        The gain follows half a period of a cosine between 0 Hz and `low`, `high` and a quarter above it (at most half
        the sample rate), and up to 1 Hz beside each of `mains`. At its ends a signal is continued by its mirror image.
        """
        samples = self.signals.shape[1]
        margin = min(samples - 1, round(self.sample_rate / max(low, 0.1)))
        frequencies = np.fft.rfftfreq(samples + 2 * margin, 1 / self.sample_rate)
        gain = _rise(frequencies / low) if low > 0 else np.ones_like(frequencies)
        end = min(1.25 * high, self.sample_rate / 2)
        if end > high:
            gain = gain * _rise((end - frequencies) / (end - high))
        for frequency in mains:
            gain = gain * _rise(np.abs(frequencies - frequency) / _NOTCH)
        result = np.empty_like(self.signals)
        for place, signal in enumerate(self.signals):  # one by one, which takes little memory
            whole = np.pad(signal.astype(np.float64), margin, mode="reflect", reflect_type="odd")
            result[place] = np.fft.irfft(np.fft.rfft(whole) * gain, len(whole))[margin : margin + samples]
        return replace(self, signals=result)


def files(place: str | Path) -> list[Path]:
    """The recordings that a file, folder (all its levels) or glob pattern means, sorted.

    Raises:
        MediaError: there are none.
    """
    return found_files(place, SUFFIXES, "recording of sensors")


def load(path: str | Path, montage: str | None = None) -> Recording:
    """Read a recording.

    Args:
        path: an .npz file of arrays `signals`, `sample_rate` and `positions` and, where not all sensors are EEG,
            `directions` and `types`, as `Recording` states them; or a file that MNE reads: FIF, EDF, BDF, GDF,
            BrainVision's .vhdr, EEGLAB's .set, Neuroscan's .cnt. Of the latter the channels of EEG and MEG are taken,
            without those that are marked as bad or have no position.
        montage: name of MNE's montage that tells where the electrodes are, for its files without positions.

    Raises:
        MediaError: names the file and says what was expected.
        ImportError: MNE is not installed; says how to install it.
    """
    path = Path(path)
    try:
        return _of_arrays(path) if path.suffix.lower() == OWN else _of_mne(path, montage)
    except (MediaError, OSError, ValueError, KeyError, EOFError) as error:
        raise MediaError(f"cannot read {path}: {error}") from error


def save(recording: Recording, path: str | Path) -> None:
    """Write an .npz file that `load` reads; it is whole or not there.

    Raises:
        MediaError: another suffix, or a place that cannot be written.
    """
    if Path(path).suffix.lower() != OWN:
        raise MediaError(f"cannot write {path}: expected a name that ends in {OWN}")
    content = BytesIO()
    np.savez(content, **{key: getattr(recording, key) for key in _KEYS})
    write_atomically(Path(path), content.getvalue())


def _of_arrays(path: Path) -> Recording:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise MediaError("expected a file of numpy.savez, got something else")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as content:
                found = {key: content[key] for key in _KEYS if key in content}
        except Exception as error:  # a damaged archive: zipfile and zlib raise their own
            raise MediaError(f"expected arrays of numpy.savez, got {error}") from error
    if missing := [key for key in _KEYS[:_REQUIRED] if key not in found]:
        raise MediaError(f"expected the arrays {', '.join(_KEYS[:_REQUIRED])}, got none named {', '.join(missing)}")
    if found["sample_rate"].size != 1:
        raise MediaError(f"expected one sample_rate, got {found['sample_rate'].size}")
    positions = found["positions"]
    directions = found.get("directions", np.zeros(positions.shape))
    types = found.get("types", np.zeros(len(positions), np.int64))
    signals = found["signals"]
    if np.issubdtype(signals.dtype, np.floating) and signals.dtype.itemsize not in (4, 8):  # what soxr takes
        signals = signals.astype(np.float64)
    return Recording(signals, float(found["sample_rate"].item()), positions, directions, types)


def _of_mne(path: Path, montage: str | None) -> Recording:
    mne = _mne()
    try:
        raw = mne.io.read_raw(path, preload=True, verbose="error")
        raw.pick(mne.pick_types(raw.info, meg=True, eeg=True, ref_meg=False, exclude="bads"))
        if montage is not None:
            raw.set_montage(montage, match_case=False, on_missing="ignore", verbose="error")
        signals, channels = raw.get_data(), raw.info["chs"]
        kinds = raw.get_channel_types()
    except Exception as error:  # the readers of many formats raise nearly anything
        raise MediaError(str(error) or type(error).__name__) from error
    kept = [i for i, channel in enumerate(channels) if _is_placed(channel["loc"][:3])]
    if not kept:
        names = ", ".join(channel["ch_name"] for channel in channels[:5])
        raise MediaError(f"expected positions of sensors, got none of {names} ...; a montage tells those of electrodes")
    numbers = {"eeg": 0, "mag": 1, "grad": 2}
    directions = [_direction(channels[i], kinds[i]) for i in kept]
    return Recording(
        signals[kept],
        float(raw.info["sfreq"]),
        np.stack([channels[i]["loc"][:3] for i in kept]),
        np.stack(directions),
        np.array([numbers[kinds[i]] for i in kept]),
    )


def _is_placed(position: np.ndarray) -> bool:
    return bool(np.isfinite(position).all() and position.any())


def _direction(channel: dict[str, Any], kind: str) -> np.ndarray:
    """Of MNE's 12 numbers of a coil: its normal, or of a planar gradiometer the axis that it measures along."""
    if kind == "eeg":
        return np.zeros(3)
    return channel["loc"][3:6] if "PLANAR" in str(channel["coil_type"]) else channel["loc"][9:12]


def _mne() -> ModuleType:
    try:
        return importlib.import_module("mne")
    except ImportError as error:
        raise ImportError(f"{error}; this data needs it: pip install 'tokenizer-zoo[eeg]'") from error


def _rise(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, half a period of a cosine between."""
    return 0.5 - 0.5 * np.cos(np.pi * x.clip(0, 1))


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise MediaError(f"expected {expected}, got {got}")
