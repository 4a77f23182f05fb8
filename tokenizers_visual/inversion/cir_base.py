"""What the benchmarks of composed image retrieval have in common: pictures, questions, prompts and annotation files."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from tokenizers_visual.inversion.cir_inputs import ImageInput, picture
from tokenizers_visual.inversion.cir_metrics import rank
from tokenizers_visual.inversion.clip import PLACEHOLDER

Metrics = dict[str, float]
_DILATION = 0.7  # of GeneCIS's boxes
# below the folder of images; GeneCIS takes some from COCO and some from Visual Genome, which comes in two parts
_SUBFOLDERS = ("val2017", "VG_100K", "VG_100K_2")

_THAT, _COMMA = f"a photo of {PLACEHOLDER} that {{caption}}", f"a photo of {PLACEHOLDER} , {{caption}}"
_DOMAIN = f"a {{domain}} of {PLACEHOLDER}"
# GeneCIS's prompt of these methods is not known; its conditions are words, not sentences
_WITH = f"a photo of {PLACEHOLDER} with {{caption}}"
PROMPTS: dict[str, dict[str, str]] = {
    "": {"cirr": _THAT, "fashioniq": _THAT, "circo": _THAT, "genecis": _WITH, "domains": _DOMAIN},
    "pic2word": {"cirr": _COMMA, "fashioniq": _COMMA, "circo": _COMMA, "genecis": _WITH, "domains": _DOMAIN},
}  # by the projector's family; "" for all others


@dataclass(frozen=True)
class Picture:
    """An image of a benchmark, by its path below the folder of images; with a box (left, top, width, height) a part.

    It may lie in a folder of its data set (val2017 of COCO, VG_100K and VG_100K_2 of Visual Genome) as well.
    """

    folder: Path
    file: str
    box: tuple[float, float, float, float] | None = None
    stamp: ClassVar[str] = ""  # images of a benchmark do not change

    @property
    def name(self) -> str:
        return self.file if self.box is None else f"{self.file}#{','.join(f'{value:g}' for value in self.box)}"

    def load(self, preprocess: ImageInput) -> Tensor:
        """(3, size, size); a MediaError where it cannot be read."""
        places = [self.folder / self.file, *(self.folder / part / self.file for part in _SUBFOLDERS)]
        path = next((place for place in places if place.is_file()), places[0])
        if self.box is None:
            return preprocess(path)
        whole = picture(path)
        return preprocess(square(whole.crop(dilated(self.box, whole.size))))


def dilated(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """GeneCIS's crop (left, top, right, bottom) of a box in an image of a size (width, height)."""
    (x, y, wide, high), (width, height) = box, size
    left, top = max(0.0, x - _DILATION * wide), max(0.0, y - _DILATION * high)
    right, bottom = (
        min(end, start + (1 + _DILATION) * side) for start, side, end in ((left, wide, width), (top, high, height))
    )
    return int(left), int(top), int(right), int(bottom)


def square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


@dataclass(frozen=True)
class Query:
    """One question: an image and what should be different.

    Attributes:
        id: what the benchmark calls it.
        reference: place among the benchmark's pictures.
        text: what is asked for, in words alone.
        prompts: texts with "$" for the image; the directions of several are averaged.
    """

    id: str
    reference: int
    text: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Queries over one set of pictures; a benchmark of several parts (FashionIQ's categories) is a list of these.

    Attributes:
        part: its name among the parts.
        pictures: all images that need features.
        gallery: places of the images that are searched.
    """

    protocol: ClassVar[str] = ""  # what is searched, and what is left out

    part: str
    pictures: tuple[Picture, ...]
    gallery: tuple[int, ...]
    queries: tuple[Query, ...]

    @property
    def hidden(self) -> bool:
        """Whether the ground truth of this split is not public."""
        return False

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics | None:
        """In percent; None where the ground truth is hidden.

        Args:
            queries: (Q, E) composed features.
            features: (P, E) of all pictures.
        """
        raise NotImplementedError

    def submission(self, queries: Tensor, features: Tensor) -> dict[str, Any]:
        """File names with what a benchmark's server wants in them; of those without a server nothing."""
        return {}

    def ranked(
        self, queries: Tensor, features: Tensor, *, top: int | None = None, exclude: Tensor | None = None
    ) -> Tensor:
        """Places in the gallery (Q, K), the best first; `exclude` counts in the gallery too."""
        return rank(queries, features[list(self.gallery)], top=top, exclude=exclude)


# -- annotation files -------------------------------------------------------------------------------------------------


def read_json(folder: Path, name: str) -> Any:
    """The content of a JSON file somewhere below the folder, plain or gzipped."""
    found = sorted([*folder.rglob(name), *folder.rglob(f"{name}.gz")])
    if not found:
        raise FileNotFoundError(f"{folder}: expected {name} or {name}.gz in it, got neither")
    try:
        return json.loads(_text(found[0]))
    except (json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{found[0]}: expected JSON: {error}") from error


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def read_lines(folder: Path, name: str) -> list[str]:
    """The lines of a list somewhere below the folder; none where it is missing."""
    found = sorted([*folder.rglob(name), *folder.rglob(f"{name}.gz")])
    return [line for line in _text(found[0]).split("\n") if line.strip()] if found else []
