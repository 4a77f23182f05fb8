"""Images with what belongs to them; garments and masks, and codes of faces, are rows of a JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.data.captions import OrderedData, read_lines
from trainers.data.loading import Reader, Reads
from zoo import checkpoint
from zoo.media import MediaError
from zoo.media.pixels import read_pixels, to_unit
from zoo.media.sources import Record

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """Base of batches of rows: dataclasses of tensors (B, ...) and tuples of B, the first of which is a tensor."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """With all its tensors elsewhere; floating point ones also in another precision."""
        moved = {k: v.to(*args, **kwargs) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return type(self)(**moved)

    def pin_memory(self) -> Self:
        """With all its tensors in memory that a GPU can copy from."""
        return type(self)(**{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in vars(self).items()})

    @classmethod
    def join(cls, batches: Sequence[Self]) -> Self:
        """Several batches, one behind the other."""
        columns = {name: [vars(batch)[name] for batch in batches] for name in vars(batches[0])}
        return cls(
            **{
                name: torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(chain.from_iterable(parts))
                for name, parts in columns.items()
            }
        )


@dataclass(frozen=True)
class ImageRows(Rows):
    """Rows with images.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
    """

    images: Tensor


@dataclass(frozen=True)
class CaptionedImages(ImageRows):
    """Images and their texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class ImagePairs(ImageRows):
    """Images, and those (B, 3, H, W) in [0, 1] that they are to become."""

    targets: Tensor


@dataclass(frozen=True)
class Garments(ImageRows):
    """Persons, and what they wear.

    Attributes:
        images: (B, 3, H, W) in [0, 1], of persons.
        garments: (B, 3, H, W) in [0, 1], each of what the person wears, by itself.
        masks: (B, 1, H, W), 1 where the garment is, and is to be painted.
        categories: of the garments, names of `ladi_vton.CATEGORIES`.
    """

    garments: Tensor
    masks: Tensor
    categories: tuple[str, ...]


@dataclass(frozen=True)
class CodedImages(ImageRows):
    """Images, and codes (B, styles, width) of what they show."""

    codes: Tensor


@dataclass(frozen=True)
class Stretched:
    """Reads whole pictures as (3, height, width) in [0, 1], whatever their shape (bicubic, antialiased)."""

    size: tuple[int, int]

    def __call__(self, record: Record, key: Sequence[int]) -> Tensor:
        (pixels,) = read_pixels(record.data, record.name)
        whole = torch.from_numpy(to_unit(pixels)).permute(2, 0, 1)
        resized = F.interpolate(whole[None], self.size, mode="bicubic", antialias=True, align_corners=False)
        return resized[0].clamp(0, 1)


class RowData(OrderedData[T]):
    """Base of the data modules over such a file: a subclass names the fields of its rows, and makes a batch.

    Args:
        train: file with a JSON object a line (`.jsonl`), also gzipped; places of images are relative to its folder.
        batch_size, workers, seed: see `OrderedData`.

    Raises:
        ValueError: no such file, or a row without the fields.
    """

    fields: tuple[str, ...] = ("image",)

    def __init__(self, train: str, batch_size: int = 16, workers: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.folder = Path(train).parent
        self.rows: list[dict[str, Any]] = []
        for number, line in enumerate(read_lines(train), 1):
            try:
                row = json.loads(line)
                self.rows.append({name: row[name] for name in self.fields})
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{train}, line {number}: expected a JSON object with {', '.join(self.fields)}: {error!r}"
                ) from error

    def count(self) -> int:
        return len(self.rows)

    def images(self, places: Sequence[int], reader: Reads, field: str = "image") -> Tensor:
        """Images (B, 3, H, W) of a field of some rows.

        Raises:
            MediaError: one that cannot be read.
        """
        return torch.stack([self._image(place, reader, field) for place in places])

    def _image(self, place: int, reader: Reads, field: str) -> Tensor:
        path = self.folder / self.rows[place][field]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise MediaError(f"{path}: expected an image: {error}") from error
        return reader(Record(str(path), data), (place,))


class GarmentData(RowData[Garments]):
    """Batches of `Garments` of rows with `image`, `garment`, `mask` and `category`; pictures are stretched to the size.

    Args:
        train, batch_size, workers, seed: see `RowData`.
        size: height and width in pixels.
    """

    fields = ("image", "garment", "mask", "category")

    def __init__(
        self,
        train: str,
        size: tuple[int, int] = (512, 384),
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(train, batch_size=batch_size, workers=workers, seed=seed)
        self.save_hyperparameters()
        self.reader = Stretched((size[0], size[1]))

    def batch(self, places: Sequence[int], epoch: int) -> Garments:
        images, garments, masks = (self.images(places, self.reader, field) for field in self.fields[:3])
        categories = tuple(self.rows[place]["category"] for place in places)
        return Garments(images, garments, (masks.mean(1, keepdim=True) > 0.5).to(images), categories)


@dataclass(frozen=True)
class ConceptImages(ImageRows):
    """Images of concepts with their captions, and pictures (B, 3, H, W) that have nothing of them, or none."""

    texts: tuple[str, ...]
    others: Tensor | None = None
    other_texts: tuple[str, ...] = ()


class ConceptData(RowData[ConceptImages]):
    """Batches of `ConceptImages` of rows with `image` and `caption`, of which one image may have several.

    Args:
        train, batch_size, workers, seed: see `RowData`.
        others: a file of such rows, of which one is drawn for each image; None: none.
        size: pixels a side.
        flip: whether images are mirrored at random.
    """

    fields = ("image", "caption")

    def __init__(
        self,
        train: str,
        others: str | None = None,
        size: int = 512,
        flip: bool = True,
        batch_size: int = 1,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(train, batch_size=batch_size, workers=workers, seed=seed)
        self.save_hyperparameters()
        self.reader, self.flip = Reader(size, None), flip
        self.beside = None if others is None else ConceptData(others, None, size, flip)

    def batch(self, places: Sequence[int], epoch: int) -> ConceptImages:
        draws = np.random.default_rng((self.seed, epoch, *places))
        images = self.images(places, self.reader)
        if self.flip:
            mirrored = torch.from_numpy(draws.random(len(places)) < 0.5)[:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        texts = tuple(self.rows[place]["caption"] for place in places)
        if self.beside is None:
            return ConceptImages(images, texts)
        other = self.beside.batch(draws.integers(self.beside.count(), size=len(places)).tolist(), epoch)
        return ConceptImages(images, texts, other.images, other.texts)


class CodedImageData(RowData[CodedImages]):
    """Batches of `CodedImages` of rows with `image`, whose codes lie in a file of tensors by the images' places.

    Args:
        train, batch_size, workers, seed: see `RowData`.
        codes: safetensors file: each row's `image` -> (styles, width), such as W+ codes of encoder4editing.
        size: pixels a side.

    Raises:
        ValueError: an image without a code.
    """

    def __init__(
        self, train: str, codes: str, size: int = 512, batch_size: int = 2, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(train, batch_size=batch_size, workers=workers, seed=seed)
        self.save_hyperparameters()
        self.reader = Reader(size, None)
        known = checkpoint.read(Path(codes))
        if missing := [row["image"] for row in self.rows if row["image"] not in known]:
            raise ValueError(f"{codes}: expected a code for each image, got none for {len(missing)}, as {missing[0]}")
        self.codes = {row["image"]: known[row["image"]].float() for row in self.rows}

    def batch(self, places: Sequence[int], epoch: int) -> CodedImages:
        codes = [self.codes[self.rows[place]["image"]] for place in places]
        return CodedImages(self.images(places, self.reader), torch.stack(codes))
