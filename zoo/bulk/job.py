"""A job: a source cut into parts, each of which becomes one shard of tokens, exactly once.

The folder of a job holds the shards, `skipped.jsonl` where something could not be read, and in `.job` the records of
it: `job.json` (what is made of what), of each finished part a receipt `part-000000.json`, written after its shard, and
at the end `ended.json`. A part is finished where its receipt is: whatever kills the job, it goes on at the first part
without one, and what lies there is what an undisturbed run would have written. Readers of whole folders (Arrow, pandas,
Spark, datasets) pass over what begins with a dot.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from zoo.media.sources import IndexedSource, Record, Shard, Skipped, Source
from zoo.media.storage import write_atomically
from zoo.tokens import Order

Progress = Callable[[int, int | None, float | None], None]  # items done, of all if known, share that the model waited
Form = Literal["webdataset", "parquet", "ids"]
FORMS: tuple[Form, ...] = ("webdataset", "parquet", "ids")
_OWN = {"webdataset": ("json", "ztok"), "parquet": ("key", "name", "ids", "ztok")}  # what a shard tells of each item
RECORDS = ".job"
JOB = f"{RECORDS}/job.json"
ENDED = f"{RECORDS}/ended.json"
SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class Job:
    """What is made.

    Attributes:
        model: as `zoo.create_model` takes it.
        fingerprint: of the model's weights and config.
        source: where the signals are, as `zoo.media.sources.open_source` takes it.
        form: `webdataset`: tar files with the packed tokens (.ztok) and a .json of every item; `parquet`: the columns
            key, name, ids and ztok (packed); `ids`: the ids of `Tokens.flatten` one after the other as little-endian
            uint16 or uint32 (.bin), and where each item begins (.npy).
        part_size: items of a shard; WebDataset shards, row groups of Parquet and shards of a stream stay one part each.
        batch_size: items that are encoded at a time, where their sizes are equal.
        size: side in pixels of the evaluation crop, for models of any size; None: every image at its own size.
        bfloat16: whether the model computes in bfloat16.
        num_tokens, num_codebooks: as `encode` takes them.
        order: of `Tokens.flatten`, for ids.
        keep: members (of WebDataset shards, by suffix) or columns that are carried along with each item; not of a name
            that the form has itself.

    Raises:
        ValueError: a value that there is not.
    """

    model: str
    fingerprint: str
    source: str
    form: Form = "webdataset"
    part_size: int = 1000
    batch_size: int = 32
    size: int | None = None
    bfloat16: bool = False
    num_tokens: int | None = None
    num_codebooks: int | None = None
    order: Order = "frame"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {self.form!r}")
        if self.order not in ("frame", "level"):
            raise ValueError(f"order: expected 'frame' or 'level', got {self.order!r}")
        for name in ("part_size", "batch_size", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if self.keep and self.form == "ids":
            raise ValueError(f"keep: expected nothing beside ids, got {', '.join(self.keep)}")
        own = _OWN.get(self.form, ())
        if taken := [name for name in self.keep if name in own]:
            expected = f"other names than {', '.join(own)}, which {self.form} shards have themselves"
            raise ValueError(f"keep: expected {expected}, got {', '.join(taken)}; the other form may take it")

    @property
    def encode_options(self) -> dict[str, Any]:
        options = {"num_tokens": self.num_tokens, "num_codebooks": self.num_codebooks}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Part:
    """What becomes one shard: some items of a source that is read in any order, or one shard of another."""

    index: int
    source: IndexedSource | Shard

    @property
    def name(self) -> str:
        return f"part-{self.index:06d}"

    @property
    def size(self) -> int | None:
        """How many items it has, where that is known before it is read."""
        return self.source.size if isinstance(self.source, Shard) else len(self.source)

    def records(self) -> Iterator[Record | Skipped]:
        return self.source.records()


def parts_of(source: Source, part_size: int) -> list[Part]:
    """The source in parts, always the same ones."""
    if isinstance(source, IndexedSource):
        starts = range(0, len(source), part_size)
        return [Part(index, source.between(start, start + part_size)) for index, start in enumerate(starts)]
    return [Part(index, shard) for index, shard in enumerate(source.shards)]


@dataclass(frozen=True)
class Receipt:
    """What became of a part.

    Attributes:
        files: name -> size in bytes of what was written.
        names: of the items, in order.
        skipped: name and reason of each that could not be read.
        ids: how many ids the items have in all.
    """

    files: dict[str, int]
    names: list[str]
    skipped: list[tuple[str, str]]
    ids: int


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        items, skipped, ids: of all parts, those of earlier runs too.
        parts: of the job.
        made: items of this run.
        seconds: that this run took.
        waited: share of them in which the model waited for signals; None where many machines work.
    """

    items: int
    skipped: int
    ids: int
    parts: int
    made: int
    seconds: float
    waited: float | None


class Folder:
    """The folder of a job.

    Raises:
        ValueError: it holds another job or something else, or another process works in it.
    """

    def __init__(self, path: Path, job: Job, vocab_sizes: Sequence[int]) -> None:
        self.path, self.job = path, job
        self._about = {**dataclasses.asdict(job), "keep": list(job.keep), "vocab_sizes": list(vocab_sizes)}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Begin or go on; one process at a time."""
        records = self.path / RECORDS
        records.mkdir(parents=True, exist_ok=True)
        lock = FileLock(records / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process writes to {self.path}; wait for it, or give another folder") from error
        try:
            for left in (*self.path.glob(".*.tmp"), *records.glob(".*.tmp")):  # of a run that was killed
                left.unlink()
            self._check_job()
            yield
        finally:
            lock.release()

    def _check_job(self) -> None:
        file = self.path / JOB
        if file.exists():
            before = json.loads(file.read_text())
            if before != self._about:
                names = [name for name in self._about if before.get(name) != self._about[name]]
                differ = ", ".join(
                    f"{name}: expected {before.get(name)!r}, got {self._about[name]!r}" for name in names
                )
                raise ValueError(f"{self.path} holds the tokens of another job ({differ}); give another folder")
            return
        strangers = [path.name for path in self.path.iterdir() if path.name != RECORDS]
        if strangers:
            raise ValueError(
                f"{self.path}: expected an empty folder or a job to go on with, got {sorted(strangers)[0]}"
            )
        write_atomically(file, json.dumps(self._about, indent=1).encode())

    def receipt(self, part: Part) -> Receipt | None:
        """Of a finished part; None where it is still to be made."""
        try:
            value = json.loads((self.path / RECORDS / f"{part.name}.json").read_text())
        except FileNotFoundError:
            return None
        receipt = Receipt(value["files"], value["names"], [(name, why) for name, why in value["skipped"]], value["ids"])
        for name, size in receipt.files.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size:
                return None  # someone took it away: it is made again
        return receipt

    def left(self, parts: Sequence[Part]) -> tuple[list[Part], int, int | None]:
        """The parts that are still to be made, how many items are done, and of how many where that is known."""
        receipts = [self.receipt(part) for part in parts]
        done = sum(len(receipt.names) + len(receipt.skipped) for receipt in receipts if receipt is not None)
        sizes = [part.size for part in parts]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        return [part for part, receipt in zip(parts, receipts) if receipt is None], done, total

    def finish(
        self, part: Part, files: dict[str, bytes], names: list[str], skipped: list[Skipped], ids: int
    ) -> Receipt:
        """Write the shard and then its receipt.

        Raises:
            MediaError: the disk is full, say; nothing half-written is left.
        """
        for name, data in files.items():
            write_atomically(self.path / name, data)
        sizes = {name: len(data) for name, data in files.items()}
        receipt = Receipt(sizes, names, [(item.name, item.reason) for item in skipped], ids)
        write_atomically(self.path / RECORDS / f"{part.name}.json", json.dumps(dataclasses.asdict(receipt)).encode())
        return receipt

    def close(self, parts: Sequence[Part], beside: Sequence[Skipped]) -> tuple[int, int, int]:
        """Write what was skipped; number of items, of skipped ones, and of ids.

        Raises:
            ValueError: none of the items could be read.
        """
        receipts = [receipt for part in parts if (receipt := self.receipt(part)) is not None]
        skipped = [(item.name, item.reason) for item in beside]
        skipped += [pair for receipt in receipts for pair in receipt.skipped]
        lines = [json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in skipped]
        if lines:
            write_atomically(self.path / SKIPPED, "".join(lines).encode())
        items, ids = sum(len(receipt.names) for receipt in receipts), sum(receipt.ids for receipt in receipts)
        counts = {"items": items, "skipped": len(skipped), "ids": ids}
        write_atomically(self.path / ENDED, json.dumps(counts).encode())
        if items == 0:
            name, reason = skipped[0] if skipped else (self.job.source, "it holds no items")
            raise ValueError(f"no item of {self.job.source} can be read, the first being {name}: {reason}")
        return items, len(skipped), ids


def quiet(done: int, total: int | None, waited: float | None) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Finished:
    """A job's folder as its readers see it.

    Raises:
        ValueError: the folder holds no job, or one that has not ended.
    """

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / JOB).is_file():
            raise ValueError(f"{self.path}: expected a folder of `zoo tokenize`, got none with {JOB}")
        if not (self.path / ENDED).is_file():
            raise ValueError(f"{self.path}: its job has not ended; give the same command again to end it")

    @cached_property
    def about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads((self.path / JOB).read_text())
        return about

    @cached_property
    def receipts(self) -> list[tuple[str, list[str]]]:
        """Name of each part that holds items, and the names of these."""
        receipts = sorted((self.path / RECORDS).glob("part-*.json"))
        found = [(path.stem, json.loads(path.read_text())["names"]) for path in receipts]
        return [(stem, names) for stem, names in found if names]

    def require(self, *forms: Form) -> None:
        if self.about["form"] not in forms:
            raise ValueError(f"{self.path}: expected the form {' or '.join(forms)}, got {self.about['form']}")
