"""Lossless patching of images and video: Haar wavelets or plain rearrangement, and the inverse."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Patching = Literal["haar", "rearrange"]


def _halve(x: Tensor, dim: int) -> Tensor:
    """One round along one axis, which is halved: all channels of the means of neighbours, then half their differences.

    (B, C, ...) -> (B, 2C, ...).
    """
    first, second = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return torch.cat([first + second, first - second], dim=1) / 2


def _double(x: Tensor, dim: int) -> Tensor:
    """Undo `_halve`: (B, 2C, ...) -> (B, C, ...)."""
    low, high = x.chunk(2, dim=1)
    return torch.stack([low + high, low - high], dim=dim + 1).flatten(dim, dim + 1)


def haar(x: Tensor) -> Tensor:
    """One round of the two-dimensional Haar transform, scaled so that LL is the mean of 2 x 2 pixels.

    (B, C, H, W), H and W even -> (B, 4C, H / 2, W / 2): all channels of LL, then LH, HL, HH (the first letter is the
    filter along the width).
    """
    return _halve(_halve(x, 2), 3)


def inverse_haar(x: Tensor) -> Tensor:
    """Undo `haar`: (B, 4C, H, W) -> (B, C, 2H, 2W)."""
    return _double(_double(x, 3), 2)


def video_haar(x: Tensor) -> Tensor:
    """One round of the three-dimensional Haar transform, scaled so that LLL is the mean of 2 x 2 x 2 pixels.

    (B, C, T, H, W), all even -> (B, 8C, T / 2, H / 2, W / 2): all channels of LLL, then LLH, LHL, LHH, HLL, HLH, HHL,
    HHH (the letters are the filters along time, height and width).
    """
    return _halve(_halve(_halve(x, 4), 3), 2)


def inverse_video_haar(x: Tensor) -> Tensor:
    """Undo `video_haar`: (B, 8C, T, H, W) -> (B, C, 2T, 2H, 2W)."""
    return _double(_double(_double(x, 2), 3), 4)


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


class VideoPatch(nn.Module):
    """(B, C, 1 + k * size, H, W) -> (B, C * size^3, 1 + k, H / size, W / size). `size` is a power of two.

    The first frame has a patch of its own, in which it is repeated.
    """

    def __init__(self, size: int, method: Patching) -> None:
        super().__init__()
        self.size, self.method = size, method

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1].expand(-1, -1, self.size - 1, -1, -1), x], dim=2)
        if self.method == "rearrange":
            p = self.size
            split = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, p))
            return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        for _ in range(int(math.log2(self.size))):
            x = video_haar(x)
        return x


class VideoUnpatch(nn.Module):
    """The inverse of `VideoPatch`."""

    def __init__(self, size: int, method: Patching) -> None:
        super().__init__()
        self.size, self.method = size, method

    def forward(self, x: Tensor) -> Tensor:
        if self.method == "rearrange":
            parts = x.unflatten(1, (-1, self.size, self.size, self.size))
            x = parts.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        else:
            for _ in range(int(math.log2(self.size))):
                x = inverse_video_haar(x)
        return x[:, :, self.size - 1 :]
