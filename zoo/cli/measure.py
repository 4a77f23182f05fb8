"""Measuring a reconstruction: the one place where the verbs get tokens, sizes, times and quality from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, features
from PIL import __version__ as pillow_version

import zoo
from zoo import media
from zoo.media.image import to_uint8
from zoo.metrics.image import IMAGE_METRICS

if TYPE_CHECKING:
    from zoo.media.pixels import ImageSource
    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

MS_SSIM_SIDE = 176  # below that `ms_ssim` is not defined


@dataclass(frozen=True)
class Reconstruction:
    """One image through a model.

    Attributes:
        original, image: what the model got (cropped where its size is fixed) and gave back, uint8 (H, W, 3).
        tokens: what lay between.
        file_bytes: of the packed tokens, header included.
        encode_seconds, decode_seconds: wall clock of one pass, batch of one, the first pass of a process included.
        quality: metric name -> value, of the 8-bit pictures.
    """

    original: np.ndarray
    image: np.ndarray
    tokens: Tokens
    file_bytes: int
    encode_seconds: float
    decode_seconds: float
    device: str
    quality: dict[str, float]

    @property
    def count(self) -> int:
        """Tokens of all levels."""
        return sum(level.numel() for level in self.tokens.levels)

    @property
    def bits_per_pixel(self) -> float:
        return bits_per_pixel(self.file_bytes, self.original)

    def facts(self) -> dict[str, str]:
        """The numbers as a reader sees them."""
        height, width = self.original.shape[:2]
        shapes = ", ".join(" x ".join(map(str, level.shape[1:])) for level in self.tokens.levels)
        return {
            "Size": f"{width} x {height}",
            "Tokens": f"{self.count:,} ({shapes})",
            "Bytes": f"{self.file_bytes:,}",
            "Bits per pixel": f"{self.bits_per_pixel:.3f}",
            **{label(name): number(name, value) for name, value in self.quality.items()},
            "Encode": f"{self.encode_seconds:.2f} s",
            "Decode": f"{self.decode_seconds:.2f} s",
            "Device": self.device,
        }


def bits_per_pixel(file_bytes: int, original: np.ndarray) -> float:
    return 8 * file_bytes / (original.shape[0] * original.shape[1])


def label(metric: str) -> str:
    return {"psnr": "PSNR", "ms_ssim": "MS-SSIM"}.get(metric, metric)


def number(metric: str, value: float) -> str:
    """A value with its unit."""
    return f"{value:.2f} dB" if IMAGE_METRICS[metric][0].unit == "dB" else f"{value:.4f}"


def reconstruct(
    model: Tokenizer,
    source: ImageSource,
    *,
    further: Sequence[str] = (),
    tile: int | None = None,
    num_tokens: int | None = None,
    refine: int = 0,
    steps: int | None = None,
) -> Reconstruction:
    """Encode and decode one image, and measure everything.

    Args:
        model: of the modality image.
        source: as `zoo.media.load` takes it.
        further: metrics beyond those that `quality` always takes.
        tile: encode and decode tile by tile of this many pixels a side.
        num_tokens: of models that take it.
        refine: steps of `zoo.refine`; without tiles.
        steps: of decoders that take them; without tiles.

    Raises:
        MediaError: an image that cannot be read.
        ValueError: an image that a further metric does not take, or a model that cannot be tiled or takes no
            num_tokens.
    """
    batch = media.load(source, model.spec)
    device = next(model.parameters()).device
    start = time.perf_counter()
    if tile:
        encoded = model.encode_tiled(batch, tile=tile)
    elif refine:
        encoded = zoo.refine(model, batch.to(device), steps=refine, num_tokens=num_tokens)
    else:
        encoded = model.encode(batch.to(device), num_tokens=num_tokens)
    tokens = encoded.to("cpu")  # the copy waits for the device
    between = time.perf_counter()
    signal = (model.decode_tiled(tokens, tile=tile) if tile else model.decode(tokens, steps=steps)).cpu()
    decoded = time.perf_counter()
    original, image = to_uint8(batch, model.spec)[0], to_uint8(signal, model.spec)[0]
    return Reconstruction(
        original=original,
        image=image,
        tokens=tokens,
        file_bytes=len(tokens.pack()),
        encode_seconds=between - start,
        decode_seconds=decoded - between,
        device=str(device),
        quality=quality(image, original, further=further, device=device),
    )


def quality(
    image: np.ndarray, original: np.ndarray, *, further: Sequence[str] = (), device: torch.device | str = "cpu"
) -> dict[str, float]:
    """PSNR, MS-SSIM where both sides are large enough, and further metrics.

    Args:
        image, original: uint8 (H, W, 3) of one size.
        further: names in `zoo.metrics.image.IMAGE_METRICS`.
        device: where the metrics run.
    """
    names = ["psnr", *(["ms_ssim"] if min(original.shape[:2]) >= MS_SSIM_SIDE else []), *further]
    pair = [torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 255 for pixels in (image, original)]
    return {name: IMAGE_METRICS[name][1](*pair).item() for name in names}


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


# -- codecs --------------------------------------------------------------------------------------------------------

CODECS: dict[str, tuple[str, dict[str, Any]]] = {"jpeg": ("JPEG", {"optimize": True}), "webp": ("WebP", {"method": 6})}


@dataclass(frozen=True)
class Coded:
    """One image through a classical codec."""

    image: np.ndarray  # uint8 (H, W, 3)
    file_bytes: int
    quality: int  # the codec's setting


def encode_at_least(original: np.ndarray, codec: str, file_bytes: int) -> Coded:
    """The image at the codec's smallest quality whose file has no fewer bytes; at 100 where none has.

    Args:
        original: uint8 (H, W, 3).
        codec: "jpeg" or "webp".
        file_bytes: what the file must have at least.
    """
    for setting in range(101):  # file sizes do not quite rise with quality, so no bisection
        buffer = _encoded(original, codec, setting)
        if buffer.tell() >= file_bytes:
            break
    return _decoded(buffer, setting)


def encode_with(original: np.ndarray, codec: str, setting: int) -> Coded:
    """The image at one quality setting of the codec, 0 to 100; arguments as `encode_at_least`."""
    return _decoded(_encoded(original, codec, setting), setting)


def _encoded(original: np.ndarray, codec: str, setting: int) -> BytesIO:
    name, settings = CODECS[codec]
    Image.fromarray(original).save(buffer := BytesIO(), name, quality=setting, **settings)
    return buffer


def _decoded(buffer: BytesIO, setting: int) -> Coded:
    with Image.open(buffer) as decoded:
        return Coded(np.array(decoded.convert("RGB")), len(buffer.getvalue()), setting)


def codec_protocol(codec: str) -> str:
    """How a codec is run, in a sentence that can stand beside its numbers."""
    name, settings = CODECS[codec]
    library = "libjpeg_turbo" if codec == "jpeg" else "webp"
    version = features.version(library) or "of unknown version"
    options = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}: Pillow {pillow_version} ({library} {version}), {options}"
