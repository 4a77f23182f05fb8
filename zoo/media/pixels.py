"""One picture of any kind (file, PIL image, array, tensor) as an upright sRGB array on white."""

from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL import __version__ as pillow_version
from torch import Tensor

from zoo.media.storage import MediaError

ImageSource: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor

# TIFF 6.0, section 8: tags, and their values that Pillow leaves to us
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION = 258, 262, 284
_WHITE_IS_ZERO, _SEPARATE_PLANES = 0, 2


def read_pixels(source: ImageSource, name: str) -> list[np.ndarray]:
    """Read one source; a batched array or tensor holds several pictures.

    Args:
        source: as `zoo.media.image.load` takes it, but no list.
        name: what messages call it.

    Returns:
        Arrays (H, W, 3): uint8, or float32 in [0, 1] where the source is finer than that or has transparency.

    Raises:
        MediaError: the name and what was expected.
    """
    if isinstance(source, Tensor):
        if source.ndim not in (3, 4) or source.shape[-3] not in (1, 2, 3, 4):
            raise MediaError(f"{name}: expected a tensor (C, H, W) or (B, C, H, W), got {tuple(source.shape)}")
        tensor = source.detach().cpu()
        source = (tensor.float() if tensor.is_floating_point() else tensor).movedim(-3, -1).numpy()
    if isinstance(source, np.ndarray):
        return [_rgb(array, name) for array in (source if source.ndim == 4 else [source])]
    if isinstance(source, str | Path | bytes | Image.Image):
        return [_rgb(_decode(source, name), name)]
    raise MediaError(f"expected a path, bytes, PIL image, array or tensor, got {name}")


def source_name(source: Any, position: int | None = None) -> str:
    """What messages call a source: its path, or its kind and its position in a list."""
    if isinstance(source, str | Path):
        return str(source)
    kinds = {bytes: "image bytes", Image.Image: "PIL image", np.ndarray: "array", Tensor: "tensor"}
    kind = next((name for kind, name in kinds.items() if isinstance(source, kind)), type(source).__name__)
    return kind if position is None else f"{kind} {position}"


def _rgb(array: np.ndarray, name: str) -> np.ndarray:
    """Check type, range and channels; (H, W) or (H, W, C) -> (H, W, 3) uint8, or float32 in [0, 1]."""
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise MediaError(f"{name}: expected an array (H, W) or (H, W, C) with 1 to 4 channels, got {array.shape}")
    if array.size == 0:
        raise MediaError(f"{name}: expected at least one pixel, got height {array.shape[0]}, width {array.shape[1]}")
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = array.astype(np.float32) / np.float32(65535)
    elif np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # also true of NaN; rounding of earlier steps is forgiven
            raise MediaError(f"{name}: expected float pixels in [0, 1], got [{low:g}, {high:g}]; rescale them first")
        array = array.clip(0, 1)
    elif array.dtype != np.uint8:
        raise MediaError(f"{name}: expected uint8, uint16, bool or float pixels, got {array.dtype}")
    if array.shape[2] in (2, 4):
        unit = to_unit(array)
        opacity = unit[..., -1:]
        array = unit[..., :-1] * opacity + (1 - opacity)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Uint8 -> float32 in [0, 1]; what is float already stays."""
    return pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels


def _decode(source: str | Path | bytes | Image.Image, name: str) -> np.ndarray:
    """The pixels of a file or PIL image, upright and in sRGB, with as many channels as it has."""
    try:
        if isinstance(source, Image.Image):
            return _upright_srgb(source)
        if isinstance(source, str | Path):
            _check_file(Path(source))
        elif not source:
            raise MediaError("they are empty")
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _upright_srgb(image)
    except UnidentifiedImageError as error:
        raise MediaError(
            f"cannot read {name}: not an image that Pillow {pillow_version} reads; save it as PNG first"
        ) from error
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"cannot read {name}: {error} Set PIL.Image.MAX_IMAGE_PIXELS higher if you trust it."
        ) from error
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything
        raise MediaError(f"cannot read {name}: {error or type(error).__name__}") from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise MediaError("no such file")
    if path.is_dir():
        raise MediaError("it is a folder, expected an image file (zoo.media.image.files lists those of a folder)")
    if path.stat().st_size == 0:
        raise MediaError("the file is empty")


def _upright_srgb(image: Image.Image) -> np.ndarray:
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS_PER_SAMPLE, (8,)))
    if bits > 8 and tags.get(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES:
        raise MediaError(f"its {bits}-bit colours lie in separate planes, which Pillow misreads; save it interleaved")
    mode, file_format, profile = image.mode, image.format, image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if mode == "F":  # the range is checked as that of any float array
        return np.asarray(image)
    if mode == "I" and file_format not in ("PNG", "PPM"):  # these two hold 16 bits
        raise MediaError(
            "32-bit integer pixels do not say which value is white; rescale them to 8 or 16 bits or [0, 1]"
        )
    if mode.startswith("I"):
        white = 4095 if bits == 12 else 65535
        values = np.asarray(image).astype(np.float32) / np.float32(white)
        return 1 - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    return np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        embedded = ImageCms.getOpenProfile(BytesIO(profile))
        if ImageCms.getProfileDescription(embedded).startswith(("sRGB IEC61966-2", "sRGB built-in")):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, embedded, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except ImageCms.PyCMSError:  # a broken profile, or one of another colour space than the pixels
        return image
