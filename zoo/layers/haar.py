"""Lossless patching of images: Haar wavelets or plain rearrangement, and the inverse."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Patching = Literal["haar", "rearrange"]


def haar(x: Tensor) -> Tensor:
    """One round of the two-dimensional Haar transform, scaled so that LL is the mean of 2 x 2 pixels.

    (B, C, H, W), H and W even -> (B, 4C, H / 2, W / 2): all channels of LL, then LH, HL, HH (the first letter is the
    filter along the width).
    """
    top, bottom = x[..., ::2, :], x[..., 1::2, :]
    low_top, low_bottom = top[..., ::2] + top[..., 1::2], bottom[..., ::2] + bottom[..., 1::2]
    high_top, high_bottom = top[..., ::2] - top[..., 1::2], bottom[..., ::2] - bottom[..., 1::2]
    bands = (low_top + low_bottom, low_top - low_bottom, high_top + high_bottom, high_top - high_bottom)
    return torch.cat(bands, dim=1) / 4


def inverse_haar(x: Tensor) -> Tensor:
    """Undo `haar`: (B, 4C, H, W) -> (B, C, 2H, 2W)."""
    ll, lh, hl, hh = x.chunk(4, dim=1)
    top = torch.stack([ll + lh + hl + hh, ll + lh - hl - hh], dim=-1).flatten(-2)
    bottom = torch.stack([ll - lh + hl - hh, ll - lh - hl + hh], dim=-1).flatten(-2)
    return torch.stack([top, bottom], dim=-2).flatten(-3, -2)


class Patch(nn.Module):
    """(B, C, H, W) -> (B, C * size^2, H / size, W / size). `size` is a power of two."""

    def __init__(self, size: int, method: Patching) -> None:
        super().__init__()
        self.size, self.method = size, method

    def forward(self, x: Tensor) -> Tensor:
        if self.method == "rearrange":
            return F.pixel_unshuffle(x, self.size)
        for _ in range(int(math.log2(self.size))):
            x = haar(x)
        return x


class Unpatch(nn.Module):
    """The inverse of `Patch`."""

    def __init__(self, size: int, method: Patching) -> None:
        super().__init__()
        self.size, self.method = size, method

    def forward(self, x: Tensor) -> Tensor:
        if self.method == "rearrange":
            return F.pixel_shuffle(x, self.size)
        for _ in range(int(math.log2(self.size))):
            x = inverse_haar(x)
        return x
