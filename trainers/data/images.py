"""A folder of images as training and validation batches."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo import media
from zoo.media.image import files
from zoo.tokenizer import InputSpec

logger = logging.getLogger("zoo")


class ImageFolderData(lightning.LightningDataModule):
    """Images of a folder, searched recursively, as batches (B, 3, size, size) in [0, 1].

    Training: a random square crop of `size` pixels (images whose short side is smaller are enlarged first), a scale
    drawn from `scale`, and a horizontal flip. Validation: the evaluation crop (short side to `size`, then the centre).
    A file that cannot be read is named in the log once and skipped; if none can be read, that is an error.

    Args:
        train: folder (or glob) of the training images.
        val: folder of the validation images; None: no validation.
        size: pixels a side of the crops.
        batch_size: per process.
        scale: least and largest factor by which an image is resized before the random crop.
        workers: loading processes; 0 loads in the main process.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        size: int = 256,
        batch_size: int = 16,
        scale: tuple[float, float] = (1.0, 1.0),
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.train_files = files(train)
        self.val_files = files(val) if val is not None else []
        self.size, self.batch_size, self.scale, self.workers = size, batch_size, scale, workers
        self.spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), size=(size, size))

    def train_dataloader(self) -> DataLoader:
        return self._loader(CroppedImages(self.train_files, self.spec, self.scale), shuffle=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._loader(CroppedImages(self.val_files, self.spec, None), shuffle=False) if self.val_files else []

    def _loader(self, images: CroppedImages, *, shuffle: bool) -> DataLoader:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(images) >= self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=torch.stack,
        )


class CroppedImages(Dataset):
    """Files as square tensors (3, size, size): a random crop with `scale`, or the evaluation crop without."""

    def __init__(self, paths: list[Path], spec: InputSpec, scale: tuple[float, float] | None) -> None:
        self.paths, self.spec, self.scale = paths, spec, scale
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        for step in range(len(self.paths)):
            at = (index + step) % len(self.paths)
            if at in self._unreadable:
                continue
            try:
                return self._read(self.paths[at])
            except media.MediaError as error:
                self._unreadable.add(at)
                logger.warning("skipped: %s", error)
        raise media.MediaError(f"none of {len(self.paths)} images can be read, the first being {self.paths[0]}")

    def _read(self, path: Path) -> Tensor:
        if self.scale is None:
            return media.load(path, self.spec)[0]
        size = self.spec.size[0]  # type: ignore[index]
        image = media.load(path, dataclasses.replace(self.spec, size=None))
        height, width = image.shape[2:]
        factor = max(float(torch.empty(()).uniform_(*self.scale)), size / min(height, width))
        sides = [max(size, round(side * factor)) for side in (height, width)]
        if sides != [height, width]:
            image = F.interpolate(image, sides, mode="bicubic", antialias=True).clamp(*self.spec.value_range)
        top, left = (int(torch.randint(side - size + 1, ())) for side in sides)
        crop = image[0, :, top : top + size, left : left + size]
        return crop.flip(-1) if torch.rand(()) < 0.5 else crop
