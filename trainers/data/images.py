"""Images of any source as training and validation batches, in an order that a checkpoint can resume."""

from __future__ import annotations

from torch import nn

from trainers.data.captioned import CaptionReader
from trainers.data.loading import Reader
from trainers.data.module import SourceData
from trainers.data.pairs import PairReader, targets_of
from trainers.data.transforms import augmentation
from zoo.media.sources import open_source


class ImageData(SourceData):
    """Batches (B, 3, size, size) in [0, 1] from a folder, WebDataset shards, Parquet files or a Hugging Face data set.

    Training: a random square crop and a horizontal flip, or `transform`. Validation: the evaluation crop (Lanczos until
    the short side is `size`, then the centre). Order and augmentation are a function of seed, epoch, process and
    worker; the position is part of the checkpoint, so that a resumed run goes on with the image that came next. A file
    that cannot be read, or is no image, is named in the log and stands in `skipped`; if none can be read, that is an
    error.

    Args:
        train: where the training images are; see `zoo.media.sources.open_source`.
        val: where the validation images are; None: no validation.
        size: pixels a side.
        batch_size: per process.
        scale: least and largest factor by which an image is resized before the random crop.
        crop: least and largest side of the crop as a share of the image's short side, in place of `scale`.
        flip: whether every second image is mirrored.
        workers: loading processes; 0 loads in the main process.
        seed: of the order and of the augmentation.
        transform: torchvision v2 transform in place of crop and flip; from (3, H, W) uint8, or float in [0, 1] where
            the file is finer than that, to (3, size, size).
        image_column: of Parquet files and Hugging Face datasets; None: the only column of images.
        captions: where the caption of each training image is: the suffix of a member of WebDataset shards (`txt`), a
            column, or either with the name of a value in JSON (`json:caption`). Training batches are `CaptionedImages`
            then; an image without a caption counts as one that cannot be read. None: images alone.
        targets: folder with the image that each one of the folder `train` is to become, at the same place and of the
            same name, its suffix aside. Training batches are `ImagePairs` then, by the evaluation crop, without any
            augmentation. None: images alone.
        shuffle_buffer: images that are shuffled with each other in training, where a source is read in shards.
        epoch_images: images of an epoch over all processes, where a source is read in shards; None: all of them, once.
        cache: decode all images when loading starts and keep them in memory (3 bytes a pixel), so that small data does
            not make a fast model wait; a source in shards is then read in any order as well.

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
        crop: tuple[float, float] | None = None,
        flip: bool = True,
        workers: int = 0,
        seed: int = 0,
        transform: nn.Module | None = None,
        image_column: str | None = None,
        captions: str | None = None,
        targets: str | None = None,
        shuffle_buffer: int = 1000,
        epoch_images: int | None = None,
        cache: bool = False,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("shuffle_buffer", shuffle_buffer), ("size", size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if epoch_images is not None and epoch_images < 1:
            raise ValueError(f"epoch_images: expected at least 1, or null, got {epoch_images}")
        reader = Reader(size, augmentation(size, scale, crop, flip) if transform is None else transform)
        captioned = None if captions is None else CaptionReader(reader, captions)
        source = open_source(train, image_column, keep=() if captioned is None else (captioned.kept,))
        paired = None
        if targets is not None:
            varied = transform is not None or crop is not None or tuple(scale) != (1.0, 1.0)
            if varied or captions is not None:
                raise ValueError("targets: expected neither scale, crop, transform nor captions beside them")
            paired = PairReader(Reader(size, None), targets_of(source, train, targets))
        super().__init__(
            source,
            open_source(val, image_column) if val is not None else None,
            captioned or paired or reader,
            Reader(size, None),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        self.save_hyperparameters(ignore=["transform"])
        self.shuffle_buffer, self.epoch_images, self.cache = shuffle_buffer, epoch_images, cache
