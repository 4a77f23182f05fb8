"""Convolutions with the channels innermost: values of torch's, gradients as before, weights followed as they change."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from zoo.layers import channels_inside, packed
from zoo.layers.channels_inside import WaveConv1d, WaveConvTranspose1d, are_inside, conv1d, conv_transpose1d, join
from zoo.layers.snake import Snake

needs_bfloat16 = pytest.mark.skipif(torch.bfloat16 not in packed._TYPES, reason="no CPU that multiplies bfloat16")


@pytest.fixture(autouse=True, params=["wide vectors", "narrow vectors"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of laying out weights, whichever is the faster one here."""
    monkeypatch.setattr(packed, "_WIDE", request.param == "wide vectors")


@given(
    batch=st.integers(1, 3), groups=st.integers(1, 2), channels=st.integers(1, 4), outputs=st.sampled_from([2, 20]),
    kernel=st.integers(1, 5), stride=st.integers(1, 3), dilation=st.integers(1, 3), padding=st.integers(0, 4),
    inside=st.booleans(),
)  # fmt: skip
def test_convolution_is_that_of_torch(
    batch: int, groups: int, channels: int, outputs: int, kernel: int, stride: int, dilation: int, padding: int,
    inside: bool,
) -> None:  # fmt: skip
    x = torch.randn(batch, groups * channels, 23)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if inside else x
    weight, bias = torch.randn(outputs * groups, channels, kernel), torch.randn(outputs * groups)
    with torch.no_grad():
        y = conv1d(x, weight, bias, stride, padding, dilation, groups)
    expected = F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert are_inside(y) or y.shape[2] == 1


@given(
    batch=st.integers(1, 3), channels=st.integers(1, 4), outputs=st.sampled_from([3, 9]), stride=st.integers(1, 4),
    more=st.integers(0, 3), padding=st.integers(0, 2),
)  # fmt: skip
def test_transposed_convolution_is_that_of_torch(
    batch: int, channels: int, outputs: int, stride: int, more: int, padding: int
) -> None:
    x, weight = torch.randn(batch, channels, 11), torch.randn(channels, outputs, stride + more)
    padding, output_padding = min(padding, stride + more - 1), stride - 1
    with torch.no_grad():
        y = conv_transpose1d(x, weight, None, stride, padding, output_padding, 1)
    expected = F.conv_transpose1d(x, weight, None, stride, padding, output_padding)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_training_is_untouched() -> None:
    conv, x = WaveConv1d(3, 4, 5, padding=2), torch.randn(2, 3, 9, requires_grad=True)
    y = conv(x)
    assert not are_inside(y)
    y.square().sum().backward()
    other = torch.nn.functional.conv1d(x, conv.weight, conv.bias, padding=2)
    assert torch.equal(y, other)
    assert conv.weight.grad is not None


@pytest.mark.parametrize("kind", [WaveConv1d, WaveConvTranspose1d])
def test_changed_weights_are_used(kind: type) -> None:
    conv, x = kind(3, 4, 5).eval(), torch.randn(2, 3, 9)
    with torch.no_grad():
        first = conv(x)
        conv.weight.mul_(2)
        conv.bias.mul_(2)
        torch.testing.assert_close(conv(x), 2 * first, rtol=1e-5, atol=1e-5)
        conv.weight.data = conv.weight.data / 4
        conv.bias.data = conv.bias.data / 4
        torch.testing.assert_close(conv(x), first / 2, rtol=1e-5, atol=1e-5)
        conv.load_state_dict({key: torch.zeros_like(value) for key, value in conv.state_dict().items()})
        assert not conv(x).any()


@given(
    batch=st.integers(1, 2), taps=st.integers(1, 3), stride=st.integers(2, 5), padding=st.integers(0, 3),
    samples=st.integers(24, 40),
)  # fmt: skip
def test_convolution_of_many_channels_with_a_stride_is_that_of_torch(
    batch: int, taps: int, stride: int, padding: int, samples: int
) -> None:
    channels = channels_inside._MANY // (taps * stride) + 1
    x, weight, bias = torch.randn(batch, channels, samples), torch.randn(2, channels, taps * stride), torch.randn(2)
    with torch.no_grad():
        y = conv1d(x, weight, bias, stride, padding, 1, 1)
    expected = F.conv1d(x, weight, bias, stride, padding)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)


def test_inference_mode_and_weights_made_in_it() -> None:
    with torch.inference_mode():
        conv, x = WaveConv1d(3, 4, 5), torch.randn(1, 3, 9)
        torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight, conv.bias), rtol=1e-5, atol=1e-5)


def test_other_precisions_run_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_TYPES", (torch.float32,))  # as on a CPU without bfloat16
    for dtype in (torch.bfloat16, torch.float64):
        conv, x = WaveConv1d(3, 4, 5).to(dtype), torch.randn(1, 3, 9, dtype=dtype)
        with torch.no_grad():
            assert torch.equal(conv(x), F.conv1d(x, conv.weight, conv.bias))


def assert_rounded(y: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """bfloat16 results of sums in float32, of terms of this magnitude in all."""
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * magnitude).all()


@needs_bfloat16
@given(
    batch=st.integers(1, 3), groups=st.integers(1, 2), channels=st.integers(1, 40), outputs=st.sampled_from([2, 48]),
    kernel=st.integers(1, 5), stride=st.integers(1, 3), dilation=st.integers(1, 3), padding=st.integers(0, 4),
)  # fmt: skip
def test_convolution_in_bfloat16_is_rounded_once(
    batch: int, groups: int, channels: int, outputs: int, kernel: int, stride: int, dilation: int, padding: int
) -> None:
    weight, bias = torch.randn(outputs * groups, channels, kernel).bfloat16(), torch.randn(outputs * groups).bfloat16()
    settings = (stride, padding, dilation, groups)
    for time in (23, 40, 23):  # each length has its layout of the weights
        x = torch.randn(batch, groups * channels, time).bfloat16()
        with torch.no_grad():
            y = conv1d(x, weight, bias, *settings)
        exact = F.conv1d(x.double(), weight.double(), bias.double(), *settings)
        size = F.conv1d(x.double().abs(), weight.double().abs(), bias.double().abs(), *settings)
        assert_rounded(y, exact, size)


@needs_bfloat16
@given(
    batch=st.integers(1, 3), channels=st.integers(1, 40), outputs=st.sampled_from([3, 24]), stride=st.integers(1, 4),
    taps=st.integers(1, 2), padding=st.integers(0, 2),
)  # fmt: skip
def test_transposed_convolution_in_bfloat16_is_rounded_once(
    batch: int, channels: int, outputs: int, stride: int, taps: int, padding: int
) -> None:
    x = torch.randn(batch, channels, 11).bfloat16()
    weight, bias = torch.randn(channels, outputs, taps * stride).bfloat16(), torch.randn(outputs).bfloat16()
    settings = (stride, min(padding, taps * stride - 1), 0)
    with torch.no_grad():
        y = conv_transpose1d(x, weight, bias, *settings, 1)
    exact = F.conv_transpose1d(x.double(), weight.double(), bias.double(), *settings)
    size = F.conv_transpose1d(x.double().abs(), weight.double().abs(), bias.double().abs(), *settings)
    assert_rounded(y, exact, size)


@given(
    batch=st.integers(1, 3), channels=st.integers(1, 20), taps=st.integers(1, 7), dilation=st.integers(2, 9),
    blocks=st.integers(0, 4), time=st.integers(1, 90), bias=st.booleans(), inside=st.booleans(),
)  # fmt: skip
def test_dilated_convolution_of_each_channel_is_that_of_torch(
    batch: int, channels: int, taps: int, dilation: int, blocks: int, time: int, bias: bool, inside: bool
) -> None:
    padding = blocks * dilation
    assume(time + 2 * padding > (taps - 1) * dilation)
    x, weight = torch.randn(batch, channels, time), torch.randn(channels, 1, taps)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if inside else x
    summands = torch.randn(channels) if bias else None
    with torch.no_grad():
        y = conv1d(x, weight, summands, 1, padding, dilation, channels)
    expected = F.conv1d(x, weight, summands, 1, padding, dilation, channels)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_snake_is_the_same_with_and_without_gradients() -> None:
    snake = Snake(5)
    with torch.no_grad():
        snake.alpha.copy_(torch.rand(1, 5, 1) * 3)
    for x in (torch.randn(2, 5, 7), torch.randn(2, 7, 5).transpose(1, 2)):
        kept = x.clone()
        with torch.no_grad():
            y = snake(x)
        torch.testing.assert_close(y, snake(x).detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(x, kept)
        assert y.stride() == x.stride()


def test_joined_pieces_keep_the_layout() -> None:
    inside = torch.randn(2, 6, 4).transpose(1, 2)
    for parts in ([inside[..., :1], inside, inside[..., 2:4]], [torch.randn(2, 4, 3), torch.randn(2, 4, 5)]):
        joined = join(parts)
        assert torch.equal(joined, torch.cat(parts, dim=2))
        assert are_inside(joined) == are_inside(max(parts, key=lambda part: part.shape[2]))
