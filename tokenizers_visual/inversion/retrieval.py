"""Composed retrieval: a gallery's image features, kept on disk, and the search for what a picture and a text ask for.

Each picture is encoded once, whatever interrupts: features go into an SQLite file, a batch in a transaction.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.cir_inputs import TARGET_RATIO, ImageInput
from tokenizers_visual.inversion.clip import ClipPair
from zoo.config import Config
from zoo.media import MediaError

LARGE = 200_000  # pictures from which on faiss searches, where it is installed
_LOADERS = 4  # threads that read pictures; decoding runs outside of python's lock


class Named(Protocol):
    """What has features: what it is called, and what changes when it does."""

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> str: ...


class Item(Named, Protocol):
    """A picture of a gallery."""

    def load(self, preprocess: ImageInput) -> Tensor:
        """(3, size, size); a MediaError where it cannot be read."""
        ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True)
class ImageFile:
    """A picture file, known by its path; a change of its size or time makes it another."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def stamp(self) -> str:
        try:
            status = self.path.stat()
        except OSError:
            return "gone"
        return f"{status.st_size} {status.st_mtime_ns}"

    def load(self, preprocess: ImageInput) -> Tensor:
        return preprocess(self.path)


class FeatureStore:
    """Image features by name in one file, which is whole after any interruption.

    Args:
        file: it is made where it is missing.
        backbone: the CLIP whose features they are.
        settings: what else they depend on: the preprocessing of the pictures.

    Raises:
        ValueError: a file of another CLIP or other settings, or one that is no store.
    """

    def __init__(self, file: Path, backbone: str, settings: Config) -> None:
        self.file = Path(file)
        about = json.dumps({"format": 1, "backbone": backbone, "settings": settings.to_dict()}, sort_keys=True)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.file, timeout=60)
            with self._database as database:
                database.execute("CREATE TABLE IF NOT EXISTS about (content TEXT)")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS items (name TEXT PRIMARY KEY, stamp TEXT, feature BLOB, reason TEXT)"
                )
                known = database.execute("SELECT content FROM about").fetchone()
                if known is None:
                    database.execute("INSERT INTO about VALUES (?)", (about,))
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"{file}: expected a store of features, or a place for one: {error}") from error
        if known is not None and not _are_same(known[0], about, type(settings)):
            self.close()
            raise ValueError(f"{file}: expected features of {about}, got those of {known[0]}; choose another file")

    def close(self) -> None:
        """Close the file; nothing is lost without."""
        self._database.close()

    def missing(self, items: Sequence[N]) -> list[N]:
        """Those that were never tried, or have changed since; failures of items without a stamp are tried again."""
        known = dict(self._database.execute("SELECT name, stamp FROM items WHERE feature IS NOT NULL OR stamp != ''"))
        return [item for item in items if known.get(item.name) != item.stamp]

    def skipped(self, items: Sequence[Named]) -> dict[str, str]:
        """Those that could not be read, with the reasons."""
        reasons = dict(self._database.execute("SELECT name, reason FROM items WHERE feature IS NULL"))
        return {item.name: reasons[item.name] for item in items if item.name in reasons}

    def write(self, rows: Iterable[tuple[Named, Tensor | str]]) -> None:
        """Features (E,), or reasons why there are none; all or nothing of one call is kept."""
        values = [
            (item.name, item.stamp, value.float().cpu().numpy().tobytes(), None)
            if isinstance(value, Tensor)
            else (item.name, item.stamp, None, value)
            for item, value in rows
        ]
        with self._database as database:
            database.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", values)

    def read(self, names: Sequence[str]) -> Tensor:
        """Features (N, E), as the encoder gave them.

        Raises:
            ValueError: a name without features.
        """
        wanted: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            wanted.setdefault(name, []).append(place)
        found: np.ndarray | None = None
        count = 0
        for name, feature in self._database.execute("SELECT name, feature FROM items WHERE feature IS NOT NULL"):
            if name in wanted:
                vector = np.frombuffer(feature, np.float32)
                found = np.empty((len(names), len(vector)), np.float32) if found is None else found
                found[wanted[name]] = vector
                count += len(wanted.pop(name))
        if found is None or count < len(names):
            raise ValueError(f"{self.file}: expected features of {len(names)} pictures, got {count}")
        return torch.from_numpy(found)


def _are_same(one: str, other: str, kind: type[Config]) -> bool:
    """Whether two stores hold the same; settings that one of them did not know yet had their defaults."""
    try:
        first, second = (json.loads(about) for about in (one, other))
        same = kind.from_dict(first.pop("settings")) == kind.from_dict(second.pop("settings"))
    except (ValueError, KeyError, AttributeError):  # of another version
        return False
    return same and first == second


@torch.no_grad()
def encode_images(
    store: FeatureStore,
    items: Sequence[Item],
    pair: ClipPair,
    preprocess: ImageInput,
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Put the features of all items that the store lacks into it, batch after batch.

    Args:
        batch_size: pictures in one pass, and in one transaction.
        advance: is told the number of pictures done after each batch.
    """
    missing = store.missing(items)
    advance(len(items) - len(missing))
    weight = next(pair.parameters())

    def load(item: Item) -> Tensor | str:
        try:
            return item.load(preprocess)
        except MediaError as error:
            return str(error)

    with ThreadPoolExecutor(_LOADERS) as pool:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            loaded = list(pool.map(load, batch))
            pictures = [one for one in loaded if isinstance(one, Tensor)]
            features: list[Tensor] = []
            if pictures:
                features = list(pair.image_features(torch.stack(pictures).to(weight)).float().cpu())
            features.reverse()
            store.write((item, one if isinstance(one, str) else features.pop()) for item, one in zip(batch, loaded))
            advance(len(batch))


# -- search --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gallery:
    """Pictures to search in: their names, and their features (N, E) on the unit sphere.

    Raises:
        ValueError: no picture, or not one feature each.
    """

    names: tuple[str, ...]
    features: Tensor

    def __post_init__(self) -> None:
        if not self.names or self.features.ndim != 2 or len(self.features) != len(self.names):
            raise ValueError(
                f"expected at least one picture with one feature each, got {len(self.names)} pictures and features "
                f"{tuple(self.features.shape)}"
            )

    @staticmethod
    def of(store: FeatureStore, items: Sequence[Item]) -> Gallery:
        """Those of `items` that the store has features of.

        Raises:
            ValueError: none; tells why the first could not be read.
        """
        skipped = store.skipped(items)
        names = tuple(item.name for item in items if item.name not in skipped)
        if not names:
            reason = next(iter(skipped.values()), "there are none")
            raise ValueError(f"expected a gallery of at least one readable picture, got none: {reason}")
        return Gallery(names, F.normalize(store.read(names), dim=-1))

    @property
    def fingerprint(self) -> str:
        """Of names and features."""
        digest = hashlib.sha256("\0".join(self.names).encode(errors="surrogateescape"))
        digest.update(self.features.numpy().tobytes())
        return digest.hexdigest()[:16]

    def search(self, queries: Tensor, top: int = 10) -> tuple[Tensor, Tensor]:
        """Exact: cosines and positions (Q, K) of the nearest pictures, the nearest first; K at most `top`."""
        found = (F.normalize(queries.float().cpu(), dim=-1) @ self.features.T).topk(min(top, len(self.names)), dim=1)
        return found.values, found.indices


class ApproximateSearch:
    """As `Gallery.search`, with faiss, for galleries so large that looking at every picture takes too long.

    The pictures are sorted into about 4 sqrt(N) cells, of which the nearest sixteenth is looked through; cosines are
    exact. The index is kept in `file`, and made anew where the gallery has changed.

    Raises:
        ImportError: faiss is not installed; says how to.
    """

    def __init__(self, gallery: Gallery, file: Path) -> None:
        faiss = _faiss()
        self.gallery = gallery
        file = file.with_name(f"{file.name}.{gallery.fingerprint}.faiss")
        if file.is_file():
            self._index: Any = faiss.read_index(str(file))
        else:
            cells = max(1, min(round(4 * math.sqrt(len(gallery.names))), len(gallery.names) // 39))
            width = gallery.features.shape[1]
            self._index = faiss.index_factory(width, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
            vectors = gallery.features.numpy()
            clustering = faiss.extract_index_ivf(
                self._index
            ).cp  # its defaults take minutes for a slightly better split
            clustering.niter, clustering.max_points_per_centroid = 10, 64
            self._index.train(vectors)
            self._index.add(vectors)
            temporary = file.with_name(f".{file.name}.tmp")
            faiss.write_index(self._index, str(temporary))
            temporary.replace(file)
        self._index.nprobe = max(1, self._index.nlist // 16)

    def search(self, queries: Tensor, top: int = 10) -> tuple[Tensor, Tensor]:
        """Cosines and positions (Q, K) of the nearest pictures found, the nearest first."""
        vectors = F.normalize(queries.float().cpu(), dim=-1).numpy()
        found = self._index.search(vectors, min(top, len(self.gallery.names)))
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"{error}; the search in large galleries needs it: pip install 'tokenizer-zoo[retrieval]'"
        ) from error
    return faiss


# -- what families differ in ---------------------------------------------------------------------------------------


def preprocessing(family: str, plain: ImageInput) -> ImageInput:
    """The preprocessing of a CLIP as a projector's family takes it: SEARLE pads long pictures first."""
    return plain.replace(pad_ratio=TARGET_RATIO) if family == "searle" else plain
