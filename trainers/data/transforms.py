"""The default training augmentation, as torchvision v2 transforms."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


class RandomScaleCrop(v2.Transform):
    """A square crop at a random place of the image, resized by a random factor or of a random size (bicubic).

    The crop is cut first and resized alone, which gives the same pixels but for its edges, at a part of the cost.
    An image whose short side would be smaller than the crop is enlarged to it.

    Args:
        size: pixels a side of the crop.
        scale: least and largest factor, drawn evenly.
        crop: least and largest side of the crop as a share of the image's short side, drawn evenly, in place of
            `scale`; None: by `scale`.

    Raises:
        ValueError: a size, scale or crop that is not positive, a crop beyond the image, or both scale and crop.
    """

    def __init__(
        self, size: int, scale: tuple[float, float] = (1.0, 1.0), crop: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        if size < 1 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"expected a positive size and 0 < least <= largest scale, got {size} and {scale}")
        if crop is not None and not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop: expected 0 < least <= largest <= 1, got {crop}")
        if crop is not None and tuple(scale) != (1.0, 1.0):
            raise ValueError(f"expected scale or crop, got {scale} and {crop}")
        self.size, self.scale, self.crop = size, (scale[0], scale[1]), crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        height, width = v2.query_size(flat_inputs)
        drawn = float(torch.empty(()).uniform_(*(self.scale if self.crop is None else self.crop)))
        short = min(height, width)
        wanted = short * drawn if self.crop is not None else self.size / max(drawn, self.size / short)
        side = max(1, min(round(wanted), short))
        top, left = (int(torch.randint(length - side + 1, ())) for length in (height, width))
        return {"top": top, "left": left, "side": side}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        top, left, side = params["top"], params["left"], params["side"]
        crop = self._call_kernel(F.crop, inpt, top=top, left=left, height=side, width=side)
        if side == self.size:
            return crop
        size = [self.size, self.size]
        return self._call_kernel(F.resize, crop, size=size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)


def augmentation(
    size: int,
    scale: tuple[float, float] = (1.0, 1.0),
    crop: tuple[float, float] | None = None,
    flip: bool = True,
) -> v2.Transform:
    """`RandomScaleCrop`, then with `flip` a horizontal flip of every second image."""
    return v2.Compose([RandomScaleCrop(size, scale, crop), v2.RandomHorizontalFlip(0.5 if flip else 0.0)])


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
