"""Convolution with TensorFlow's "SAME" padding: ceil(size / stride) outputs, and a surplus zero on the far side."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def same_padding(size: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one axis so that a convolution gives ceil(size / stride) positions.

    Args:
        size: length of the axis in positions.
        kernel_size: taps of the kernel.
        stride: positions from one output to the next.
        dilation: positions from one tap to the next.

    Returns:
        (before, after); `after` is larger by one where the total is odd.
    """
    reach = (kernel_size - 1) * dilation + 1
    outputs = (size + stride - 1) // stride
    total = torch.sym_max((outputs - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """2D convolution (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)) with zeros as TensorFlow pads them.

    Where the total is odd (3 x 3 with stride 2 on even sides), PyTorch's own padding starts one position too early.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: side of the square kernel.
        stride: of both axes.
        dilation: of both axes.
        groups: channel groups.
        bias: whether a bias is added.
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
    ) -> None:
        # At stride 1 the total does not depend on the size; if it is even, the convolution pads without a copy.
        self.pads_itself = stride == 1 and (kernel_size - 1) * dilation % 2 == 0
        padding = (kernel_size - 1) * dilation // 2 if self.pads_itself else 0
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )

    def forward(self, input: Tensor) -> Tensor:
        if not self.pads_itself:
            kernel_size, stride, dilation = self.kernel_size[0], self.stride[0], self.dilation[0]
            top, bottom = same_padding(input.shape[2], kernel_size, stride, dilation)
            left, right = same_padding(input.shape[3], kernel_size, stride, dilation)
            input = F.pad(input, (left, right, top, bottom))
        return super().forward(input)
