"""Where images and recordings come from: folders, WebDataset shards, Parquet files and Hugging Face datasets, as
encoded files.

What is neither is never left out in silence: it comes as `Skipped`, with its name and the reason.
"""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from zoo.media import audio, image
from zoo.media.pixels import read_pixels
from zoo.media.storage import MediaError


@dataclass(frozen=True)
class Record:
    """One image or recording, encoded or (images in memory) as an array (H, W, 3).

    Attributes:
        name: tells where it lies.
        data: of the file.
        kept: members or columns beside it that were asked for, by name.
    """

    name: str
    data: bytes | np.ndarray
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """Something that is of another kind, or cannot be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Wanted:
    """What is taken from a source.

    Attributes:
        modality: "image" or "audio".
        column: of Parquet files and Hugging Face datasets; None: the only one that holds the modality.
        keep: what comes along: members of WebDataset shards by their suffix, or columns.

    Raises:
        ValueError: a modality that there is not.
    """

    modality: str = "image"
    column: str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.modality not in ("image", "audio"):
            raise ValueError(f"modality: expected 'image' or 'audio', got {self.modality!r}")

    @property
    def suffixes(self) -> tuple[str, ...]:
        return image.SUFFIXES if self.modality == "image" else audio.SUFFIXES

    def files(self, place: str) -> list[Path]:
        return (image if self.modality == "image" else audio).files(place)


class IndexedSource:
    """Items that can be read in any order."""

    skipped: tuple[Skipped, ...] = ()  # what was found beside them

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def groups(self) -> Sequence[range]:
        """Positions whose items fit into one batch, one group behind the other."""
        return (range(len(self)),)

    def read(self, index: int) -> Record | Skipped:
        """The item at a position of the fixed order, or why it cannot be read."""
        raise NotImplementedError

    def between(self, start: int, stop: int) -> IndexedSource:
        """The items at these positions alone."""
        return Stretch(self, range(len(self))[start:stop])

    def records(self) -> Iterator[Record | Skipped]:
        """All in the fixed order."""
        yield from self.skipped
        yield from map(self.read, range(len(self)))


@dataclass(frozen=True)
class Stretch(IndexedSource):
    """Some positions of another source."""

    source: IndexedSource
    positions: range

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int) -> Record | Skipped:
        return self.source.read(self.positions[index])


class Shard:
    """Items that are read one after the other.

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
    """Items in shards, each of which is read from its start."""

    shards: Sequence[Shard]
    skipped: tuple[Skipped, ...] = ()

    def records(self) -> Iterator[Record | Skipped]:
        """All in the fixed order."""
        yield from self.skipped
        for shard in self.shards:
            yield from shard.records()


Source = IndexedSource | ShardedSource


class DecodedSource(IndexedSource):
    """All images of another source, decoded once and kept in memory; loading processes share them where they fork.

    Raises:
        MediaError: none of them can be read.
    """

    def __init__(self, source: Source) -> None:
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_decoded, source.records()))
        self.images = [item for item in found if isinstance(item, Record)]
        self.skipped = tuple(item for item in found if isinstance(item, Skipped))
        if not self.images:
            name, reason = (self.skipped[0].name, self.skipped[0].reason) if self.skipped else ("it", "it is empty")
            raise MediaError(f"no image of {len(found)} can be read, the first being {name}: {reason}")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Record | Skipped:
        return self.images[index]


def _decoded(item: Record | Skipped) -> Record | Skipped:
    if isinstance(item, Skipped):
        return item
    try:
        return Record(item.name, read_pixels(item.data, item.name)[0], item.kept)
    except MediaError as error:
        return unreadable(item, error)


def unreadable(record: Record, error: MediaError) -> Skipped:
    """What could not be decoded, without its name in the reason once more."""
    return Skipped(record.name, str(error).removeprefix("cannot read ").removeprefix(f"{record.name}: "))


def open_source(place: str, column: str | None = None, *, modality: str = "image", keep: Sequence[str] = ()) -> Source:
    """The images or recordings that a text means.

    Args:
        place: one of
            a folder of files (all its levels), a file or a glob pattern;
            WebDataset shards: paths or urls that end in .tar, .tar.gz or .tgz, with brace patterns ({000..099}),
            several joined by `::`, or a folder of them;
            Parquet files: path or glob pattern that ends in .parquet, or a folder of them;
            `hf:NAME?split=train&config=C&revision=R&streaming=true` for a data set of the hub or a folder that
            `datasets` wrote (NAME alone takes the split "train"; such a folder is also known without `hf:`).
        column: of Parquet files and Hugging Face datasets; None: the only column that holds the modality.
        modality: "image" or "audio".
        keep: members of WebDataset shards (by suffix) or columns that come along with each item.

    Raises:
        MediaError: nothing there, or nothing that is known.
        ValueError: another modality, or something to keep beside files that have nothing.
    """
    wanted = Wanted(modality, column, tuple(keep))
    if place.startswith("hf:"):
        return HuggingFaceSource.parse(place.removeprefix("hf:"), wanted)
    if _is_tar(place) or place.startswith("pipe:"):
        return WebDatasetSource(_expand(place), wanted)
    if place.endswith(".parquet"):
        return ParquetSource(_expand(place), wanted)
    folder = Path(place)
    if folder.is_dir():
        names = sorted(str(path) for path in folder.rglob("*") if path.is_file())
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return HuggingFaceSource.parse(place, wanted)
        if not any(Path(name).suffix.lower() in wanted.suffixes for name in names):
            if shards := [name for name in names if _is_tar(name)]:
                return WebDatasetSource(shards, wanted)
            if tables := [name for name in names if name.endswith(".parquet")]:
                return ParquetSource(tables, wanted)
    if keep:
        raise ValueError(f"{place}: expected nothing to keep beside plain files, got {', '.join(keep)}")
    return FolderSource(place, wanted)


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
    """Files of a folder (all its levels, without hidden ones), a file, or those of a glob pattern."""

    def __init__(self, place: str, wanted: Wanted = Wanted()) -> None:
        self.paths = wanted.files(place)
        if Path(place).is_dir():
            found = set(self.paths)
            others = sorted(path for path in Path(place).rglob("*") if path.is_file() and path not in found)
            visible = [path for path in others if not any(p.startswith(".") for p in path.relative_to(place).parts)]
            self.skipped = tuple(
                Skipped(str(path), f"no {wanted.modality} by its suffix {path.suffix!r}") for path in visible
            )

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
    """Tar files of the WebDataset format: members of one base name are one sample, of which one member is taken."""

    def __init__(self, urls: Sequence[str], wanted: Wanted) -> None:
        _library("webdataset")
        self.shards = [TarShard(url, wanted) for url in urls]


@dataclass(frozen=True)
class TarShard(Shard):
    """One tar file or url, read as a stream. What breaks it off is reported where it happens."""

    name: str
    wanted: Wanted

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
                        yield self._record(sample)
        except Exception as error:  # tarfile, the network and its commands raise nearly anything
            if count >= start:
                yield Skipped(self.name, f"the shard breaks off after {count} samples: {error or type(error).__name__}")
            return
        if count == 0 and start == 0:
            yield Skipped(self.name, "the shard is empty")

    def _record(self, sample: dict[str, Any]) -> Record | Skipped:
        name = f"{self.name}::{sample['__key__']}"
        members = [key for key in sample if not key.startswith("__")]
        for member in members:  # "jpg", or "left.jpg" where the base name ends at its first dot
            if f".{member.rpartition('.')[2]}" in self.wanted.suffixes:
                kept = {key: sample[key] for key in self.wanted.keep if key in sample}
                return Record(f"{name}.{member}", sample[member], kept)
        return Skipped(name, f"no {self.wanted.modality} among its members {', '.join(members)}")


# -- Parquet -------------------------------------------------------------------------------------------------------


class ParquetSource(ShardedSource):
    """Parquet files, a shard per row group; the column holds bytes, or a struct {bytes, path}."""

    def __init__(self, names: Sequence[str], wanted: Wanted) -> None:
        _library("pyarrow.parquet")
        self.names, self.wanted = names, wanted

    @cached_property
    def shards(self) -> Sequence[Shard]:  # type: ignore[override]
        shards: list[Shard] = []
        for name in self.names:
            with _parquet(name) as file:
                column = _parquet_column(file.schema_arrow, self.wanted, name)
                keep = self.wanted.keep
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                shards += [RowGroup(name, group, column, keep, size) for group, size in enumerate(sizes)]
        return shards


@dataclass(frozen=True)
class RowGroup(Shard):
    """One row group of a Parquet file."""

    file: str
    group: int
    column: str
    keep: tuple[str, ...]
    size: int | None

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.file}#{self.group}"

    def records(self, start: int = 0) -> Iterator[Record | Skipped]:
        with _parquet(self.file) as file:
            table = file.read_row_group(self.group, columns=[self.column, *self.keep])
        values = table.column(self.column)
        for row in range(start, len(values)):
            kept = {name: table.column(name)[row].as_py() for name in self.keep}
            yield _record(f"{self.name}:{row}", values[row].as_py(), Path(self.file).parent, kept)


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


def _parquet_column(schema: Any, wanted: Wanted, name: str) -> str:
    from pyarrow import types

    def holds_files(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and types.is_binary(kind.field("bytes").type)
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [column.name for column in schema if holds_files(column.type) and column.name not in wanted.keep]
    _check_columns(wanted.keep, schema.names, name)
    return _only(found, wanted, f"{name} (columns {', '.join(schema.names)})")


def _check_columns(keep: Sequence[str], columns: Sequence[str], where: str) -> None:
    if missing := [name for name in keep if name not in columns]:
        raise MediaError(f"{where}: expected columns to keep among {', '.join(columns)}, got {', '.join(missing)}")


def _only(found: Sequence[str], wanted: Wanted, where: str) -> str:
    if wanted.column is not None and wanted.column in found:
        return wanted.column
    if wanted.column is None and len(found) == 1:
        return found[0]
    kind = wanted.modality
    expected = f"the {kind} column {wanted.column}" if wanted.column else f"one column of {kind}s; name the column"
    raise MediaError(f"{where}: expected {expected}, got {', '.join(found) or 'none'}")


def _record(name: str, value: Any, folder: Path, kept: dict[str, Any]) -> Record | Skipped:
    """A file as Parquet and `datasets` hold it: bytes, or {bytes, path}."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            path = folder / value["path"]
            found = Record(f"{name}:{path}", path.read_bytes(), kept) if path.is_file() else None
            return found or Skipped(name, f"no file {path}")
        value = value.get("bytes")
    return Record(name, value, kept) if value else Skipped(name, "no bytes")


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
    wanted: Wanted
    skipped: tuple[Skipped, ...] = field(default=())

    @staticmethod
    def parse(text: str, wanted: Wanted) -> Source:
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
        source = HuggingFaceSource(place, options, wanted)
        return HuggingFaceStream(source) if streaming else source

    @cached_property
    def dataset(self) -> Any:
        """The opened data set, its files undecoded, and nothing but them and what is kept.

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
        media = datasets.Image if self.wanted.modality == "image" else datasets.Audio
        types = ("binary", "large_binary", "PIL.Image.Image", "dict")
        found = [
            name
            for name, feature in features.items()
            if isinstance(feature, (media, datasets.Value))
            and getattr(feature, "dtype", "") in types
            and name not in self.wanted.keep
        ]
        where = f"hf:{self.place} (columns {', '.join(features)})"
        _check_columns(self.wanted.keep, list(features), where)
        column = _only(found, self.wanted, where)
        opened = opened.select_columns([column, *self.wanted.keep])
        if isinstance(features[column], media):
            opened = opened.cast_column(column, media(decode=False))
        return opened

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Record | Skipped:
        name = f"{self.place}#{self.options.split}:{index}"
        return _row(name, dict(self.dataset[index]), self.wanted.keep, Path(self.place))


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
            row = {column: value for column, (value,) in rows.items()}
            yield _row(f"{self.name}:{position}", row, self.source.wanted.keep, Path(self.source.place))


def _row(name: str, row: dict[str, Any], keep: Sequence[str], folder: Path) -> Record | Skipped:
    kept = {column: row.pop(column) for column in keep}
    (value,) = row.values()
    return _record(name, value, folder, kept)
