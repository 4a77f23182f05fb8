"""Samples that are on the machine without a download: photos that scikit-learn ships, a drawn picture, a voice."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PHOTOS = ("china.jpg", "flower.jpg")


def sample_photos() -> list[Path]:
    """scikit-learn's two photos (640 x 427); empty where it is not installed."""
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that takes a second
    folders = spec.submodule_search_locations or [] if spec else []
    paths = [Path(folder, "datasets", "images", name) for folder in folders for name in PHOTOS]
    return [path for path in paths if path.is_file()]


def drawn_picture(height: int, width: int) -> np.ndarray:
    """Smooth waves of colour, uint8 (height, width, 3), the same on every machine."""
    import numpy as np

    y, x = np.mgrid[0:height, 0:width] / 32
    waves = [np.sin(x + y), np.sin(1.7 * x - 0.6 * y + 1), np.cos(0.4 * x * y / (1 + y))]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).round().astype(np.uint8)


FORMANTS = {  # Hz, the first three of a man's vowels (Peterson and Barney, 1952)
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}


def synthetic_voice(sample_rate: int, vowels: str = "aeiou", seconds: float = 0.5) -> np.ndarray:
    """A voice that glides through vowels with a hiss between them, float32 (samples,) in [-1, 1], always the same.

    Source and filter: harmonics of a falling pitch, each as loud as resonances at the formants make it.
    """
    import numpy as np

    count = round(len(vowels) * seconds * sample_rate)
    time = np.arange(count) / sample_rate
    place = time / seconds
    pitch = 135 - 8 * time + 6 * np.sin(2 * np.pi * 1.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    centres = np.arange(len(vowels)) + 0.5
    formants = [np.interp(place, centres, [FORMANTS[vowel][i] for vowel in vowels]) for i in range(3)]
    voice = np.zeros(count)
    for harmonic in range(1, 40):
        frequency = harmonic * pitch
        gain = sum(strength / (1 + ((frequency - f) / 90) ** 2) for f, strength in zip(formants, (1.0, 0.6, 0.3)))
        voice += np.where(frequency < 0.45 * sample_rate, gain + 0.01, 0) / harmonic**0.5 * np.sin(harmonic * phase)
    rise = np.minimum(1, 8 * np.abs(place - np.rint(place)))  # quiet from one vowel to the next
    hiss = np.diff(np.random.default_rng(0).normal(size=count + 1)) * (1 - rise) * 0.15
    sound = voice / np.abs(voice).max() * rise + hiss
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)
