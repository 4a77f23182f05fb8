"""Clips of videos as training and validation batches, in an order that a checkpoint can resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainers.data.loading import seeded, transformed
from trainers.data.module import SourceData
from trainers.data.transforms import augmentation
from zoo.media.image import evaluation_crop
from zoo.media.pixels import to_unit
from zoo.media.sources import Record
from zoo.media.video import Clip, ClipSource


class VideoData(SourceData):
    """Batches (B, 3, frames, size, size) in [0, 1] from a folder of videos, as Pillow reads them: animated GIF and
    WebP files, and folders of frames (`ffmpeg -i CLIP.mp4 FOLDER/%05d.jpg` makes such a one).

    Training: consecutive frames from a random place, cut and flipped alike as those of `ImageData`. Validation: those
    from the middle, with the evaluation crop. A shorter video stands still at its end. Order, resuming and what cannot
    be read: as `ImageData`.

    Args:
        train: folder of the training videos; see `zoo.media.video.ClipSource`.
        val: of the validation videos; None: no validation.
        frames: of a clip.
        step: how many frames of a video one of a clip is after the other.
        size: pixels a side.
        batch_size: per process.
        scale: least and largest factor by which a clip is resized before the random crop.
        workers: loading processes; 0 loads in the main process.
        seed: of the order and of the augmentation.
        transform: torchvision v2 transform in place of crop and flip; from (frames, 3, H, W) to
            (frames, 3, size, size), as for `ImageData`.

    Raises:
        MediaError: no such folder, or no video in it.
        ValueError: a setting that cannot work.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        frames: int = 17,
        step: int = 1,
        size: int = 256,
        batch_size: int = 4,
        scale: tuple[float, float] = (1.0, 1.0),
        workers: int = 0,
        seed: int = 0,
        transform: nn.Module | None = None,
    ) -> None:
        for name, value in (("frames", frames), ("step", step), ("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        super().__init__(
            ClipSource(train),
            None if val is None else ClipSource(val),
            ClipReader(frames, step, size, augmentation(size, scale) if transform is None else transform),
            ClipReader(frames, step, size, None),
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        self.save_hyperparameters(ignore=["transform"])


@dataclass(frozen=True)
class ClipReader:
    """Videos to clips (3, frames, size, size), float32 in [0, 1].

    Attributes:
        frames, step: as for `VideoData`.
        size: pixels a side.
        transform: random torchvision v2 transform, or None for the middle and the evaluation crop.
    """

    frames: int
    step: int
    size: int
    transform: Callable[[Tensor], Tensor] | None

    def __call__(self, record: Record, key: Sequence[int]) -> Tensor:
        """The clip; what is random in it is a function of `key` alone.

        Raises:
            MediaError: a video that cannot be read.
            ValueError: a transform that gives another shape.
        """
        if not isinstance(record, Clip):
            raise ValueError(f"expected a clip, got {record.name}")
        with seeded(*key):
            pixels = record.read(self._places)
            if self.transform is None:
                crops = [evaluation_crop(frame, (self.size, self.size), record.name) for frame in pixels]
                return torch.from_numpy(to_unit(np.stack(crops))).permute(3, 0, 1, 2)
            clip = transformed(self.transform, torch.from_numpy(pixels).permute(0, 3, 1, 2), self.size)
        return clip.transpose(0, 1).contiguous()

    def _places(self, count: int) -> list[int]:
        spare = max(0, count - (self.frames - 1) * self.step - 1)
        start = spare // 2 if self.transform is None else int(torch.randint(spare + 1, ()))
        return [min(start + i * self.step, count - 1) for i in range(self.frames)]
