"""Where images come from: folders, WebDataset shards, Parquet files and Hugging Face datasets, as encoded files.

What is no image is never left out in silence: it comes as `Skipped`, with its name and the reason.
"""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

from zoo.media import MediaError
from zoo.media.image import SUFFIXES, files


@dataclass(frozen=True)
class Record:
    """One encoded image and a name that tells where it lies."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Skipped:
    """Something that is no image, or cannot be read."""

    name: str
    reason: str


class IndexedSource:
    """Images that can be read in any order."""

    skipped: tuple[Skipped, ...] = ()  # what was found beside the images

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> Record | Skipped:
        """The image at a position of the fixed order, or why it cannot be read."""
        raise NotImplementedError

    def records(self) -> Iterator[Record | Skipped]:
        """All in the fixed order."""
        yield from self.skipped
        yield from map(self.read, range(len(self)))


class Shard:
    """Images that are read one after the other.

    Attributes:
        name: file or url.
        size: how many `records` gives; None: not known before it was read.
    """

    name: str
    size: int | None = None

    def records(self, start: int = 0) -> Iterator[Record | Skipped]:
        """In the fixed order, without the first `start`."""
        raise NotImplementedError


class ShardedSource:
    """Images in shards, each of which is read from its start."""

    shards: Sequence[Shard]
    skipped: tuple[Skipped, ...] = ()

    def records(self) -> Iterator[Record | Skipped]:
        """All in the fixed order."""
        yield from self.skipped
        for shard in self.shards:
            yield from shard.records()


Source = IndexedSource | ShardedSource


def open_source(place: str, image_column: str | None = None) -> Source:
    """The images that a text means.

    Args:
        place: one of
            a folder of images (all its levels), an image file or a glob pattern;
            WebDataset shards: paths or urls that end in .tar, .tar.gz or .tgz, with brace patterns ({000..099}),
            several joined by `::`, or a folder of them;
            Parquet files: path or glob pattern that ends in .parquet, or a folder of them;
            `hf:NAME?split=train&config=C&revision=R&streaming=true` for a data set of the hub or a folder that
            `datasets` wrote (NAME alone takes the split "train"; such a folder is also known without `hf:`).
        image_column: of Parquet files and Hugging Face datasets; None: the only column that holds images.

    Raises:
        MediaError: nothing there, or nothing that is known.
    """
    if place.startswith("hf:"):
        return HuggingFaceSource.parse(place.removeprefix("hf:"), image_column)
    if _is_tar(place) or place.startswith("pipe:"):
        return WebDatasetSource(_expand(place))
    if place.endswith(".parquet"):
        return ParquetSource(_expand(place), image_column)
    folder = Path(place)
    if folder.is_dir():
        names = sorted(str(path) for path in folder.rglob("*") if path.is_file())
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return HuggingFaceSource.parse(place, image_column)
        if not any(Path(name).suffix.lower() in SUFFIXES for name in names):
            if shards := [name for name in names if _is_tar(name)]:
                return WebDatasetSource(shards)
            if tables := [name for name in names if name.endswith(".parquet")]:
                return ParquetSource(tables, image_column)
    return FolderSource(place)


def _is_tar(place: str) -> bool:
    return place.partition("?")[0].endswith((".tar", ".tar.gz", ".tgz"))


def _expand(place: str) -> list[str]:
    """Brace and glob patterns -> names, in order; a local file that is not there is an error."""
    names: list[str] = []
    for name in _library("webdataset.shardlists").expand_urls(place) if "{" in place or "::" in place else [place]:
        if "://" in name or name.startswith("pipe:"):
            names.append(name)
            continue
        found = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
        if not found:
            raise MediaError(f"no file {name}: expected a path, url, glob or brace pattern of existing files")
        names += found
    return names


def _library(name: str) -> ModuleType:
    """A module of the extra `data`.

    Raises:
        ImportError: says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; this data needs it: pip install 'tokenizer-zoo[data]'") from error


# -- folders -------------------------------------------------------------------------------------------------------


class FolderSource(IndexedSource):
    """Image files of a folder (all its levels, without hidden ones), a file, or those of a glob pattern."""

    def __init__(self, place: str) -> None:
        self.paths = files(place)
        if Path(place).is_dir():
            images = set(self.paths)
            others = sorted(path for path in Path(place).rglob("*") if path.is_file() and path not in images)
            visible = [path for path in others if not any(p.startswith(".") for p in path.relative_to(place).parts)]
            self.skipped = tuple(Skipped(str(path), f"no image by its suffix {path.suffix!r}") for path in visible)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Record | Skipped:
        path = self.paths[index]
        try:
            return Record(str(path), path.read_bytes())
        except OSError as error:
            return Skipped(str(path), error.strerror or repr(error))


# -- WebDataset ----------------------------------------------------------------------------------------------------


class WebDatasetSource(ShardedSource):
    """Tar files of the WebDataset format: members of one base name are one sample, of which the image is taken."""

    def __init__(self, urls: Sequence[str]) -> None:
        _library("webdataset")
        self.shards = [TarShard(url) for url in urls]


@dataclass(frozen=True)
class TarShard(Shard):
    """One tar file or url, read as a stream. What breaks it off is reported where it happens."""

    name: str

    def records(self, start: int = 0) -> Iterator[Record | Skipped]:
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_iterator

        count = 0
        try:
            with gopen(self.name) as stream:
                members = ({**member, "__url__": self.name} for member in tar_file_iterator(stream))
                for sample in group_by_keys(members):
                    count += 1
                    if count > start:
                        yield self._image(sample)
        except Exception as error:  # tarfile, the network and its commands raise nearly anything
            if count >= start:
                yield Skipped(self.name, f"the shard breaks off after {count} samples: {error or type(error).__name__}")
            return
        if count == 0 and start == 0:
            yield Skipped(self.name, "the shard is empty")

    def _image(self, sample: dict[str, Any]) -> Record | Skipped:
        name = f"{self.name}::{sample['__key__']}"
        members = [key for key in sample if not key.startswith("__")]
        for member in members:  # "jpg", or "left.jpg" where the base name ends at its first dot
            if f".{member.rpartition('.')[2]}" in SUFFIXES:
                return Record(f"{name}.{member}", sample[member])
        return Skipped(name, f"no image among its members {', '.join(members)}")


# -- Parquet -------------------------------------------------------------------------------------------------------


class ParquetSource(ShardedSource):
    """Parquet files, a shard per row group; the image column holds bytes, or a struct {bytes, path}."""

    def __init__(self, names: Sequence[str], image_column: str | None) -> None:
        _library("pyarrow.parquet")
        self.names, self.image_column = names, image_column

    @cached_property
    def shards(self) -> Sequence[Shard]:  # type: ignore[override]
        shards: list[Shard] = []
        for name in self.names:
            with _parquet(name) as file:
                column = _parquet_column(file.schema_arrow, self.image_column, name)
                groups = range(file.num_row_groups)
                shards += [RowGroup(name, group, column, file.metadata.row_group(group).num_rows) for group in groups]
        return shards


@dataclass(frozen=True)
class RowGroup(Shard):
    """One row group of a Parquet file."""

    file: str
    group: int
    column: str
    size: int | None

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.file}#{self.group}"

    def records(self, start: int = 0) -> Iterator[Record | Skipped]:
        with _parquet(self.file) as file:
            values = file.read_row_group(self.group, columns=[self.column]).column(0)
        for row in range(start, len(values)):
            yield _record(f"{self.name}:{row}", values[row].as_py(), Path(self.file).parent)


def _parquet(name: str) -> Any:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        if "://" in name:
            import fsspec

            return ParquetFile(fsspec.open(name, "rb").open())
        return ParquetFile(name)
    except (pyarrow.ArrowException, OSError) as error:
        raise MediaError(f"cannot read {name}: {error}") from error


def _parquet_column(schema: Any, wanted: str | None, name: str) -> str:
    from pyarrow import types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and types.is_binary(kind.field("bytes").type)
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [column.name for column in schema if holds_images(column.type)]
    return _only(found, wanted, f"{name} (columns {', '.join(schema.names)})")


def _only(found: Sequence[str], wanted: str | None, where: str) -> str:
    if wanted is not None and wanted in found:
        return wanted
    if wanted is None and len(found) == 1:
        return found[0]
    expected = f"the image column {wanted}" if wanted else "one column of images; name it by image_column"
    raise MediaError(f"{where}: expected {expected}, got {', '.join(found) or 'none'}")


def _record(name: str, value: Any, folder: Path) -> Record | Skipped:
    """An image as Parquet and `datasets` hold it: bytes, or {bytes, path}."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            path = folder / value["path"]
            return Record(f"{name}:{path}", path.read_bytes()) if path.is_file() else Skipped(name, f"no file {path}")
        value = value.get("bytes")
    return Record(name, value) if value else Skipped(name, "no bytes")


# -- Hugging Face datasets -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """What stands behind the question mark."""

    split: str = "train"
    config: str | None = None
    revision: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class HuggingFaceSource(IndexedSource):
    """A data set of `datasets`, from the hub or a folder that it wrote; it is opened when it is first needed."""

    place: str
    options: _Options
    image_column: str | None
    skipped: tuple[Skipped, ...] = field(default=())

    @staticmethod
    def parse(text: str, image_column: str | None) -> Source:
        """`NAME?split=...&config=...&revision=...&streaming=true` -> source.

        Raises:
            MediaError: an option that there is not.
        """
        place, _, query = text.partition("?")
        given = {key: values[-1] for key, values in parse_qs(query, strict_parsing=bool(query)).items()}
        if unknown := sorted(set(given) - {"split", "config", "revision", "streaming"}):
            raise MediaError(f"hf:{text}: expected split, config, revision, streaming, got {', '.join(unknown)}")
        if given.get("streaming", "false") not in ("true", "false"):
            raise MediaError(f"hf:{text}: streaming: expected true or false, got {given['streaming']}")
        streaming = given.pop("streaming", "false") == "true"
        options = _Options(**given, streaming=streaming)
        source = HuggingFaceSource(place, options, image_column)
        return HuggingFaceStream(source) if streaming else source

    @cached_property
    def dataset(self) -> Any:
        """The opened data set, its images undecoded, and nothing but them.

        Raises:
            MediaError: no such data set, split or column.
        """
        datasets = _library("datasets")
        options = self.options
        try:
            if any(Path(self.place, name).is_file() for name in ("state.json", "dataset_dict.json")):
                opened = datasets.load_from_disk(self.place)
                if isinstance(opened, datasets.DatasetDict):
                    opened = opened[options.split]
                if options.streaming:
                    opened = opened.to_iterable_dataset(num_shards=max(1, min(64, len(opened))))
            else:
                opened = datasets.load_dataset(
                    self.place,
                    options.config,
                    split=options.split,
                    revision=options.revision,
                    streaming=options.streaming,
                )
        except (OSError, ValueError, KeyError) as error:
            raise MediaError(f"hf:{self.place}: expected a data set with the split {options.split}: {error}") from error
        features = opened.features or {}
        kinds = (datasets.Image, datasets.Value)
        images = [
            name
            for name, feature in features.items()
            if isinstance(feature, kinds)
            and getattr(feature, "dtype", "") in ("binary", "large_binary", "PIL.Image.Image")
        ]
        column = _only(images, self.image_column, f"hf:{self.place} (columns {', '.join(features)})")
        opened = opened.select_columns([column])
        if isinstance(features[column], datasets.Image):
            opened = opened.cast_column(column, datasets.Image(decode=False))
        return opened

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Record | Skipped:
        (value,) = self.dataset[index].values()
        return _record(f"{self.place}#{self.options.split}:{index}", value, Path(self.place))


class HuggingFaceStream(ShardedSource):
    """A data set of `datasets` that is read as a stream, in its own shards."""

    def __init__(self, source: HuggingFaceSource) -> None:
        self.source = source

    @cached_property
    def shards(self) -> Sequence[Shard]:  # type: ignore[override]
        count = self.source.dataset.num_shards
        return [HuggingFaceShard(self.source, index, count) for index in range(count)]


@dataclass(frozen=True)
class HuggingFaceShard(Shard):
    """One shard of a streamed data set."""

    source: HuggingFaceSource
    index: int
    count: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.source.place}#{self.source.options.split}/{self.index}"

    def records(self, start: int = 0) -> Iterator[Record | Skipped]:
        shard = self.source.dataset.shard(self.count, self.index).skip(start)
        for position, rows in enumerate(shard.iter(batch_size=1), start):  # plain iteration would split by worker
            ((value,),) = rows.values()
            yield _record(f"{self.name}:{position}", value, Path(self.source.place))
