"""Pictures for the tests of the verbs."""

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Coarse noise, smoothly enlarged: a picture with large and small structures."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8
    )
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
