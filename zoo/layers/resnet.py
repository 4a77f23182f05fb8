"""The residual block and the changes of resolution of convolutional autoencoders (arXiv 2012.09841 and its kin)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.in_place import added
from zoo.layers.inference import conv_of_doubled, is_plain, norm_silu

CONVOLUTIONS: dict[Literal[1, 2], type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


class ResBlock(nn.Module):
    """norm, SiLU, 3x3 convolution, norm, SiLU, dropout, 3x3 convolution; plus the input (1x1-projected).

    (B, in_channels, H, W) -> (B, out_channels, H, W), or of (B, in_channels, T) with `dims=1`. `groups` of the
    GroupNorms, whose eps is 1e-6; `bias` of the convolutions.
    """

    may_end_a_pass: ClassVar[bool] = True  # of `zoo.tiling`

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 32,
        dropout: float = 0.0,
        *,
        bias: bool = True,
        dims: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=bias)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(self.dropout(norm_silu(self.norm2, h, spare=True)))
        return added(h, self.shortcut(x))


class PlainResBlock(nn.Module):
    """SiLU, 3x3 convolution, twice, plus the input, without norms; starts as a small change of the identity.

    (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.conv2.weight, std=0.1 / (3 * channels**0.5))
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Downsample(nn.Module):
    """Halves H and W: one row and column of zeros at bottom and right, then a 3x3 convolution of stride 2."""

    may_end_a_pass: ClassVar[bool] = True  # of `zoo.tiling`

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles H and W: nearest neighbour, then a 3x3 convolution (to `out_channels`, if given)."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if is_plain(self.conv, nn.Conv2d):
            return conv_of_doubled(x, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]
