"""The default training augmentation, as torchvision v2 transforms."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


class RandomScaleCrop(v2.Transform):
    """A square crop at a random place of the image resized by a random factor (bicubic, antialiased).

    The crop is cut first and resized alone, which gives the same pixels but for its edges, at a part of the cost.
    An image whose short side would be smaller than the crop is enlarged to it.

    Args:
        size: pixels a side of the crop.
        scale: least and largest factor, drawn evenly.

    Raises:
        ValueError: a size or scale that is not positive.
    """

    def __init__(self, size: int, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        if size < 1 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"expected a positive size and 0 < least <= largest scale, got {size} and {scale}")
        self.size, self.scale = size, (scale[0], scale[1])

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        height, width = v2.query_size(flat_inputs)
        factor = max(float(torch.empty(()).uniform_(*self.scale)), self.size / min(height, width))
        side = max(1, min(round(self.size / factor), height, width))
        top, left = (int(torch.randint(length - side + 1, ())) for length in (height, width))
        return {"top": top, "left": left, "side": side}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        top, left, side = params["top"], params["left"], params["side"]
        crop = self._call_kernel(F.crop, inpt, top=top, left=left, height=side, width=side)
        if side == self.size:
            return crop
        size = [self.size, self.size]
        return self._call_kernel(F.resize, crop, size=size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)


def augmentation(size: int, scale: tuple[float, float] = (1.0, 1.0)) -> v2.Transform:
    """`RandomScaleCrop`, then a horizontal flip of every second image."""
    return v2.Compose([RandomScaleCrop(size, scale), v2.RandomHorizontalFlip()])


class ContrastiveAugmentation(v2.Compose):
    """The augmentation of MoCo v2 (arXiv 2003.04297): crops of a fifth of the image or more, colours, blur, flips.

    Args:
        size: pixels a side.
    """

    def __init__(self, size: int = 224) -> None:
        super().__init__(
            [
                v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.RandomApply([v2.GaussianBlur(_blur_width(size), (0.1, 2.0))], p=0.5),
                v2.RandomHorizontalFlip(),
            ]
        )


def _blur_width(size: int) -> int:
    """Pixels of the blur's window: SimCLR's tenth of the image, made odd."""
    return max(3, size // 10 | 1)
