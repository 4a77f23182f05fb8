"""One photo or clip through a model and back: read within limits, measured, and made into what a page can show."""

from __future__ import annotations

import math
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo import media
from zoo.media import MediaError
from zoo.media.audio import encoded
from zoo.media.image import to_uint8
from zoo.media.report import token_map
from zoo.media.spectrogram import levels, spectrogram_picture

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")  # none that starts a program
_LONGEST_SIDE = 8192  # pixels; models pad the sides, and a strip of one pixel would grow manifold
_RATES = (4_000, 192_000)  # Hz
_MOST_CHANNELS = 8
_MOST_CHOICES = 40
_FOLD = 32  # tokens in a row of the picture of a sequence


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        upload_bytes: of a file.
        pixels: of a picture, width x height.
        clip_seconds: length of a recording.
        request_seconds: from a request's first byte to its answer.
        places: requests that are inside at a time, those that wait included.

    Raises:
        ValueError: one that is no positive number.
    """

    upload_bytes: int = 16 << 20
    pixels: int = 4_000_000
    clip_seconds: float = 30.0
    request_seconds: float = 120.0
    places: int = 48

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")


@dataclass(frozen=True)
class Choice:
    """A number that the model lets one choose.

    Attributes:
        chosen: the one that was taken.
        allowed: some of those that can be, ascending, the least and the most among them, denser where they are small.
    """

    chosen: int
    allowed: list[int]


@dataclass(frozen=True)
class Trial:
    """A signal before and after. Pictures, and sounds of models of audio, are data URLs (PNG, WAV).

    Attributes:
        model: its name.
        modality: of the signal.
        size: what the model got: height and width, or samples.
        sample_rate: in Hz, of audio.
        original, reconstruction: the picture that the model got and the one that came back; of audio spectrograms.
        original_sound, reconstruction_sound: of audio, what one hears.
        token_map: the tokens, one pixel each: equal colour, equal token.
        packed: the tokens as the file that `zoo decode` reads, in base64.
        tokens: how many, of all codebooks.
        bits: of the tokens, without a header.
        bytes: of the packed file, header included.
        bits_per_pixel, bits_per_second: of the tokens alone; that of the signal's kind.
        psnr: of images, in dB; none where every pixel is equal.
        mel_distance: of audio, as `zoo.metrics.audio` measures it; none where the clip is too short.
        encode_seconds, decode_seconds: wall clock.
        num_tokens, num_codebooks: where the model takes them.
    """

    model: str
    modality: Literal["image", "audio"]
    size: list[int]
    sample_rate: int | None
    original: str
    reconstruction: str
    original_sound: str | None
    reconstruction_sound: str | None
    token_map: str
    packed: str
    tokens: int
    bits: int
    bytes: int
    bits_per_pixel: float | None
    bits_per_second: float | None
    psnr: float | None
    mel_distance: float | None
    encode_seconds: float
    decode_seconds: float
    num_tokens: Choice | None
    num_codebooks: Choice | None


def attempt(
    model: Tokenizer, data: bytes, limits: Limits, *, num_tokens: int | None = None, num_codebooks: int | None = None
) -> Trial:
    """Encode and decode a file.

    Args:
        model: of images or audio.
        data: the bytes of the file.
        limits: what is taken of it.
        num_tokens, num_codebooks: as `Tokenizer.encode` takes them.

    Raises:
        MediaError: a file that cannot be read or is beyond the limits.
        ValueError: a signal or an option that the model does not take.
    """
    image = model.spec.modality == "image"
    batch = media.load(_picture(data, limits) if image else _clip(data, limits), model.spec)
    device = next(model.parameters()).device
    start = time.perf_counter()
    tokens = model.encode(batch.to(device), num_tokens=num_tokens, num_codebooks=num_codebooks).to("cpu")
    between = time.perf_counter()  # the copy has waited for the device
    signal = model.decode(tokens.to(str(device))).float().cpu()
    decoded = time.perf_counter()
    size, bits, packed = tuple(batch.shape[2:]), tokens.bits[0], tokens.pack()
    shown = _of_images(batch, signal, model) if image else _of_audio(batch, signal, model)
    seconds = None if image else size[0] / (model.spec.sample_rate or 1)
    counts, codebooks = model.numbers_of_tokens(size), len(model.vocab_sizes)
    return Trial(
        model=model.name,
        modality="image" if image else "audio",
        size=list(size),
        sample_rate=model.spec.sample_rate,
        original=shown.original,
        reconstruction=shown.reconstruction,
        original_sound=shown.original_sound,
        reconstruction_sound=shown.reconstruction_sound,
        token_map=_png(picture_of(tokens)),
        packed=b64encode(packed).decode(),
        tokens=sum(level[0].numel() for level in tokens.levels),
        bits=bits,
        bytes=len(packed),
        bits_per_pixel=bits / math.prod(size) if image else None,
        bits_per_second=bits / seconds if seconds else None,
        psnr=shown.psnr,
        mel_distance=shown.mel_distance,
        encode_seconds=between - start,
        decode_seconds=decoded - between,
        num_tokens=Choice(num_tokens or counts[-1], spread(counts))
        if "num_tokens" in model.encode_options and counts
        else None,
        num_codebooks=Choice(len(tokens.levels), list(range(1, codebooks + 1)))
        if "num_codebooks" in model.encode_options and codebooks > 1
        else None,
    )


def picture_of(tokens: Tokens) -> Image.Image:
    """The tokens of the first item, a pixel each, as `zoo.media.report.token_map` colours them.

    Codebooks of frames lie one below the other, time to the right; other levels side by side, rows of tokens folded.
    """
    rows = [level[0] for level in tokens.levels]
    if tokens.layout == "frames" and all(row.ndim == 1 for row in rows) and len({len(row) for row in rows}) == 1:
        return token_map(torch.stack(rows), max(tokens.vocab_sizes), scale=1)
    parts = [_painted(row, size) for row, size in zip(rows, tokens.vocab_sizes)]
    joined = Image.new("RGBA", (sum(part.width + 1 for part in parts) - 1, max(part.height for part in parts)))
    left = 0
    for part in parts:
        joined.paste(part, (left, 0))
        left += part.width + 1
    return joined


def spread(allowed: Sequence[int]) -> list[int]:
    """At most 40 of some ascending numbers, the first and the last among them, their places in geometric steps."""
    steps = _MOST_CHOICES - 1
    places = {round(len(allowed) ** (step / steps)) - 1 for step in range(_MOST_CHOICES)} if allowed else set()
    return [allowed[place] for place in sorted(places)]


# -- reading -------------------------------------------------------------------------------------------------------


def _picture(data: bytes, limits: Limits) -> Image.Image:
    """The picture, whose size is known but whose pixels are not read yet."""
    Image.init()
    try:
        picture = Image.open(BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise MediaError(f"expected a picture of at most {limits.pixels:,} pixels, got more") from error
    except Exception as error:  # on damaged files Pillow raises nearly anything
        raise MediaError(f"expected a picture ({', '.join(_FORMATS)}), got bytes of another kind") from error
    width, height = picture.size
    if width * height > limits.pixels:
        raise MediaError(f"expected a picture of at most {limits.pixels:,} pixels, got {width} x {height}")
    if max(width, height) > _LONGEST_SIDE:
        raise MediaError(f"expected sides of at most {_LONGEST_SIDE:,} pixels, got {width} x {height}")
    return picture


def _clip(data: bytes, limits: Limits) -> bytes:
    """The recording, of which only the header has been read."""
    import soundfile

    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            frames, rate, channels = file.frames, file.samplerate, file.channels
    except (RuntimeError, OSError, TypeError, ValueError) as error:  # soundfile's own are of the first
        raise MediaError("expected a recording (WAV, FLAC, Ogg, MP3, ...), got bytes of another kind") from error
    least, most = _RATES
    if not least <= rate <= most:
        raise MediaError(f"expected a sample rate of {least:,} to {most:,} Hz, got {rate:,}")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise MediaError(f"expected 1 to {_MOST_CHANNELS} channels, got {channels}")
    if not 1 <= frames <= limits.clip_seconds * rate:
        raise MediaError(f"expected a clip of at most {limits.clip_seconds:g} s, got {frames / rate:,.2f} s")
    return data


# -- showing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    original: str
    reconstruction: str
    original_sound: str | None = None
    reconstruction_sound: str | None = None
    psnr: float | None = None
    mel_distance: float | None = None


def _of_images(batch: Tensor, signal: Tensor, model: Tokenizer) -> _Shown:
    from zoo.metrics.image import IMAGE_METRICS

    original, image = to_uint8(batch, model.spec), to_uint8(signal, model.spec)
    before, after = (torch.from_numpy(pixels).movedim(-1, 1).float() / 255 for pixels in (original, image))
    psnr = IMAGE_METRICS["psnr"][1](after, before).item()
    return _Shown(_png(Image.fromarray(original[0])), _png(Image.fromarray(image[0])), psnr=_finite(psnr))


def _of_audio(batch: Tensor, signal: Tensor, model: Tokenizer) -> _Shown:
    from zoo.metrics.audio import AUDIO_METRICS, Undefined, aligned

    rate = model.spec.sample_rate or 0
    original, sound = batch[0].float(), signal[0].clamp(-1, 1)
    try:
        distance = AUDIO_METRICS["mel_distance"][1](*aligned(sound, original)[:2], rate)
    except Undefined:  # too short
        distance = None
    loudest = float(levels(original, rate).max())
    before, after = (_png(Image.fromarray(spectrogram_picture(x, rate, loudest=loudest))) for x in (original, sound))
    heard, back = (_url("audio/wav", encoded(x.T.numpy(), rate, ".wav", "the sound")) for x in (original, sound))
    return _Shown(before, after, heard, back, mel_distance=distance)


def _painted(ids: Tensor, vocab_size: int) -> Image.Image:
    """One level as a picture with an alpha channel; a sequence is folded, and what its last row lacks is clear."""
    if ids.ndim == 2:
        return token_map(ids, vocab_size, scale=1).convert("RGBA")
    ids = ids.flatten()
    width = max(min(_FOLD, len(ids)), math.isqrt(len(ids)))
    padding = -len(ids) % width
    folded = torch.nn.functional.pad(ids, (0, padding)).view(-1, width)
    pixels = np.array(token_map(folded, vocab_size, scale=1).convert("RGBA"))
    pixels.reshape(-1, 4)[len(ids) :, 3] = 0
    return Image.fromarray(pixels)


def _png(picture: Image.Image) -> str:
    picture.save(buffer := BytesIO(), "PNG", compress_level=1)
    return _url("image/png", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
