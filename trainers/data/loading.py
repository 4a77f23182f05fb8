"""Batches of images whose order is a function of seed, epoch, process and worker, and can be entered anywhere.

Work is split as batches (sources that can be read in any order) or as shards (those that are read from their start).
Every batch carries the position behind it, so a position is exact however far the workers have read ahead.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from zoo.media import MediaError
from zoo.media.image import evaluation_crop
from zoo.media.pixels import read_pixels, to_unit
from zoo.media.sources import IndexedSource, Record, Shard, ShardedSource, Skipped, unreadable

logger = logging.getLogger("zoo")

# an item and the key of what is random -> a tensor, or a batch of one that its class can `join` (see `joined`)
Reads = Callable[[Record, Sequence[int]], Any]
NAMED = 20  # skipped files that a loader names one by one; the total is told at the end of every epoch


@dataclass(frozen=True)
class Split:
    """Which part of the data a process loads.

    Attributes:
        rank, world_size: number of this process, and of all.
        batch_size: images in a batch of one process.
        seed: of the order and of the augmentation.
    """

    rank: int = 0
    world_size: int = 1
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Position:
    """A place between two batches.

    Attributes:
        epoch: number of the epoch.
        batches: of this epoch that lie before.
        turn: number of the worker that gives the next batch.
        workers: of each worker that reads shards: (pass, shard in its list, image in the shard, images already taken of
            the block that starts there).
    """

    epoch: int = 0
    batches: int = 0
    turn: int = 0
    workers: tuple[tuple[int, ...], ...] = ()

    def behind(self, batch: Batch) -> Position:
        """The place behind the next batch."""
        workers = list(self.workers)
        if workers:
            workers[batch.worker] = batch.position
        turn = (batch.worker + 1) % len(workers) if workers else 0
        return Position(self.epoch, self.batches + 1, turn, tuple(workers))


@dataclass(frozen=True)
class Batch:
    """What a worker hands over.

    Attributes:
        images: (B, 3, size, size), or what the reader gives, joined; None: none of them could be read.
        skipped: what was left out or replaced on the way.
        worker: number of the worker, which is none of a process: another process takes over where a run is resumed.
        position: of this worker behind the batch.
        ended: the worker has read all and found no readable image.
    """

    images: Any
    skipped: tuple[Skipped, ...]
    worker: int
    position: tuple[int, ...] = ()
    ended: bool = False

    def pin_memory(self) -> Batch:
        images = None if self.images is None else self.images.pin_memory()
        return Batch(images, self.skipped, self.worker, self.position, self.ended)


@dataclass(frozen=True)
class Reader:
    """Images of a source to tensors (3, size, size), float32 in [0, 1].

    Attributes:
        size: pixels a side.
        transform: random torchvision v2 transform, or None for the evaluation crop.
    """

    size: int
    transform: Callable[[Tensor], Tensor] | None

    def __call__(self, record: Record, key: Sequence[int]) -> Tensor:
        """The image; what is random in the transform is a function of `key` alone.

        Raises:
            MediaError: an image that cannot be read.
            ValueError: a transform that gives another shape.
        """
        (pixels,) = read_pixels(record.data, record.name)
        if self.transform is None:
            pixels = evaluation_crop(pixels, (self.size, self.size), record.name)
            return torch.from_numpy(to_unit(pixels)).permute(2, 0, 1)
        with seeded(*key):
            return transformed(self.transform, torch.from_numpy(np.array(pixels)).permute(2, 0, 1), self.size)


def transformed(transform: Callable[[Tensor], Tensor], pixels: Tensor, size: int) -> Tensor:
    """What a torchvision v2 transform makes of an image or frames (..., 3, H, W), uint8: (..., 3, size, size), float32
    in [0, 1].

    Raises:
        ValueError: a transform that gives another shape.
    """
    found, shape = transform(pixels), (*pixels.shape[:-2], size, size)
    if found.shape != shape:
        raise ValueError(f"transform: expected images {shape}, got {tuple(found.shape)}")
    return found.float() / 255 if found.dtype == torch.uint8 else found.float().clamp(0, 1)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """In the block what draws from torch's own generator, as transforms do, is a function of `key`; then the run's own
    random state is put back.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(mixed_seed(*key))
        yield
    finally:
        generator.set_state(state)


def mixed_seed(*key: int) -> int:
    """One seed of several numbers; near keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def _permutation(count: int, *key: int) -> list[int]:
    return np.random.default_rng(key).permutation(count).tolist()


class BatchSource(IterableDataset):
    """What runs in the workers. `control` is shared memory: where the next pass starts.

    Attributes:
        source: the images.
        length: batches of one epoch; None: not known.
        workers: how many run; at least 1, which may be the main process.
    """

    source: Any
    length: int | None
    workers: int
    control: Tensor

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What lay beside the images."""
        return self.source.skipped

    def beginning(self, epoch: int) -> Position:
        """Where an epoch starts that does not go on where another ended."""
        return Position(epoch)

    def after(self, position: Position) -> Position:
        """Where the epoch after the one that ended at `position` starts."""
        return self.beginning(position.epoch + 1)

    def start(self, position: Position) -> None:
        """Set where the next `iter` starts."""
        self.control[0] = torch.tensor([position.epoch, position.batches, position.turn, 0])
        if position.workers:
            self.control[1:] = torch.tensor(position.workers)

    def _worker(self) -> int:
        """Number of this worker, counted from the one whose turn it is."""
        info = get_worker_info()
        return (0 if info is None else info.id) % self.workers


class IndexedBatches(BatchSource):
    """Batches of a source that can be read in any order; their content does not depend on the number of workers.

    Training: a permutation of all images per epoch, dealt to the processes in turn; what does not fill a batch on every
    process is left to the next epoch's order. An image that cannot be read is replaced by the next one that can.
    Evaluation: the fixed order, every image exactly once, as many batches on every process; what cannot be read is
    left out. Of a source in groups (see `IndexedSource.groups`) this holds for each, and the batches of all are mixed.
    """

    def __init__(self, source: IndexedSource, reader: Reads, split: Split, *, train: bool, workers: int) -> None:
        self.source, self.reader, self.split, self.train = source, reader, split, train
        self.workers = max(1, workers)
        self.control = torch.zeros(1, 4, dtype=torch.int64).share_memory_()
        self._unreadable: dict[int, Skipped] = {}

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.batches(0))

    def batches(self, epoch: int) -> list[list[int]]:
        """The images of each batch of this process; the n-th batches of all processes are of one group."""
        groups, seed = self.source.groups, self.split.seed
        if len(groups) == 1:
            if len(groups[0]) < self.split.world_size:
                expected = f"at least one image for each of {self.split.world_size} processes"
                raise MediaError(f"expected {expected}, got {len(groups[0])}")
            return self._of_group(groups[0], seed, epoch)
        batches = [batch for number, group in enumerate(groups) for batch in self._of_group(group, seed, epoch, number)]
        order = _permutation(len(batches), seed, epoch) if self.train else range(len(batches))
        return [batches[number] for number in order]

    def _of_group(self, group: range, *key: int) -> list[list[int]]:
        split, count = self.split, len(group)
        order = [group[place] for place in _permutation(count, *key)] if self.train else list(group)
        if self.train and count < split.world_size:  # some come more than once, so that each process has one
            return [[order[split.rank % count]]]
        mine = order[split.rank :: split.world_size]
        if self.train:
            full = count // (split.world_size * split.batch_size)
            if full:
                return [mine[i * split.batch_size :][: split.batch_size] for i in range(full)]
            return [mine[: count // split.world_size]]
        most = math.ceil(math.ceil(count / split.world_size) / split.batch_size)
        if math.ceil(len(mine) / split.batch_size) == most:
            return [mine[i * split.batch_size :][: split.batch_size] for i in range(most)]
        return [part.tolist() for part in np.array_split(mine, most)]  # a process with fewer images, not fewer batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.control[0, :2].tolist()
        worker = self._worker()
        batches = self.batches(epoch)
        for number in range(done + worker, len(batches), self.workers):
            yield self._batch(batches[number], epoch, worker)

    def _batch(self, indices: Sequence[int], epoch: int, worker: int) -> Batch:
        images, skipped = [], []
        for index in indices:
            group = next(group for group in self.source.groups if index in group)
            for step in range(len(group)) if self.train else (0,):
                image = self._read(group[(index - group.start + step) % len(group)], epoch)
                if not isinstance(image, Skipped):
                    images.append(image)
                    break
                skipped.append(image)
            else:
                if self.train:
                    return Batch(None, tuple(skipped), worker, ended=True)
        return Batch(joined(images), tuple(skipped), worker)

    def _read(self, index: int, epoch: int) -> Any:
        if index in self._unreadable:
            return self._unreadable[index]
        image = _read(self.source.read(index), self.reader, (self.split.seed, epoch, index))
        if isinstance(image, Skipped):
            self._unreadable[index] = image
        return image


class ShardedBatches(BatchSource):
    """Batches of a source in shards, each shard read by one worker of one process.

    Every pass deals the shards anew; with fewer shards than workers of all processes, several read one shard and
    take its images in turn. In evaluation several processes always do so, over all shards, so that each has its
    share of the images whatever lies in which shard; the others' images it reads, but does not decode. Training
    shuffles blocks of `buffer` images. With `epoch_images` an epoch is that many images and the passes run on
    across epochs; without it an epoch is one pass, in which every image comes exactly once.

    Of what lies before a position, nothing but the rest of the shard and the block has to be read again.
    """

    def __init__(
        self,
        source: ShardedSource,
        reader: Reads,
        split: Split,
        *,
        train: bool,
        workers: int,
        buffer: int,
        epoch_images: int | None,
    ) -> None:
        self.source, self.reader, self.split, self.train = source, reader, split, train
        self.workers = max(1, workers)
        self.buffer = buffer
        self.endless = epoch_images is not None
        self.length = None
        if epoch_images is not None:
            self.length = max(1, epoch_images // (split.world_size * split.batch_size))
        self.control = torch.zeros(1 + self.workers, 4, dtype=torch.int64).share_memory_()

    def beginning(self, epoch: int) -> Position:
        return Position(epoch, workers=((epoch, 0, 0, 0),) * self.workers)

    def after(self, position: Position) -> Position:
        if not self.endless:
            return self.beginning(position.epoch + 1)
        return dataclasses.replace(position, epoch=position.epoch + 1, batches=0)

    def shards(self, number: int, worker: int) -> list[tuple[Shard, int, int]]:
        """What a worker reads in a pass: shards, of each the items i with i % k == j, as (shard, j, k)."""
        shards = self.source.shards
        consumers = self.split.world_size * self.workers
        if not self.train and (self.split.world_size > 1 or consumers > len(shards)):
            return [(shard, worker * self.split.world_size + self.split.rank, consumers) for shard in shards]
        order = _permutation(len(shards), self.split.seed, number) if self.train else range(len(shards))
        parts = max(1, math.ceil(consumers / max(1, len(shards))))
        units = [(shards[index], part, parts) for part in range(parts) for index in order]
        return units[self.split.rank * self.workers + worker :: consumers]

    def __iter__(self) -> Iterator[Batch]:
        epoch, _, first, _ = self.control[0].tolist()
        worker = (self._worker() + first) % self.workers
        number, unit, record, taken = self.control[1 + worker].tolist()
        if not self.endless and number != epoch:
            return  # at its end already
        images: list[Any] = []
        skipped: list[Skipped] = []
        while True:
            readable = bool(unit or record or taken)  # what came before is not known
            for block, here, behind in self._blocks(number, worker, unit, record):
                for position in range(taken, len(block)):
                    item, key = block[position]
                    image = _read(item, self.reader, key)
                    if isinstance(image, Skipped):
                        skipped.append(image)
                        continue
                    images.append(image)
                    readable = True
                    if len(images) == self.split.batch_size:
                        at = (number, *here, position + 1) if position + 1 < len(block) else (number, *behind, 0)
                        yield Batch(joined(images), tuple(skipped), worker, at)
                        images, skipped = [], []
                taken = 0
            number, unit, record, taken = number + 1, 0, 0, 0
            if not (self.endless and readable):
                break
        if images or skipped:
            yield Batch(joined(images), tuple(skipped), worker, (number, 0, 0, 0))

    def _blocks(
        self, number: int, worker: int, unit: int, record: int
    ) -> Iterator[tuple[list[tuple[Record | Skipped, tuple[int, ...]]], tuple[int, int], tuple[int, int]]]:
        """Blocks of a pass from a position on: what is in it, where it starts, and where the next one does."""
        block: list[tuple[Record | Skipped, tuple[int, ...]]] = []
        start = (unit, record)
        units = self.shards(number, worker)
        read = 0
        for place in range(unit, len(units)):
            shard, part, parts = units[place]
            first = record if place == unit else 0
            for index, item in enumerate(shard.records(first), first):
                turn = index if self.train else 0 if isinstance(item, Skipped) else read
                read += isinstance(item, Record)  # in evaluation images are counted over all shards
                if turn % parts != part:
                    continue
                block.append((item, (self.split.seed, number, self.split.rank, worker, place, index)))
                if len(block) == self.buffer:
                    yield self._shuffled(block, number, worker, start), start, (place, index + 1)
                    block, start = [], (place, index + 1)
        if block:
            yield self._shuffled(block, number, worker, start), start, (len(units), 0)

    def _shuffled(self, block: list[Any], number: int, worker: int, start: tuple[int, int]) -> list[Any]:
        if not self.train:
            return block
        key = (self.split.seed, number, self.split.rank, worker, *start)
        return [block[index] for index in _permutation(len(block), *key)]


def joined(items: Sequence[Any]) -> Any:
    """Tensors (...) -> (B, ...), batches -> a longer one; None of no items."""
    if not items:
        return None
    return torch.stack(list(items)) if isinstance(items[0], Tensor) else type(items[0]).join(items)


def _read(item: Record | Skipped, reader: Reads, key: tuple[int, ...]) -> Any:
    if isinstance(item, Skipped):
        return item
    try:
        return reader(item, key)
    except MediaError as error:
        return unreadable(item, error)


class BatchLoader:
    """Iterates over batches (B, 3, size, size) in [0, 1], or of what the reader gives.

    The first `iter` starts at the position that `seek` set, every further one at the next epoch. Its length is the
    batches of one epoch, where that is known. It counts its epochs itself, since those of a trainer need not be the
    same: Lightning's counter runs ahead when a run is resumed at the end of an epoch.

    Args:
        batches: what the workers run.
        workers: loading processes, which are kept from epoch to epoch; 0 loads in this one.
        confirm: a batch counts as used when `use` is called and not when it is given out; for whoever fetches batches
            ahead, and may throw them away.
    """

    def __init__(self, batches: BatchSource, *, workers: int, confirm: bool = False) -> None:
        self.batches, self.confirm = batches, confirm
        self.skipped: dict[str, str] = {}  # name -> reason
        self._running = False
        self._end: int | None = batches.length
        self._given: list[Position] = []  # and not yet used: the places behind those batches
        self._start = batches.beginning(0)  # of the running iteration
        self._used = [self._start]  # the places behind the last two batches that were used
        self._loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it would draw from the run's own
        )
        self._tell(batches.skipped)

    def __len__(self) -> int:
        if self.batches.length is None:
            raise TypeError("the number of batches is not known before the shards are read; epoch_images would set it")
        return self.batches.length

    def use(self) -> None:
        """The oldest of the batches that were given out has been used."""
        self._used = [self._used[-1], self._given.pop(0)]

    def position(self, *, before_last: bool = False) -> Position:
        """Behind the last batch that was used, or before it; at the end of an epoch, where the next one starts."""
        position = self._used[0 if before_last else -1]
        return self.batches.after(position) if position.batches == self._end else position

    def seek(self, position: Position) -> None:
        """Let the next `iter` start where `position` was taken."""
        self._running, self._given, self._used, self._end = False, [], [position], self.batches.length

    def __iter__(self) -> Iterator[Any]:
        # a generator: where it starts is decided when the first batch is asked for
        used = self._used[-1]
        if self._running and (used.batches > self._start.batches or used.batches == self._end):
            self._used = [self.batches.after(used)]
        position = self._start = self._used[-1]
        self._running, self._given, self._end = True, [], self.batches.length
        self.batches.start(position)
        images = 0
        for batch in self._loader:
            self._tell(batch.skipped)
            if batch.images is None:
                continue
            images += len(batch.images)
            position = position.behind(batch)
            self._given.append(position)
            if not self.confirm:
                self.use()
            if position.batches == self._end:
                self._summarise(position.epoch, images)
            yield batch.images
            if position.batches == self._end:
                return
        if images == 0 and position.batches == 0:
            name, reason = next(iter(self.skipped.items()), ("the source", "it is empty"))
            raise MediaError(f"no image of {len(self.skipped)} can be read, the first being {name}: {reason}")
        self._end = position.batches
        self._summarise(position.epoch, images)

    def _summarise(self, epoch: int, images: int) -> None:
        if self.skipped:
            logger.warning("epoch %d: %d images read, %d files skipped so far", epoch, images, len(self.skipped))

    def _tell(self, skipped: Sequence[Skipped]) -> None:
        for item in skipped:
            if item.name not in self.skipped:
                self.skipped[item.name] = item.reason
                if len(self.skipped) <= NAMED:
                    logger.warning("skipped %s: %s", item.name, item.reason)
