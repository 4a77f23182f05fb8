"""Pictures that are on the machine without a download: the photos that scikit-learn ships, and a drawn one."""

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
