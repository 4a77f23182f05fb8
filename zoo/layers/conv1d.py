"""Convolutions over time that pad by the signal's length, causal or centred (SEANet, arXiv 2009.02095).

Any number of samples gives ceil(samples / stride) positions. The causal ones also work piece by piece.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers import channels_inside
from zoo.layers.streaming import Stream, joined

PadMode = Literal["reflect", "constant", "replicate"]
TimeNorm = Literal["none", "time_group_norm"]


def pad1d(x: Tensor, left: int, right: int, mode: PadMode = "reflect") -> Tensor:
    """Grow the last axis; a signal too short to be reflected is first continued with zeros, which are cut off again.

    Args:
        x: (B, C, T), T >= 1.
        left, right: positions to add.
        mode: "reflect" (without repeating the edge), "constant" (zeros) or "replicate".

    Returns:
        (B, C, left + T + right).
    """
    if left == right == 0:
        return x
    if mode != "reflect":
        return F.pad(x, (left, right), mode=mode)
    length = x.shape[-1]
    missing = max(0, max(left, right) - length + 1)
    if missing == 0:  # joining the pieces is several times as fast as the general padding
        return channels_inside.join(
            [x[..., 1 : left + 1].flip(-1), x, x[..., length - 1 - right : length - 1].flip(-1)]
        )
    padded = F.pad(F.pad(x, (0, missing)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - missing]


class Conv1d(nn.Conv1d):
    """Convolution (B, C, T) -> (B, C', ceil(T / stride)).

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: taps of the kernel; (kernel_size - 1) * dilation + 1 >= stride.
        stride: positions from one output to the next.
        dilation: positions from one tap to the next.
        groups: channel groups.
        bias: whether a bias is added.
        causal: all padding but that of a ragged end comes before the signal; otherwise half of it.
        pad_mode: how the signal goes on outside, at both ends.
        norm: "time_group_norm": one normalisation over all channels and the whole time, after the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        causal: bool = False,
        pad_mode: PadMode = "reflect",
        norm: TimeNorm = "none",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, groups=groups, bias=bias
        )
        self.causal = causal
        self.pad_mode: PadMode = pad_mode
        self.norm = _norm(norm, out_channels)
        self.reach = (kernel_size - 1) * dilation + 1
        if self.reach < stride:
            raise ValueError(f"expected a kernel that reaches over the stride {stride}, got {self.reach} positions")

    def padding_for(self, length: int) -> tuple[int, int]:
        """Positions added before and after a signal of `length`."""
        total, step = self.reach - self.stride[0], self.stride[0]
        ragged = -length % step
        right = 0 if self.causal else total // 2
        return total - right, right + ragged

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.padding_for(x.shape[-1])
        if self.pad_mode == "constant" and right <= left:  # without a copy; what comes of zeros at the end is left out
            y = self.convolve(x, left)[..., : -(-x.shape[-1] // self.stride[0])]
        else:
            y = self.convolve(pad1d(x, left, right, self.pad_mode))
        return y if self.norm is None else self.norm(y)

    def convolve(self, x: Tensor, padding: int = 0) -> Tensor:
        """The convolution alone, with zeros at both ends."""
        return channels_inside.conv1d(x, self.weight, self.bias, self.stride[0], padding, self.dilation[0], self.groups)

    def stream(self) -> Stream:
        """The convolution piece by piece.

        With reflection the first output waits for as many inputs as lie before the signal, and one more.

        Raises:
            ValueError: a convolution that looks ahead, or is normalised over the whole time.
        """
        if not self.causal or self.norm is not None:
            raise ValueError("expected a causal convolution without normalisation over time, to work piece by piece")
        return ConvStream(self)


class ConvStream(Stream):
    """A causal convolution that keeps the inputs which the next output needs."""

    def __init__(self, conv: Conv1d) -> None:
        self.conv = conv
        self.left, _ = conv.padding_for(conv.stride[0])
        self.kept: Tensor | None = None  # inputs that are not done with; before `started` all of them
        self.started = False
        self.ahead = 0  # leading positions of `kept` that are there for the reflection at the end alone

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        x = joined(self.kept, x)
        length, stride = x.shape[-1], self.conv.stride[0]
        if not self.started:
            if last and length > 0:
                return self.conv(x)
            if length <= (self.left if self.conv.pad_mode == "reflect" else 0):
                self.kept = x
                return self._nothing(x)
            x = pad1d(x, self.left, 0, self.conv.pad_mode)
            self.started, length = True, x.shape[-1]
        if last:
            pending = (length - self.ahead - self.left) % stride
            x = pad1d(x, 0, -pending % stride, self.conv.pad_mode)
        window = x[..., self.ahead :]
        outputs = max(0, (window.shape[-1] - self.conv.reach) // stride + 1)
        used = self.ahead + outputs * stride
        start = max(0, used - stride)
        self.kept, self.ahead = x[..., start:], used - start
        if outputs == 0:
            return self._nothing(x)
        return self.conv.convolve(window)

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.conv.out_channels, 0)


class ConvTranspose1d(nn.ConvTranspose1d):
    """Transposed convolution (B, C, T) -> (B, C', T * stride).

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: taps of the kernel, >= stride.
        stride: outputs per input.
        groups: channel groups.
        bias: whether a bias is added.
        causal: whether the surplus of kernel_size - stride outputs is cut by `trim_right_ratio`; otherwise half of it
            is cut at either end.
        trim_right_ratio: share of the surplus that a causal one cuts at the end; 1 looks nowhere ahead.
        norm: "time_group_norm": one normalisation over all channels and the whole time, before the surplus is cut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        groups: int = 1,
        bias: bool = True,
        causal: bool = False,
        trim_right_ratio: float = 1.0,
        norm: TimeNorm = "none",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias)
        surplus = kernel_size - stride
        if surplus < 0:
            raise ValueError(f"expected a kernel_size >= the stride {stride}, got {kernel_size}")
        self.trim_right = math.ceil(surplus * trim_right_ratio) if causal else surplus // 2
        self.trim_left = surplus - self.trim_right
        self.causal = causal
        self.norm = _norm(norm, out_channels)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise ValueError(f"expected no output_size, which the stride tells, got {output_size}")
        y = channels_inside.conv_transpose1d(x, self.weight, self.bias, self.stride[0], 0, 0, self.groups)
        if self.norm is not None:
            y = self.norm(y)
        return y[..., self.trim_left : y.shape[-1] - self.trim_right]

    def stream(self) -> Stream:
        """The transposed convolution piece by piece.

        Raises:
            ValueError: one that looks ahead, or is normalised over the whole time.
        """
        if not self.causal or self.norm is not None:
            raise ValueError("expected a causal transposed convolution without normalisation over time")
        return ConvTransposeStream(self)


class ConvTransposeStream(Stream):
    """A causal transposed convolution that keeps the outputs to which the next input adds."""

    def __init__(self, conv: ConvTranspose1d) -> None:
        self.conv = conv
        self.overlap: Tensor | None = None  # without the bias
        self.to_skip = conv.trim_left

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        conv = self.conv
        surplus = conv.kernel_size[0] - conv.stride[0]
        overlap = x.new_zeros(len(x), conv.out_channels, surplus) if self.overlap is None else self.overlap
        if x.shape[-1] == 0:
            y = overlap
        else:
            y = channels_inside.conv_transpose1d(x, conv.weight, None, conv.stride[0], 0, 0, conv.groups)
            y[..., :surplus] += overlap
        done = y.shape[-1] - (conv.trim_right if last else surplus)
        self.overlap = y[..., done:]
        y = y[..., self.to_skip : done] if done > self.to_skip else y[..., :0]
        self.to_skip = max(0, self.to_skip - done)
        return y if conv.bias is None else y + conv.bias[:, None]


class LSTM(nn.Module):
    """A recurrent network over time (B, C, T) -> (B, C', T), added to its input, which is repeated if C' = 2 C.

    Args:
        channels: C.
        layers: how many.
        bidirectional: whether it goes in both directions, whose outputs are joined.
        hidden: width of a direction; None: C.
    """

    def __init__(self, channels: int, layers: int, bidirectional: bool = False, hidden: int | None = None) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, hidden or channels, layers, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x.permute(2, 0, 1))
        return y.permute(1, 2, 0) + (torch.cat([x, x], dim=1) if y.shape[-1] > x.shape[1] else x)

    def stream(self) -> Stream:
        """The network piece by piece.

        Raises:
            ValueError: one in both directions.
        """
        if self.lstm.bidirectional:
            raise ValueError("expected a recurrent network in one direction, to work piece by piece")
        return LSTMStream(self.lstm)


class LSTMStream(Stream):
    """A recurrent network that keeps its state."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.lstm = lstm
        self.state: tuple[Tensor, Tensor] | None = None

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        if x.shape[-1] == 0:
            return x
        y, self.state = self.lstm(x.permute(2, 0, 1), self.state)
        return y.permute(1, 2, 0) + x


def _norm(norm: TimeNorm, channels: int) -> nn.GroupNorm | None:
    return nn.GroupNorm(1, channels) if norm == "time_group_norm" else None
