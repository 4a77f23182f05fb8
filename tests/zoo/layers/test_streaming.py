"""Streams: any pieces give what the whole gives, for every causal layer; centred ones are refused."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.layers.conv1d import LSTM, Conv1d, ConvTranspose1d, pad1d
from zoo.layers.seanet import ELU, SEANetConfig, SEANetDecoder, SEANetEncoder
from zoo.layers.snake import Snake
from zoo.layers.streaming import stream_of


def pieces(layer: nn.Module, x: Tensor, cuts: list[int]) -> Tensor:
    """The output of a stream that gets `x` cut at the places."""
    stream, edges = stream_of(layer), sorted({0, x.shape[-1], *(cut for cut in cuts if cut <= x.shape[-1])})
    parts = [stream.step(x[..., start:end], last=end == x.shape[-1]) for start, end in pairwise(edges)]
    return torch.cat(parts, -1)


cuts = st.lists(st.integers(0, 60), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    kernel=st.integers(1, 8),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 3),
    mode=st.sampled_from(["reflect", "constant", "replicate"]),
    cuts=cuts,
)
def test_convolution(length: int, kernel: int, stride: int, dilation: int, mode: str, cuts: list[int]) -> None:
    reach = (kernel - 1) * dilation + 1
    if reach < stride:
        with pytest.raises(ValueError, match="expected a kernel that reaches"):
            Conv1d(2, 3, kernel, stride=stride, dilation=dilation)
        return
    torch.manual_seed(0)
    layer = Conv1d(2, 3, kernel, stride=stride, dilation=dilation, causal=True, pad_mode=mode).double()  # type: ignore[arg-type]
    x = torch.randn(2, 2, length, dtype=torch.float64)
    with torch.no_grad():
        whole = layer(x)
        assert whole.shape[-1] == -(-length // stride)
        torch.testing.assert_close(pieces(layer, x, cuts), whole)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 30),
    stride=st.integers(1, 5),
    surplus=st.integers(0, 7),
    ratio=st.sampled_from([0.0, 0.5, 1.0]),
    cuts=cuts,
)
def test_transposed_convolution(length: int, stride: int, surplus: int, ratio: float, cuts: list[int]) -> None:
    torch.manual_seed(0)
    layer = ConvTranspose1d(2, 3, stride + surplus, stride=stride, causal=True, trim_right_ratio=ratio).double()
    x = torch.randn(2, 2, length, dtype=torch.float64)
    with torch.no_grad():
        whole = layer(x)
        assert whole.shape[-1] == length * stride
        torch.testing.assert_close(pieces(layer, x, cuts), whole)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 150),
    lstm_layers=st.integers(0, 1),
    shortcut=st.booleans(),
    activation=st.sampled_from(["elu", "snake"]),
    mode=st.sampled_from(["reflect", "constant"]),
    cuts=st.lists(st.integers(0, 150), max_size=20),
)
def test_seanet(length: int, lstm_layers: int, shortcut: bool, activation: str, mode: str, cuts: list[int]) -> None:
    config = SEANetConfig(
        filters=2, strides=(2, 3), residual_layers=2, lstm_layers=lstm_layers, shortcut=shortcut,
        activation=activation, pad_mode=mode,
    )  # type: ignore[arg-type]  # fmt: skip
    torch.manual_seed(0)
    x = torch.randn(1, 1, length, dtype=torch.float64)
    with torch.no_grad():
        for layer, signal in (
            (SEANetEncoder(config, 4).double(), x),
            (SEANetDecoder(config, 4).double(), torch.randn(1, 4, -(-length // 6), dtype=torch.float64)),
        ):
            torch.testing.assert_close(pieces(layer, signal, cuts), layer(signal))


def test_a_stream_starts_to_answer_before_it_ends() -> None:
    config = SEANetConfig(filters=2, strides=(2, 3))
    stream, x = stream_of(SEANetEncoder(config, 4)), torch.randn(1, 1, 60)
    with torch.no_grad():
        frames = [stream.step(piece).shape[-1] for piece in x.split(6, -1)]
    assert sum(frames) >= 3
    assert all(count == 1 for count in frames[-3:])  # one in, one out


def test_what_looks_ahead_cannot_stream() -> None:
    for layer in (
        Conv1d(1, 1, 3),
        ConvTranspose1d(1, 1, 4, stride=2),
        LSTM(2, 1, bidirectional=True),
        nn.Conv1d(1, 1, 3),
        SEANetEncoder(SEANetConfig(filters=2, strides=(2,), causal=False), 2),
    ):
        with pytest.raises(ValueError, match="expected a"):
            stream_of(layer)


@given(length=st.integers(1, 12), left=st.integers(0, 9), right=st.integers(0, 9))
def test_reflection_of_a_short_signal_first_continues_it_with_zeros(length: int, left: int, right: int) -> None:
    x = torch.arange(1.0, length + 1)
    longer = torch.cat([x, torch.zeros(max(0, max(left, right) - length + 1))])
    expected = torch.cat([longer[1 : left + 1].flip(0), x, _reflected(longer, length, right)])
    torch.testing.assert_close(pad1d(x[None, None], left, right)[0, 0], expected)


def _reflected(longer: Tensor, length: int, right: int) -> Tensor:
    """What follows the signal: the zeros that it was continued with, then their reflection, as far as `right`."""
    zeros = longer[length:]
    back = longer[:-1].flip(0)
    return torch.cat([zeros, back])[:right]


def test_snake() -> None:
    layer = Snake(3)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([0.5, 1.0, 3.0])[None, :, None])
    x = torch.randn(2, 3, 5)
    alpha = layer.alpha
    torch.testing.assert_close(layer(x), x + torch.sin(alpha * x) ** 2 / alpha)


def test_elu_is_torchs_with_and_without_gradients() -> None:
    x = torch.linspace(-30, 10, 5001).requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(ELU()(x), nn.ELU()(x), rtol=0, atol=2e-7)
    torch.testing.assert_close(ELU()(x), nn.ELU()(x), rtol=0, atol=0)
    assert torch.autograd.grad(ELU()(x).sum(), x)[0].isfinite().all()
