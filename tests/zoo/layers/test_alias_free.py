"""The activation without aliasing, against its definition in filters, and what it is for."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from zoo.layers.alias_free import AliasFreeDown, AliasFreeSnake, AliasFreeUp, kaiser_sinc


def by_definition(layer: AliasFreeSnake, x: torch.Tensor) -> torch.Tensor:
    """Zeros between the samples, filter, activation, filter, every second sample."""
    channels, taps = x.shape[1], layer.filter.expand(x.shape[1], 1, -1)
    up = F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), taps, stride=2, groups=channels) * 2
    up = up[..., 15:-15]
    active = up + (up * layer.alpha.exp()[:, None]).sin() ** 2 / (layer.beta.exp()[:, None] + 1e-9)
    return F.conv1d(F.pad(active, (5, 6), mode="replicate"), taps, stride=2, groups=channels)


@given(length=st.integers(1, 30), seed=st.integers(0, 999))
def test_activation_is_its_definition(length: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = AliasFreeSnake(3)
    torch.nn.init.normal_(layer.alpha)
    torch.nn.init.normal_(layer.beta)
    x = torch.randn(2, 3, length)
    torch.testing.assert_close(layer(x), by_definition(layer, x), rtol=1e-4, atol=1e-5)


def test_filter_is_a_symmetric_low_pass() -> None:
    taps = kaiser_sinc(12, 0.25, 0.3)
    torch.testing.assert_close(taps.sum(), torch.tensor(1.0))
    torch.testing.assert_close(taps, taps.flip(0))
    response = torch.fft.rfft(taps, 64).abs()
    assert float(response[:8].min()) > 0.8
    assert float(response[-4:].max()) < 0.05


def test_harmonics_beyond_the_band_do_not_fold_back() -> None:
    time = torch.arange(1024)
    tone = (0.9 * torch.sin(2 * math.pi * 0.3125 * time))[None, None]  # its double lies beyond half the rate
    layer = AliasFreeSnake(1)
    window = torch.hann_window(1024)
    folded = round(1024 * (1 - 2 * 0.3125))
    with torch.no_grad():
        smooth, plain = (
            torch.fft.rfft(signal[0, 0] * window).abs()[folded] for signal in (layer(tone), tone + tone.sin().square())
        )
    assert float(smooth) < float(plain) / 4


def test_strides_divide_and_multiply_lengths() -> None:
    for stride in (2, 3, 4, 5):
        x = torch.randn(1, 4, 6 * stride)
        down = AliasFreeDown(4, stride, (1, 3))(x)
        assert down.shape == (1, 8, 6)
        assert AliasFreeUp(8, stride, (1,))(down).shape == x.shape
