"""Made-up recordings of EEG and MEG: oscillating dipoles in a head of radius 9 cm, seen by sensors around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo.media import sensors
from zoo.media.sensors import Recording


def recording(
    seed: int = 0, eeg: int = 6, meg: int = 0, seconds: float = 4.0, rate: float = 256.0, dipoles: int = 3
) -> Recording:
    """`eeg` electrodes, then `meg` magnetometers; each dipole swings at a rhythm of its own, with a little noise."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    frequency, phase = draw.uniform(4, 30, (dipoles, 1)), draw.uniform(0, 2 * np.pi, (dipoles, 1))
    waves = np.sin(2 * np.pi * frequency * time + phase)
    places, moments = 0.05 * _unit(draw, dipoles), _unit(draw, dipoles)
    out = _unit(draw, eeg + meg)
    out[:, 2] = abs(out[:, 2])
    positions = np.where(np.arange(eeg + meg)[:, None] < eeg, 0.09, 0.11) * out
    apart = positions[:, None] - places  # (sensors, dipoles, 3)
    cubes = np.linalg.norm(apart, axis=-1) ** 3
    seen = np.einsum("sdx,dx->sd", apart, moments) / cubes
    seen[eeg:] = np.einsum("sdx,sx->sd", np.cross(moments[None], apart), out)[eeg:] / cubes[eeg:]
    signals = seen @ waves
    types = (np.arange(eeg + meg) >= eeg).astype(np.int64)
    for kind, unit in ((0, 5e-5), (1, 1e-12)):
        if (chosen := types == kind).any():
            part = signals[chosen] / signals[chosen].std()
            signals[chosen] = unit * (part + 0.05 * draw.normal(size=part.shape))
    return Recording(signals, rate, positions, out * types[:, None], types)


def folder(place: Path, devices: tuple[tuple[int, int], ...] = ((6, 0), (4, 0), (0, 5)), **settings: float) -> Path:
    """One file for each (electrodes, magnetometers)."""
    for number, (eeg, meg) in enumerate(devices):
        sensors.save(recording(number, eeg, meg, **settings), place / f"{number}.npz")  # type: ignore[arg-type]
    return place


def _unit(draw: np.random.Generator, count: int) -> np.ndarray:
    vectors = draw.normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
