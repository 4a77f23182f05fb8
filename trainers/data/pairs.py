"""Images beside those that they are to become, for decoders that learn to mend what a generator makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.data.loading import Reader
from trainers.data.rows import ImagePairs
from zoo.media import MediaError
from zoo.media.image import files
from zoo.media.sources import FolderSource, Record, Source


@dataclass(frozen=True)
class PairReader:
    """Files of a folder -> batches of one image and its target, both by the evaluation crop.

    Attributes:
        reader: of both.
        targets: of each file, by its name.
    """

    reader: Reader
    targets: Mapping[str, Path]

    def __call__(self, record: Record, key: Sequence[int]) -> ImagePairs:
        """The pair.

        Raises:
            MediaError: an image or a target that cannot be read.
        """
        target = self.targets[record.name]
        try:
            beside = Record(str(target), target.read_bytes())
        except OSError as error:
            raise MediaError(f"cannot read {record.name}: its target {target}: {error.strerror or error!r}") from error
        return ImagePairs(self.reader(record, key)[None], self.reader(beside, key)[None])


def targets_of(source: Source, place: str, targets: str) -> dict[str, Path]:
    """The file that belongs to each of a folder: of the same place and name below `targets`, its suffix aside.

    Args:
        source: the folder, as opened.
        place: of the folder.
        targets: the other folder.

    Raises:
        MediaError: no images at `targets`.
        ValueError: a source that is no folder, a target that is missing, or several for one image.
    """
    if not isinstance(source, FolderSource) or not Path(place).is_dir():
        raise ValueError(f"targets: expected them beside a folder of images, got train {place}")
    found: dict[Path, list[Path]] = {}
    for path in files(targets):
        found.setdefault(path.relative_to(targets).with_suffix(""), []).append(path)
    beside = {path: found.get(path.relative_to(place).with_suffix(""), []) for path in source.paths}
    for path, paths in beside.items():
        if len(paths) != 1:
            got = " and ".join(map(str, paths)) or "none"
            raise ValueError(f"targets: expected one image of the same name for each of {place}, got {got} for {path}")
    return {str(path): paths[0] for path, paths in beside.items()}
