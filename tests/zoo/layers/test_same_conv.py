"""The "SAME" convolution against timm's, and its contract."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.layers.same_conv import SameConv2d, same_padding


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel_size=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
)
def test_equals_the_same_convolution_of_timm(
    height: int, width: int, kernel_size: int, stride: int, dilation: int
) -> None:
    from timm.layers import Conv2dSame

    convolution = SameConv2d(2, 3, kernel_size, stride=stride, dilation=dilation)
    oracle = Conv2dSame(2, 3, kernel_size, stride=stride, dilation=dilation)
    oracle.load_state_dict(convolution.state_dict())
    images = torch.randn(1, 2, height, width)
    actual = convolution(images)
    assert actual.shape == (1, 3, -(-height // stride), -(-width // stride))
    torch.testing.assert_close(actual, oracle(images))


def test_three_by_three_with_stride_two_pads_even_sides_only_at_the_end() -> None:
    assert same_padding(8, 3, stride=2) == (0, 1)
    assert same_padding(9, 3, stride=2) == (1, 1)


def test_weights_of_a_plain_convolution_load() -> None:
    plain = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    convolution = SameConv2d(4, 4, 3, groups=2, bias=False)
    convolution.load_state_dict(plain.state_dict())
    images = torch.randn(1, 4, 7, 6)
    torch.testing.assert_close(convolution(images), plain(images))


@pytest.mark.parametrize("stride", [1, 2])
def test_exports_with_free_height_and_width(stride: int) -> None:
    convolution = SameConv2d(3, 4, 3, stride=stride)
    side = torch.export.Dim.DYNAMIC
    program = torch.export.export(convolution, (torch.randn(1, 3, 16, 24),), dynamic_shapes=({2: side, 3: side},))
    images = torch.randn(1, 3, 18, 32)
    torch.testing.assert_close(program.module()(images), convolution(images))
