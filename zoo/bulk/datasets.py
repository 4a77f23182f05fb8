"""The tokens of a finished job, for training: by position, as a shuffled stream that can be entered anywhere, or as
one memory-mapped stream of ids.
"""

from __future__ import annotations

import bisect
import io
import json
import tarfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from zoo.bulk.job import Finished
from zoo.bulk.shards import TOKENS, id_type
from zoo.tokens import Tokens

_OPEN = 8  # shards that a dataset holds at a time


@dataclass(frozen=True)
class Item:
    """One signal's tokens (a batch of one), where it came from, and what was kept with it."""

    key: str
    name: str
    tokens: Tokens
    kept: dict[str, Any]


class TokenDataset(Dataset[Item]):
    """The items of a job of the form `webdataset` or `parquet` by position, in the order of the source.

    Args:
        folder: what `zoo tokenize` wrote.

    Raises:
        ValueError: no such folder, a job that has not ended, or one of the form `ids`.
    """

    def __init__(self, folder: str | Path) -> None:
        self._job = Finished(Path(folder))
        self._job.require("webdataset", "parquet")
        self._shards = [name for name, _ in self._job.receipts]
        self._ends = list(accumulate(len(names) for _, names in self._job.receipts))
        self._opened: OrderedDict[int, list[Item]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, position: int) -> Item:
        if not -len(self) <= position < len(self):
            raise IndexError(f"expected a position in [0, {len(self)}), got {position}")
        position %= len(self)
        shard = bisect.bisect_right(self._ends, position)
        items = self._opened.pop(shard, None) or _read(self._job, self._shards[shard])
        self._opened[shard] = items
        if len(self._opened) > _OPEN:
            self._opened.popitem(last=False)
        return items[position - self._ends[shard]]


class TokenStream(IterableDataset[Item]):
    """The items of a job, shard by shard, in an order that depends on seed and epoch alone.

    Every process and every worker of a DataLoader takes its own shards. `resume` goes on exactly behind what a
    DataLoader has given, with any number of workers; `state_dict` and `load_state_dict` do for a stream without
    workers, or through a loader that keeps its workers' states. A loader whose workers end with each epoch needs
    `set_epoch` before the next.

    Args:
        folder: what `zoo tokenize` wrote, of the form `webdataset` or `parquet`.
        shuffle: the shards, and the items in each.
        seed: of the order.
        rank, world_size: number of this process, and of all.

    Raises:
        ValueError: as `TokenDataset`, or fewer shards than processes.
    """

    def __init__(
        self, folder: str | Path, *, shuffle: bool = True, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self._job = Finished(Path(folder))
        self._job.require("webdataset", "parquet")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
        if len(self._job.receipts) < world_size:
            raise ValueError(
                f"{folder}: expected a shard for each of {world_size} processes, got {len(self._job.receipts)}"
            )
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self._epoch = self._shard = self._item = 0
        self._part: int | None = None  # whose shards are taken: of the worker of this number; None: one's own
        self._taken: _Taken | None = None

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch with the next iteration."""
        self._epoch, self._shard, self._item, self._part, self._taken = epoch, 0, 0, None, None

    def resume(
        self, epoch: int, batches: int, *, batch_size: int | None = None, num_workers: int = 0, drop_last: bool = False
    ) -> None:
        """Go on behind what a DataLoader has given of an epoch: the next one, with the same settings, gives the items
        that it would have given next, in the same order.

        Args:
            epoch: that was begun.
            batches: that were taken of it; items, where `batch_size` is None.
            batch_size, num_workers, drop_last: of the DataLoader.
        """
        self.set_epoch(epoch)
        self._taken = _Taken(batches, batch_size or 1, max(1, num_workers), drop_last)

    def __iter__(self) -> Iterator[Item]:
        """The rest of the epoch; the next call begins the next one."""
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if self._taken is not None:
            self._skip(self._taken, number, count)
        shards = self._shards_of(number if self._part is None else self._part, count)
        while self._shard < len(shards):
            shard = shards[self._shard]
            items = _read(self._job, self._job.receipts[shard][0])
            order = self._order(len(items), (shard,))
            while self._item < len(order):
                self._item += 1
                yield items[order[self._item - 1]]
            self._shard, self._item = self._shard + 1, 0
        self.set_epoch(self._epoch + 1)

    def _shards_of(self, number: int, count: int) -> list[int]:
        """The shards of one of `count` workers, in their order."""
        return self._order(len(self._job.receipts), ())[self.rank :: self.world_size][number::count]

    def _skip(self, taken: _Taken, number: int, count: int) -> None:
        """Go to the place of a worker, and take the part of the one whose turn it would be."""
        if count != taken.num_workers:
            raise ValueError(f"num_workers: expected {taken.num_workers}, as the stream was resumed with, got {count}")
        sizes = [[len(self._job.receipts[shard][1]) for shard in self._shards_of(k, count)] for k in range(count)]
        given, turns = taken.of_workers([sum(each) for each in sizes])
        self._part, self._taken = turns[number], None
        left = given[self._part] * taken.batch_size
        ends = list(accumulate(sizes[self._part]))
        self._shard = bisect.bisect_right(ends, left)
        self._item = left - [0, *ends][self._shard] if self._shard < len(ends) else 0

    def _order(self, count: int, key: tuple[int, ...]) -> list[int]:
        if not self.shuffle:
            return list(range(count))
        order: list[int] = np.random.default_rng((self.seed, self._epoch, *key)).permutation(count).tolist()
        return order

    def state_dict(self) -> dict[str, int | None]:
        """The place behind the last item."""
        return {"epoch": self._epoch, "shard": self._shard, "item": self._item, "part": self._part}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.set_epoch(state["epoch"])
        self._shard, self._item, self._part = state["shard"], state["item"], state["part"]


@dataclass(frozen=True)
class _Taken:
    """What a DataLoader has given of an epoch."""

    batches: int
    batch_size: int
    num_workers: int
    drop_last: bool

    def of_workers(self, sizes: list[int]) -> tuple[list[int], list[int]]:
        """How many batches each worker has given, and the workers in the order of their next turns; `sizes`: items of
        each. A DataLoader asks its workers in turn, and leaves out those that have ended.
        """
        most = [size // self.batch_size if self.drop_last else -(-size // self.batch_size) for size in sizes]
        turns, given = deque(k for k, count in enumerate(most) if count), [0] * len(sizes)
        for _ in range(self.batches):
            if not turns:
                break
            worker = turns.popleft()
            given[worker] += 1
            if given[worker] < most[worker]:
                turns.append(worker)
        return given, [*turns, *(k for k in range(len(sizes)) if k not in turns)]


class IdDataset(Dataset[Tensor]):
    """The ids of a job of the form `ids`: all items one after the other, memory-mapped, cut into equal rows.

    Args:
        folder: what `zoo tokenize` wrote.
        length: ids of a row; None: a row is an item.

    Raises:
        ValueError: no such folder, a job that has not ended or of another form, or fewer ids than a row.
    """

    def __init__(self, folder: str | Path, length: int | None = None) -> None:
        self._job = Finished(Path(folder))
        self._job.require("ids")
        self.length = length
        self.vocab_size = sum(self._job.about["vocab_sizes"])
        if length is not None and not 1 <= length <= self._ends[-1]:
            raise ValueError(f"length: expected 1 to {self._ends[-1]} ids, got {length}")

    @cached_property
    def _streams(self) -> list[np.ndarray]:
        kind = id_type(self._job.about["vocab_sizes"])
        return [np.memmap(self._job.path / f"{name}.bin", kind, "r") for name, _ in self._job.receipts]

    @cached_property
    def _starts(self) -> list[np.ndarray]:
        return [np.load(self._job.path / f"{name}.npy") for name, _ in self._job.receipts]

    @cached_property
    def _ends(self) -> list[int]:
        """How many ids lie before the end of each shard."""
        return list(accumulate(len(stream) for stream in self._streams))

    @cached_property
    def _item_ends(self) -> list[int]:
        return list(accumulate(len(names) for _, names in self._job.receipts))

    def __len__(self) -> int:
        return self._item_ends[-1] if self.length is None else self._ends[-1] // self.length

    def __getitem__(self, position: int) -> Tensor:
        """A row (N,) of int64 ids."""
        if not -len(self) <= position < len(self):
            raise IndexError(f"expected a position in [0, {len(self)}), got {position}")
        position %= len(self)
        if self.length is not None:
            return self._between(position * self.length, (position + 1) * self.length)
        shard = bisect.bisect_right(self._item_ends, position)
        starts = self._starts[shard]
        place = position - self._item_ends[shard] + len(starts) - 1
        return torch.from_numpy(self._streams[shard][starts[place] : starts[place + 1]].astype(np.int64))

    def _between(self, start: int, end: int) -> Tensor:
        shard = bisect.bisect_right(self._ends, start)
        pieces = []
        while start < end:
            stream, stop = self._streams[shard], self._ends[shard]
            pieces.append(stream[len(stream) - (stop - start) : len(stream) - (stop - min(end, stop))])
            start, shard = min(end, stop), shard + 1
        return torch.from_numpy(np.concatenate(pieces).astype(np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return {"_job": self._job, "length": self.length, "vocab_size": self.vocab_size}  # workers map it themselves


def _read(job: Finished, name: str) -> list[Item]:
    data = job.path / name
    if job.about["form"] == "webdataset":
        return _read_tar(data.with_suffix(".tar"))
    from pyarrow import parquet

    rows = parquet.read_table(data.with_suffix(".parquet")).to_pylist()
    return [
        Item(row["key"], row["name"], Tokens.unpack(row[TOKENS]), {field: row[field] for field in job.about["keep"]})
        for row in rows
    ]


def _read_tar(path: Path) -> list[Item]:
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            file = tar.extractfile(member)
            members.setdefault(key, {})[suffix] = file.read() if file is not None else b""
    return [
        Item(key, json.loads(of.pop("json"))["name"], Tokens.unpack(of.pop(TOKENS)), of) for key, of in members.items()
    ]
