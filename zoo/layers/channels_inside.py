"""Convolutions over time with the channels innermost in memory, where that is faster: on CPUs, without gradients.

oneDNN runs them 1.2 to 3 times as fast as with time innermost. The layout is that of torch's `channels_last` for images
of height 1, and passes through activations and sums by itself. In it a stride of `s` is a matter of taking `s`
positions for one with `s` times the channels, so that strided convolutions and transposed ones become plain ones; of
dilated ones with a kernel for each channel, likewise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers import packed

_MANY = 4096  # channels times kernel size, from which on oneDNN needs help with strides


def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    """As `torch.nn.functional.conv1d`, of (B, C, T)."""
    if x.ndim != 3 or not packed.can_be_packed(x, weight):
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    kernel = weight.shape[2]
    if kernel == stride == groups == 1 and padding == 0:
        return packed.linear(_inside(x).transpose(1, 2), weight, bias).transpose(1, 2)
    if stride > 1 and kernel % stride == 0 and dilation == groups == 1 and weight.shape[1] * kernel >= _MANY:
        return _conv_of_blocks(x, weight, bias, stride, padding)
    if dilation > 1 and stride == 1 and groups == x.shape[1] == len(weight) and padding % dilation == 0:
        return _conv_of_phases(x, weight, bias, padding, dilation)
    return packed.convolution(_image(x), weight, bias, stride, padding, dilation, groups).squeeze(2)


def conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, output_padding: int, groups: int
) -> Tensor:
    """As `torch.nn.functional.conv_transpose1d`, of (B, C, T)."""
    plain = groups == 1 and weight.shape[2] % stride == 0 and output_padding <= padding
    if x.ndim != 3 or not plain or not packed.can_be_packed(x, weight):
        return F.conv_transpose1d(x, weight, bias, stride, padding, output_padding, groups)
    taps, width = weight.shape[2] // stride, weight.shape[1]

    def prepare(weight: Tensor) -> Tensor:  # (I, O, taps * stride) -> (stride * O, I, taps)
        return weight.unflatten(2, (taps, stride)).flip(2).permute(3, 1, 0, 2).flatten(0, 1)

    biases = None if bias is None else bias.repeat(stride)
    kernel = (stride * width, taps)
    y = packed.convolution(_image(x), weight, biases, 1, taps - 1, 1, 1, prepare, kernel)  # of T + taps - 1 positions
    y = y.permute(0, 3, 1, 2).reshape(x.shape[0], -1, width)
    return y[:, padding : y.shape[1] - padding + output_padding].transpose(1, 2)


class WaveConv1d(nn.Conv1d):
    """A convolution over time, in the layout of memory that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        return conv1d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]), self.dilation[0], self.groups)


class WaveConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution over time, in the layout of memory that is faster."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise ValueError(f"expected no output_size, which the stride tells, got {output_size}")
        return conv_transpose1d(
            x, self.weight, self.bias, self.stride[0], int(self.padding[0]), self.output_padding[0], self.groups
        )


def are_inside(x: Tensor) -> bool:
    """Whether the channels of (B, C, T) are innermost in memory."""
    return x.stride(1) == 1 and x.stride(2) == x.shape[1] > 1


def join(parts: list[Tensor]) -> Tensor:
    """Signals (B, C, T_i) one after the other in time, in the layout of the longest."""
    if are_inside(max(parts, key=lambda part: part.shape[2])):
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)
    return torch.cat(parts, dim=2)


def _conv_of_blocks(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """A convolution whose kernel is a multiple of its stride, as a plain one of blocks of `stride` positions."""
    taps = weight.shape[2] // stride

    def prepare(weight: Tensor) -> Tensor:  # (O, I, taps * stride) -> (O, stride * I, taps)
        return weight.unflatten(2, (taps, stride)).permute(0, 3, 1, 2).flatten(1, 2)

    blocks = (x.shape[2] + 2 * padding) // stride
    more = blocks * stride - x.shape[2] - padding  # fewer than none: positions that no output sees
    rows = F.pad(x.transpose(1, 2), (0, 0, padding, more)).contiguous()  # (B, blocks * stride, C)
    joined = rows.view(x.shape[0], blocks, -1).transpose(1, 2)
    return packed.convolution(_image(joined), weight, bias, 1, 0, 1, 1, prepare, (len(weight), taps)).squeeze(2)


def _conv_of_phases(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int) -> Tensor:
    """A dilated convolution of each channel by itself, as one without dilation of blocks of `dilation` positions.

    Over a dilated one oneDNN takes five to ten times as long in float32, and up to a hundred times in bfloat16.
    """
    batch, channels, time = x.shape
    taps, wide = weight.shape[2], dilation * channels

    def prepare(weight: Tensor) -> Tensor:  # (C, 1, taps) -> (dilation * C, 1, taps)
        return weight.repeat(dilation, 1, 1)

    rows = F.pad(x.transpose(1, 2), (0, 0, 0, -time % dilation)).contiguous()  # (B, blocks * dilation, C)
    joined = rows.view(batch, -1, wide).transpose(1, 2)
    biases = None if bias is None else bias.repeat(dilation)
    y = packed.convolution(_image(joined), weight, biases, 1, padding // dilation, 1, wide, prepare, (wide, taps))
    outputs = time + 2 * padding - (taps - 1) * dilation
    return y.permute(0, 3, 1, 2).reshape(batch, -1, channels)[:, :outputs].transpose(1, 2)


def _inside(x: Tensor) -> Tensor:
    """(B, C, T), channels innermost and items one after the other."""
    batch, channels, time = x.shape
    if are_inside(x) and (batch == 1 or x.stride(0) == channels * time):
        return x
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _image(x: Tensor) -> Tensor:
    """(B, C, T) -> (B, C, 1, T), channels innermost."""
    batch, channels, time = x.shape
    # strides of dimensions of size 1 tell torch the layout too
    return _inside(x).as_strided((batch, channels, 1, time), (channels * time, 1, channels * time, channels))
