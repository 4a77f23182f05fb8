"""Inputs of a CLIP: images by its preprocessing, with SEARLE's padding where wanted, and texts as its token ids.

CLIP: arXiv 2103.00020; target padding: SEARLE, arXiv 2303.15247.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from zoo.config import Config
from zoo.media import MediaError
from zoo.media.pixels import ImageSource, read_pixels, source_name, to_unit

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TARGET_RATIO = 1.25  # of SEARLE's padding
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class ImageInput(Config):
    """From any picture to what a CLIP takes: resize of the short side and centre crop, or squashed, normalisation."""

    size: int = 224  # pixels a side of the crop
    short_side: int | None = None  # to which the picture is resized first; None: that of the crop
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    pad_ratio: float | None = None  # longer pictures are padded with black to this ratio of sides first
    squash: bool = False  # whether both sides are resized to `size`, without a crop
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        self.require(self.size > 0, "a positive size", self.size)
        self.require(self.resized >= self.size, f"a short_side of at least {self.size}", self.short_side)
        self.require(self.pad_ratio is None or self.pad_ratio >= 1, "a pad_ratio of at least 1", self.pad_ratio)
        self.require(not self.squash or self.short_side is None, "no short_side where squash", self.short_side)
        self.require(self.interpolation in _FILTERS, f"one of {', '.join(_FILTERS)}", self.interpolation)

    @property
    def resized(self) -> int:
        """Pixels of the short side after resizing."""
        return self.size if self.short_side is None else self.short_side

    def __call__(self, source: ImageSource) -> Tensor:
        """A picture, of a path or any other kind that `zoo.media` reads -> (3, size, size).

        Raises:
            MediaError: a picture that cannot be read, or so long that its centre would say nothing of it.
        """
        image = self.padded(picture(source))
        width, height = image.size
        if max(width, height) > 100 * min(width, height):
            raise MediaError(f"{source_name(source)}: expected sides within 100:1, got {width}x{height}")
        sides = [self.size if self.squash else int(self.resized * side / min(width, height)) for side in image.size]
        image = image.resize((sides[0], sides[1]), _FILTERS[self.interpolation])
        left, top = (round((side - self.size) / 2) for side in image.size)
        image = image.crop((left, top, left + self.size, top + self.size))
        unit = torch.from_numpy(to_unit(np.asarray(image))).permute(2, 0, 1)
        return (unit - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def stretched(self, images: Tensor) -> Tensor:
        """Whole pictures (B, 3, H, W) in [0, 1] -> (B, 3, size, size), normalised; sides need not keep their ratio."""
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(
                images, (self.size, self.size), mode=self.interpolation, antialias=True, align_corners=False
            ).clamp(0, 1)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def padded(self, image: Image.Image) -> Image.Image:
        """The picture with black on its long sides' edges, where it is longer than `pad_ratio`."""
        width, height = image.size
        if self.pad_ratio is None or max(width, height) / min(width, height) < self.pad_ratio:
            return image
        wanted = max(width, height) / self.pad_ratio
        left, top = (max(int((wanted - side) / 2), 0) for side in (width, height))
        canvas = Image.new("RGB", (width + 2 * left, height + 2 * top))
        canvas.paste(image, (left, top))
        return canvas


def picture(source: ImageSource) -> Image.Image:
    """One picture, upright, sRGB, 8 bits.

    Raises:
        MediaError: it cannot be read.
    """
    (pixels,) = read_pixels(source, source_name(source))
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels * 255 + 0.5).astype(np.uint8))


def image_input(pair: Any) -> ImageInput:
    """The preprocessing that the image encoder of a `ClipPair` was trained with.

    Raises:
        ValueError: one that pads pictures to squares.
    """
    stated = getattr(pair, "image_input", None)
    if isinstance(stated, ImageInput):
        return stated
    vision = getattr(getattr(pair.model, "config", None), "vision_config", None)
    if vision is not None:  # transformers
        return ImageInput(size=vision.image_size)
    visual = pair.model.visual  # open_clip
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    mean, std = (getattr(visual, name, None) or default for name, default in _STATISTICS.items())
    prepared = getattr(visual, "preprocess_cfg", {})
    if (mode := prepared.get("resize_mode", "shortest")) not in ("shortest", "squash"):
        raise ValueError(f"expected pictures resized by their short side or squashed, got {mode}")
    wanted = prepared.get("interpolation")  # "random" is one of training
    kind: Literal["bicubic", "bilinear"] = "bilinear" if wanted == "bilinear" else "bicubic"
    return ImageInput(size, mean=tuple(mean), std=tuple(std), squash=mode == "squash", interpolation=kind)


_STATISTICS = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}


def tokenize(texts: Sequence[str], context_length: int = 77, *, truncate: bool = False) -> Tensor:
    """CLIP's token ids (B, context_length) of plain texts, padded with 0; for prompts with words see `ClipPair`.

    Args:
        texts: as they are; "$" is a token of its own between blanks alone.
        context_length: with start and end of text.
        truncate: cut longer texts, keeping the end of text.

    Raises:
        ValueError: a longer text that must not be cut.
    """
    import open_clip

    tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
    if not truncate:
        for text in texts:
            if (count := len(tokenizer.encode(text)) + 2) > context_length:
                raise ValueError(f"expected at most {context_length} tokens with start and end, got {count}: {text!r}")
    return tokenizer(list(texts))
