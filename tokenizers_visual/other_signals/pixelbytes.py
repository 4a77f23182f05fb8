"""PixelBytes: text, pixels and samples as ids of one small fixed vocabulary; nothing is learned.

Paper: PixelBytes: Catching Unified Representation for Multimodal Generation, HAL hal-04683349. Original:
fabienfrfr/PixelBytes (MIT), checked by tests/parity/pixelbytes.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.model import Model
from zoo.ops import nearest_code
from zoo.registry import register
from zoo.tokens import Tokens

BYTES = b"\x00\t\n \"'()*,-+.0123456789\xc2\xa0:[];/%!abcdefghijklmnopqrstuvwxyz"
_COLOURS = bytes.fromhex(
    """
    000000 fcfcfc f8f8f8 bcbcbc 7c7c7c a4e4fc 3cbcfc 0078f8 0000fc b8b8f8 6888fc 0058f8 0000bc d8b8f8 9878f8 6844fc
    4428bc f8b8f8 f878f8 d800cc 940084 f8a4c0 f85898 e40058 a80020 f0d0b0 f87858 f83800 a81000 fce0a8 fca044 e45c10
    881400 f8d878 f8b800 ac7c00 503000 d8f878 b8f818 00b800 007800 b8f8b8 58d854 00a800 006800 b8f8d8 58f898 00a844
    005800 00fcfc 00e8d8 008888 004058 f8d8f8 787878
    """
)
PALETTE = tuple(zip(_COLOURS[::3], _COLOURS[1::3], _COLOURS[2::3]))  # of the NES
LEVELS = 38  # of samples, evenly from -1 to 1
COLOURS_FROM, LEVELS_FROM = len(BYTES), len(BYTES) + len(PALETTE)
VOCABULARY = LEVELS_FROM + LEVELS
END_OF_LINE, END = 1, 2  # tab ends a row of pixels; newline ends a frame, and a text

# linear sRGB to XYZ, and its white: standard illuminant D65, observer of 2 degrees
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)


@dataclass(frozen=True)
class Document:
    """Text, frames and audio, each of which may be missing.

    Attributes:
        text: letters become lower case; what has no id becomes NUL.
        frames: (T, H, W, 3) uint8.
        audio: (C, samples) floating point, one or two channels, of any scale.

    Raises:
        ValueError: another shape or type, or nothing at all.
    """

    text: str | None = None
    frames: Tensor | None = None
    audio: Tensor | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.frames is None and self.audio is None:
            raise ValueError("expected text, frames or audio, got none of them")
        x = self.frames
        if x is not None and (x.ndim != 4 or x.shape[-1] != 3 or 0 in x.shape or x.dtype != torch.uint8):
            raise ValueError(f"frames: expected uint8 (T, H, W, 3), got {x.dtype} {tuple(x.shape)}")
        x = self.audio
        if x is None:
            return
        if x.ndim != 2 or len(x) not in (1, 2) or x.shape[1] == 0 or not x.is_floating_point():
            raise ValueError(f"audio: expected floating point (1 or 2, samples), got {x.dtype} {tuple(x.shape)}")
        if not bool(x.isfinite().all()):
            raise ValueError("audio: expected finite samples, got NaN or infinity")


@dataclass(frozen=True)
class PixelBytesConfig(Config):
    """How much is left out."""

    image_step: int = 1  # every n-th frame, row and column is kept
    audio_step: int = 1  # every n-th sample

    def __post_init__(self) -> None:
        steps = (self.image_step, self.audio_step)
        self.require(min(steps) >= 1, "steps >= 1", steps)


@register("pixelbytes")
class PixelBytes(Model):
    """Documents to one sequence of ids: text, then frames, then audio. Colours and loudness are rounded."""

    config: PixelBytesConfig  # type: ignore[assignment]

    def __init__(self, config: PixelBytesConfig) -> None:
        super().__init__(config)

    def described(self) -> dict[str, Any]:
        return {"modality": "mixed", "layout": "sequence", "quantizer": "fixed", "config": self.config.to_dict()}

    def grids(self, document: Document) -> list[Tensor]:
        """The ids of each part of a document as (T, H, W) on the CPU, separators included.

        Text is one row. A frame's rows end with a column of separators. Audio has a frame for each sample and a column
        for each channel, and a frame of separators at its end.
        """
        parts = []
        if document.text is not None:
            parts.append(_text_ids(document.text))
        if document.frames is not None:
            step = self.config.image_step
            ids = _colour_ids(document.frames[::step, ::step, ::step])
            ends = torch.full_like(ids[..., :1], END_OF_LINE)
            ends[:, -1] = END
            parts.append(torch.cat([ids, ends], dim=-1))
        if document.audio is not None:
            levels = _level_ids(document.audio, self.config.audio_step)
            ends = torch.tensor([END_OF_LINE, END], device=levels.device)[: len(levels), None]
            parts.append(torch.cat([levels, ends], dim=1).T[:, None])
        return [part.cpu() for part in parts]

    @torch.no_grad()
    def encode(self, document: Document) -> Tokens:
        """The ids of a document as one sequence: a batch of one."""
        ids = torch.cat([grid.flatten() for grid in self.grids(document)])
        return Tokens((ids[None],), (VOCABULARY,), "sequence", source=self.source)

    def context(self, document: Document) -> Tensor:
        """(N, 6) ids around each of the sequence, 0 where there is none: of the frame before, above, at and below its
        place; of its own frame, above to the left and above; and the id before it. Parts do not see each other."""
        return torch.cat([_context(grid) for grid in self.grids(document)])

    def decode(self, tokens: Tokens, *, channels: int = 1, last_rows: bool = True) -> list[Document]:
        """Documents of ids, which need not come from `encode`.

        Args:
            tokens: of this model.
            channels: of the audio, whose levels are interleaved.
            last_rows: keep the last row of each frame; the original loses it, and what it keeps of a frame of one row
                becomes a part of the next row.

        Raises:
            ValueError: tokens of another model, rows of unequal length in a frame or frames of unequal size, or levels
                that the channels do not divide.
        """
        tokens.require_from(self.source, "sequence", (VOCABULARY,))
        rows = tokens.levels[0].tolist()
        lengths = [len(row) for row in rows] if tokens.lengths is None else tokens.lengths.tolist()
        return [_document(row[:length], channels, last_rows) for row, length in zip(rows, lengths)]


def _text_ids(text: str) -> Tensor:
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore")
    places = [BYTES.find(byte) for byte in plain]
    return torch.tensor([*(max(place, 0) for place in places), END])[None, None]


def _colour_ids(frames: Tensor) -> Tensor:
    """uint8 (..., 3) -> ids (...) of the nearest colours of the palette in CIE Lab."""
    palette = torch.tensor(PALETTE, dtype=torch.uint8, device=frames.device)
    found = nearest_code(lab(frames).flatten(0, -2), lab(palette))
    return found.view(frames.shape[:-1]) + COLOURS_FROM


def lab(colours: Tensor) -> Tensor:
    """CIE Lab (..., 3), float32, of sRGB (..., 3) uint8."""
    rgb = colours.double() / 255
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ linear.new_tensor(_XYZ).T / linear.new_tensor(_WHITE)
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1).float()


def _level_ids(audio: Tensor, step: int) -> Tensor:
    """(C, samples) -> ids of the nearest levels, the loudest swing of all channels being -1 to 1; of silence 0."""
    low, high = audio.double().aminmax()
    scaled = (audio.double() - low) / (high - low) * 2 - 1 if bool(high > low) else torch.zeros_like(audio).double()
    levels = torch.linspace(-1, 1, LEVELS, dtype=torch.float64, device=audio.device)
    scaled = scaled[:, ::step]
    found = nearest_code(scaled.reshape(-1, 1).float(), levels[:, None].float())
    return found.view(scaled.shape) + LEVELS_FROM


def _context(grid: Tensor) -> Tensor:
    count, height, width = grid.shape
    around = F.pad(grid, (1, 0, 1, 1, 1, 0))  # a column to the left, a row above and below, a frame before

    def shifted(frame: int, row: int, column: int) -> Tensor:
        rows, columns = slice(1 + row, 1 + row + height), slice(1 + column, 1 + column + width)
        return around[1 + frame : 1 + frame + count, rows, columns].flatten()

    before = F.pad(grid.flatten()[:-1], (1, 0))
    places = [(-1, -1, 0), (-1, 0, 0), (-1, 1, 0), (0, -1, -1), (0, -1, 0)]
    return torch.stack([*(shifted(*place) for place in places), before], dim=1)


def _document(ids: list[int], channels: int, last_rows: bool) -> Document:
    text, levels = bytearray(), []
    row: list[tuple[int, ...]] = []
    frame: list[list[tuple[int, ...]]] = []
    frames: list[list[list[tuple[int, ...]]]] = []
    for id_ in ids:
        if COLOURS_FROM <= id_ < LEVELS_FROM:
            row.append(PALETTE[id_ - COLOURS_FROM])
        elif id_ >= LEVELS_FROM:
            levels.append(id_ - LEVELS_FROM)
        elif id_ == END_OF_LINE or (id_ == END and last_rows):
            if row:
                frame.append(row)
                row = []
        elif id_ != END:
            text.append(BYTES[id_])
        if id_ == END and frame:
            frames.append(frame)
            frame, row = [], []
    if len(levels) % channels:
        raise ValueError(f"expected levels for {channels} channels, got {len(levels)}")
    if len({len(row) for frame in frames for row in frame}) > 1 or len({len(frame) for frame in frames}) > 1:
        raise ValueError("expected frames of one size, and rows of one length in them, got different ones")
    samples = torch.linspace(-1, 1, LEVELS)[torch.tensor(levels, dtype=torch.int64)].view(-1, channels).T
    return Document(
        text.decode("latin-1"),
        torch.tensor(frames, dtype=torch.uint8) if frames else None,
        samples if levels else None,
    )


def config_from_original(meta: dict[str, Any]) -> PixelBytesConfig:
    """The config of the original's constructor arguments."""
    steps: dict[Literal["image", "audio"], int] = meta["original"]["kwargs"].get("data_slicing", {})
    return PixelBytesConfig(image_step=steps.get("image", 1), audio_step=steps.get("audio", 1))


KEY_MAP = KeyMap({})
