"""Videos as Pillow reads them: animated pictures, and folders of frames."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.media import image
from zoo.media.pixels import read_pixels, to_unit
from zoo.media.sources import IndexedSource, Record, Skipped
from zoo.media.storage import MediaError

ANIMATED = (".gif", ".webp")


@dataclass(frozen=True)
class Clip(Record):
    """One video, of which only the frames that are asked for are read; `data` is empty.

    Attributes:
        files: of the frames, in order; of an animated picture the one file.
    """

    files: tuple[Path, ...] = ()

    def read(self, choose: Callable[[int], Sequence[int]]) -> np.ndarray:
        """Some of its frames.

        Args:
            choose: the number of all frames -> places of those that are wanted, in order.

        Returns:
            (T, H, W, 3), uint8, or float32 in [0, 1] where files are finer than that or have transparency.

        Raises:
            MediaError: a file that cannot be read, or frames of several sizes.
        """
        pixels: list[np.ndarray] = []
        if self.files[0].suffix.lower() in ANIMATED:
            try:
                with Image.open(self.files[0]) as picture:
                    for place in choose(getattr(picture, "n_frames", 1)):
                        picture.seek(place)
                        pixels += read_pixels(picture, self.name)
            except MediaError:
                raise
            except Exception as error:  # on damaged files Pillow's decoders raise nearly anything
                raise MediaError(f"cannot read {self.name}: {error or type(error).__name__}") from error
        else:
            for place in choose(len(self.files)):
                pixels += read_pixels(self.files[place], str(self.files[place]))
        if len(sizes := sorted({frame.shape[:2] for frame in pixels})) > 1:
            raise MediaError(f"cannot read {self.name}: expected frames of one size, got {sizes}")
        return np.stack(pixels if all(frame.dtype == np.uint8 for frame in pixels) else [to_unit(f) for f in pixels])


class ClipSource(IndexedSource):
    """The videos of a folder, all its levels: each animated picture (GIF, WebP), and the other images of each folder,
    which are its frames in the order of their names, numbers counting as such.

    Raises:
        MediaError: no such folder, or no image in it.
    """

    def __init__(self, place: str) -> None:
        if not Path(place).is_dir():
            raise MediaError(f"expected a folder of videos, got {place}")
        folders: dict[Path, list[Path]] = {}
        self.clips: list[Clip] = []
        for path in image.files(place):
            if path.suffix.lower() in ANIMATED:
                self.clips.append(Clip(str(path), b"", files=(path,)))
            else:
                folders.setdefault(path.parent, []).append(path)
        self.clips += [Clip(str(f), b"", files=tuple(sorted(p, key=_by_number))) for f, p in folders.items()]
        self.clips.sort(key=lambda clip: clip.name)

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, index: int) -> Record | Skipped:
        return self.clips[index]


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A key that sorts frame_9 before frame_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]
