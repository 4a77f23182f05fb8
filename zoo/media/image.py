"""Images: any real picture into the batch that a model takes, and back into files and labelled pictures.

Fixed sizes are met by the usual evaluation crop: Lanczos to the short side, then the centre.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoo.media.pixels import ImageSource, read_pixels, source_name, to_unit
from zoo.media.storage import MediaError, found_files, write_atomically

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

_WRITERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
}


class ImageSpec(Protocol):
    """What reading and writing images needs to know of a model."""

    @property
    def modality(self) -> str: ...

    @property
    def channels(self) -> int: ...

    @property
    def value_range(self) -> tuple[float, float]: ...

    @property
    def size(self) -> tuple[int, ...] | None: ...


def load(source: ImageSource | Sequence[ImageSource], spec: ImageSpec) -> Tensor:
    """Read pictures of any kind into one batch.

    Colours are brought to sRGB by an embedded profile, the camera's rotation is applied, transparency is laid on white,
    and of an animation or a file of several pages the first picture counts. 16-bit grey keeps its precision; Pillow
    reads 16-bit colour as its upper 8 bits.

    Args:
        source: a path, the bytes of an image file, a PIL image, an array (H, W), (H, W, C) or (B, H, W, C), a tensor
            (C, H, W) or (B, C, H, W), or a list of those. C is 1 (grey), 2 (grey, alpha), 3 or 4 (RGB, alpha). Arrays
            and tensors are uint8, uint16, bool, or float in [0, 1].
        spec: `size` (height, width) asks for the evaluation crop; without it sizes are kept, and must be equal.

    Returns:
        Float32 (B, 3, H, W) in `spec.value_range`.

    Raises:
        MediaError: names the picture and says what was expected.
    """
    if spec.channels != 3:
        raise MediaError(f"images are read as 3 channels (RGB), but the model's spec asks for {spec.channels}")
    sources = source if isinstance(source, list | tuple) else [source]
    names, images = [], []
    for position, item in enumerate(sources):
        name = source_name(item, position if len(sources) > 1 else None)
        for image in read_pixels(item, name):
            names.append(name)
            images.append(image if spec.size is None else evaluation_crop(image, spec.size, name))
    if not images:
        raise MediaError("expected at least one image, got none")
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(f"{name} {image.shape[0]}x{image.shape[1]}" for name, image in zip(names, images))
        raise MediaError(f"images of one batch need equal sizes (height x width), got {sizes}; load them one by one")
    if any(image.dtype != np.uint8 for image in images):
        images = [to_unit(image) for image in images]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    if batch.dtype == torch.uint8:
        batch = batch.float() / 255
    low, high = spec.value_range
    return batch if (low, high) == (0, 1) else batch * (high - low) + low


def evaluation_crop(image: np.ndarray, size: tuple[int, ...], name: str = "image") -> np.ndarray:
    """Resize (Lanczos, antialiased) until the picture just covers the size, then keep the centre.

    Args:
        image: (H, W, 3) uint8, or float32 in [0, 1].
        size: height and width of the result.
        name: what the message calls the picture.

    Returns:
        (*size, 3) of the same type. On uint8 it is exactly torchvision's Resize and CenterCrop of a PIL image.

    Raises:
        MediaError: a strip so long that it would fill the memory, and its centre would say nothing of it.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    if max(height, width) > 100 * min(height, width):
        raise MediaError(f"{name}: expected sides within 100:1 for a crop to {rows}x{columns}, got {height}x{width}")
    if width * rows >= columns * height:
        covering = (rows, width * rows // height)
    else:
        covering = (height * columns // width, columns)
    top, left = round((covering[0] - rows) / 2), round((covering[1] - columns) / 2)
    inside = (left, top, left + columns, top + rows)

    def resized(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize(covering[::-1], Image.Resampling.LANCZOS).crop(inside))

    if image.dtype == np.uint8:
        return resized(image)
    # Pillow has no images of three float channels
    return np.stack([resized(plane) for plane in np.moveaxis(image, -1, 0)], axis=-1).clip(0, 1)


def to_uint8(images: Tensor, spec: ImageSpec) -> np.ndarray:
    """Round to the nearest of 256 levels; what lies outside the range becomes its edge.

    Args:
        images: float (B, 3, H, W) in `spec.value_range`.
        spec: the model's spec.

    Returns:
        uint8 (B, H, W, 3).

    Raises:
        MediaError: another shape or type, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
        raise MediaError(f"expected float images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    low, high = spec.value_range
    unit = (images.detach().float().cpu() - low) / (high - low)
    if not unit.isfinite().all():
        raise MediaError(f"expected finite values in [{low}, {high}], got NaN or infinity")
    return (unit * 255 + 0.5).floor().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def save(images: Tensor, path: str | Path, spec: ImageSpec) -> list[Path]:
    """Write pictures as PNG, WebP (both lossless) or JPEG (quality 95), by the suffix; see `zoo.media.save`.

    Args:
        images: float (B, 3, H, W) or (3, H, W) in `spec.value_range`.
        path: the file; missing folders are made. Several images become `name_0.png`, `name_1.png`, ...
        spec: the model's spec.

    Returns:
        The files written.

    Raises:
        MediaError: as `to_uint8`; an unknown suffix; a place that cannot be written. No half-written file stays.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise MediaError(f"cannot write {path}: expected a suffix among {', '.join(_WRITERS)}, got {path.suffix!r}")
    pixels = to_uint8(images[None] if images.ndim == 3 else images, spec)
    numbered = [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(len(pixels))]
    targets = [path] if len(pixels) == 1 else numbered
    for target, image in zip(targets, pixels):
        buffer = BytesIO()
        try:
            Image.fromarray(image).save(buffer, **_WRITERS[path.suffix.lower()])
        except (OSError, ValueError) as error:  # a side beyond the format's limit
            raise MediaError(f"cannot write {target}: {error}") from error
        write_atomically(target, buffer.getvalue())
    return targets


def files(path: str | Path) -> list[Path]:
    """The image files that a path means, sorted.

    Args:
        path: a file (taken as it is), a folder (all its levels, without hidden files and folders), or a glob pattern.

    Raises:
        MediaError: there are none.
    """
    return found_files(path, SUFFIXES, "images")


def side_by_side(images: Sequence[ImageSource], labels: Sequence[str]) -> Image.Image:
    """One picture: the images in a row, thin gutters between them, a caption below each.

    Args:
        images: single pictures as `load` takes them: arrays (H, W, 3), tensors (3, H, W), uint8 or in [0, 1], ...
        labels: a caption for each; it may have several lines.

    Raises:
        MediaError: as `load`, or not one caption for each image.
    """
    pixels = [picture for item in images for picture in read_pixels(item, source_name(item))]
    if not pixels or len(pixels) != len(labels):
        raise MediaError(f"expected images with one label each, got {len(pixels)} images and {len(labels)} labels")
    panels = [np.rint(to_unit(picture) * 255).astype(np.uint8) for picture in pixels]
    tallest = max(panel.shape[0] for panel in panels)
    size = min(max(tallest // 22, 15), 40)
    font, gutter = ImageFont.load_default(size), max(size // 2, 6)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    captions = [measure.multiline_textbbox((0, 0), label, font=font) for label in labels]
    widths = [max(panel.shape[1], round(caption[2])) for panel, caption in zip(panels, captions)]
    below = tallest + round(1.6 * gutter)
    height = below + round(max(caption[3] for caption in captions)) + gutter
    canvas = Image.new("RGB", (sum(widths) + gutter * (len(panels) + 1), height + gutter), "white")
    draw, left = ImageDraw.Draw(canvas), gutter
    for panel, label, width in zip(panels, labels, widths):
        canvas.paste(Image.fromarray(panel), (left, gutter + (tallest - panel.shape[0]) // 2))
        draw.multiline_text((left, below), label, font=font, fill=(40, 40, 48))  # dark grey
        left += width + gutter
    return canvas
