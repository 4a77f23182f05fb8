"""Images of any source as training and validation batches, in an order that a checkpoint can resume."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from trainers.data.loading import BatchLoader, BatchSource, IndexedBatches, Position, Reader, ShardedBatches, Split
from trainers.data.sources import IndexedSource, Source, open_source
from trainers.data.transforms import augmentation

logger = logging.getLogger("zoo")


class ImageData(lightning.LightningDataModule):
    """Batches (B, 3, size, size) in [0, 1] from a folder, WebDataset shards, Parquet files or a Hugging Face data set.

    Training: a random square crop and a horizontal flip, or `transform`. Validation: the evaluation crop (Lanczos until
    the short side is `size`, then the centre). Order and augmentation are a function of seed, epoch, process and
    worker; the position is part of the checkpoint, so that a resumed run goes on with the image that came next. A file
    that cannot be read, or is no image, is named in the log and stands in `skipped`; if none can be read, that is an
    error.

    Args:
        train: where the training images are; see `trainers.data.sources.open_source`.
        val: where the validation images are; None: no validation.
        size: pixels a side.
        batch_size: per process.
        scale: least and largest factor by which an image is resized before the random crop.
        workers: loading processes; 0 loads in the main process.
        seed: of the order and of the augmentation.
        transform: torchvision v2 transform in place of crop and flip; from (3, H, W) uint8, or float in [0, 1] where
            the file is finer than that, to (3, size, size).
        image_column: of Parquet files and Hugging Face datasets; None: the only column of images.
        shuffle_buffer: images that are shuffled with each other in training, where a source is read in shards.
        epoch_images: images of an epoch over all processes, where a source is read in shards; None: all of them, once.

    Raises:
        MediaError: no such place.
        ValueError: a setting that cannot work.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        size: int = 256,
        batch_size: int = 16,
        scale: tuple[float, float] = (1.0, 1.0),
        workers: int = 0,
        seed: int = 0,
        transform: nn.Module | None = None,
        image_column: str | None = None,
        shuffle_buffer: int = 1000,
        epoch_images: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("shuffle_buffer", shuffle_buffer), ("size", size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if epoch_images is not None and epoch_images < 1:
            raise ValueError(f"epoch_images: expected at least 1, or null, got {epoch_images}")
        self.save_hyperparameters(ignore=["transform"])
        self.train_source = open_source(train, image_column)
        self.val_source = open_source(val, image_column) if val is not None else None
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.shuffle_buffer, self.epoch_images = shuffle_buffer, epoch_images
        self.training = Reader(size, augmentation(size, scale) if transform is None else transform)
        self.evaluation = Reader(size, None)
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
        batches = self._batches(self.train_source, self.training, split, train=True)
        self.train_loader = BatchLoader(batches, workers=self.workers, confirm=self.trainer is not None)
        if self._restored is not None:
            self._seek(self.train_loader, self._restored, split)
            self._restored = None
        return self.train_loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        if self.val_source is None:
            return []
        batches = self._batches(self.val_source, self.evaluation, self._split(), train=False)
        self.val_loader = BatchLoader(batches, workers=self.workers)
        return self.val_loader

    def _batches(self, source: Source, reader: Reader, split: Split, *, train: bool) -> BatchSource:
        if isinstance(source, IndexedSource):
            return IndexedBatches(source, reader, split, train=train, workers=self.workers)
        images = None
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
        positions = [dataclasses.asdict(self.train_loader.position(before_last=unfinished))]
        split = self._split()
        if split.world_size > 1 and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * split.world_size
            torch.distributed.all_gather_object(gathered, positions[0])
            positions = gathered
        return {"positions": positions, "order": self._order(split, self.train_loader)}

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
