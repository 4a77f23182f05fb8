"""Signals of any source as training and validation batches, in an order that a checkpoint can resume."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from trainers.data.loading import BatchLoader, BatchSource, IndexedBatches, Position, Reads, ShardedBatches, Split
from zoo.media.sources import DecodedSource, IndexedSource, Source
from zoo.ops.collective import from_all_ranks

logger = logging.getLogger("zoo")


class SourceData(lightning.LightningDataModule):
    """Base of the data modules: a subclass sets the sources and their readers.

    Order and augmentation are a function of seed, epoch, process and worker; the position is part of the checkpoint, so
    that a resumed run goes on with the signal that came next.

    Args:
        train, val: the sources; without the second there is no validation.
        training, evaluation: what makes a tensor of what a source holds.
        batch_size: per process.
        workers: loading processes; 0 loads in the main process.
        seed: of the order and of the augmentation.
    """

    shuffle_buffer = 1000  # see `ShardedBatches`, as the next
    epoch_images: int | None = None
    cache = False  # see `DecodedSource`

    def __init__(
        self,
        train: Source,
        val: Source | None,
        training: Reads,
        evaluation: Reads,
        *,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train_source, self.val_source = train, val
        self.training, self.evaluation = training, evaluation
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.train_loader: BatchLoader | None = None
        self.val_loader: BatchLoader | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def skipped(self) -> dict[str, str]:
        """What was no image or could not be read so far, with the reasons."""
        loaders = [loader for loader in (self.train_loader, self.val_loader) if loader is not None]
        return {name: reason for loader in loaders for name, reason in loader.skipped.items()}

    def train_dataloader(self) -> BatchLoader:
        split = self._split()
        self.train_source = self._cached(self.train_source)
        batches = self._batches(self.train_source, self.training, split, train=True)
        self.train_loader = BatchLoader(batches, workers=self.workers, confirm=self.trainer is not None)
        if self._restored is not None:
            self._seek(self.train_loader, self._restored, split)
            self._restored = None
        return self.train_loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        if self.val_source is None:
            return []
        self.val_source = self._cached(self.val_source)
        batches = self._batches(self.val_source, self.evaluation, self._split(), train=False)
        self.val_loader = BatchLoader(batches, workers=self.workers)
        return self.val_loader

    def _cached(self, source: Source) -> Source:
        return DecodedSource(source) if self.cache and not isinstance(source, DecodedSource) else source

    def _batches(self, source: Source, reader: Reads, split: Split, *, train: bool) -> BatchSource:
        if isinstance(source, IndexedSource):
            return IndexedBatches(source, reader, split, train=train, workers=self.workers)
        images = None
        if not train and split.world_size > 1 and getattr(self.trainer.lightning_module, "sharded", False):
            raise ValueError(
                "validation of sharded weights: expected as many batches in every process, which shards of data do not "
                "give; use cache: true, or a source that is read in any order (a folder, a Hugging Face data set)"
            )
        if train:
            images = self.epoch_images
            if images is None and split.world_size > 1:
                sizes = [shard.size for shard in source.shards]
                if None in sizes:
                    raise ValueError(
                        f"shards of unknown size on {split.world_size} processes: set epoch_images, so that all of "
                        "them end an epoch after the same number of batches"
                    )
                images = sum(size for size in sizes if size is not None)
        return ShardedBatches(
            source,
            reader,
            split,
            train=train,
            workers=self.workers,
            buffer=self.shuffle_buffer,
            epoch_images=images,
        )

    def _split(self) -> Split:
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        elif self.trainer is not None:
            rank, world = self.trainer.global_rank, self.trainer.world_size
        return Split(rank, world, self.batch_size, self.seed)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        """Counts the batches that are trained on: Lightning fetches some ahead."""
        if self.trainer is not None and self.trainer.training and self.train_loader is not None:
            self.train_loader.use()
        return batch

    # -- position ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position of the training data: of all processes, which therefore call this together."""
        if self.train_loader is None or self.trainer is None:
            return {}
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        unfinished = progress.ready > progress.processed  # where a step breaks off
        positions = from_all_ranks(dataclasses.asdict(self.train_loader.position(before_last=unfinished)))
        return {"positions": positions, "order": self._order(self._split(), self.train_loader)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader start at that position."""
        self._restored = state_dict or None
        # Lightning looks at the loader alone, whose position stands in this state
        warnings.filterwarnings("ignore", message=".*ended before the epoch ended and your dataloader is not resumable")

    def _order(self, split: Split, loader: BatchLoader) -> dict[str, int]:
        """What the order of the images depends on."""
        order = {"world_size": split.world_size, "batch_size": split.batch_size, "seed": split.seed}
        if isinstance(loader.batches, ShardedBatches):
            order |= {"workers": loader.batches.workers, "shuffle_buffer": self.shuffle_buffer}
        return order

    def _seek(self, loader: BatchLoader, state: dict[str, Any], split: Split) -> None:
        order = self._order(split, loader)
        if state["order"] != order:
            changed = ", ".join(
                f"{name} {state['order'].get(name)} -> {order.get(name)}"
                for name in sorted({*order, *state["order"]})
                if order.get(name) != state["order"].get(name)
            )
            logger.warning("the order of the data changes (%s): the epoch of the checkpoint starts anew", changed)
            loader.seek(loader.batches.beginning(state["positions"][0]["epoch"]))
            return
        values = state["positions"][split.rank]
        workers = tuple(tuple(worker) for worker in values["workers"])
        loader.seek(Position(values["epoch"], values["batches"], values["turn"], workers))
