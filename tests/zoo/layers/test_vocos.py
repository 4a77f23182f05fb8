"""The spectral head against its definition, ConvNeXt blocks, and convolutional blocks of one dimension."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from zoo.layers.attention import SpatialAttention
from zoo.layers.resnet import ResBlock
from zoo.layers.vocos import MAGNITUDE_LIMIT, AdaptiveLayerNorm, ConvNeXtBlock, SpectralHead, overlap_add


@given(
    frames=st.integers(1, 9), hop=st.sampled_from([2, 4, 8]), times=st.sampled_from([2, 3, 4]), seed=st.integers(0, 99)
)
def test_head_is_its_definition(frames: int, hop: int, times: int, seed: int) -> None:
    torch.manual_seed(seed)
    n_fft = hop * times
    head = SpectralHead(6, n_fft, hop)
    x = torch.randn(2, frames, 6)
    with torch.no_grad():
        log_magnitude, phase = head.out(x).chunk(2, dim=-1)
        signal = head(x)
    window = torch.hann_window(n_fft)
    total = torch.zeros(2, (frames - 1) * hop + n_fft)
    weight = torch.zeros(total.shape[1])
    for t in range(frames):
        spectrum = log_magnitude[:, t].exp() * torch.exp(1j * phase[:, t])
        total[:, t * hop : t * hop + n_fft] += torch.fft.irfft(spectrum, n_fft) * window
        weight[t * hop : t * hop + n_fft] += window**2
    cut = (n_fft - hop) // 2
    inside = slice(cut, cut + frames * hop)
    expected = (total / weight)[:, inside]
    assert signal.shape == (2, 1, frames * hop)
    torch.testing.assert_close(signal[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_overlapping_frames_of_a_signal_give_it_back() -> None:
    signal, window = torch.randn(1, 160), torch.hann_window(64)
    frames = F.pad(signal, (24, 24)).unfold(-1, 64, 16) * window
    torch.testing.assert_close(overlap_add(torch.fft.rfft(frames).transpose(1, 2), window, 16), signal)


def test_magnitudes_are_bounded() -> None:
    head = SpectralHead(2, 8, 4)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.fill_(50.0)
        assert float(head(torch.zeros(1, 5, 2)).abs().max()) <= MAGNITUDE_LIMIT * 8


def test_conditions_choose_scale_and_shift() -> None:
    torch.manual_seed(0)
    norm = AdaptiveLayerNorm(5, 3)
    torch.nn.init.normal_(norm.scale)
    torch.nn.init.normal_(norm.shift)
    x = torch.randn(2, 4, 5)
    for i in range(3):
        torch.testing.assert_close(norm(x, i), F.layer_norm(x, (5,), eps=1e-6) * norm.scale[i] + norm.shift[i])
    block = ConvNeXtBlock(5, 7, 3, 0.5)
    h = block.norm(block.depthwise(x.transpose(1, 2)).transpose(1, 2), 1)
    expected = x + 0.5 * block.fc2(F.gelu(block.fc1(h)))
    torch.testing.assert_close(block(x.transpose(1, 2), 1), expected.transpose(1, 2))


@pytest.mark.parametrize("block", ["residual", "attention"])
def test_blocks_of_one_dimension_are_those_of_a_picture_of_one_row(block: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6)
    if block == "attention":
        flat, square = SpatialAttention(8, 4, dims=1), SpatialAttention(8, 4)
    else:
        flat, square = ResBlock(8, 8, 4, dims=1), ResBlock(8, 8, 4)
    state = {}
    for key, value in flat.state_dict().items():
        wide = square.state_dict()[key]
        if value.ndim == 3:  # the kernel's middle row
            spread = torch.zeros_like(wide)
            spread[:, :, wide.shape[2] // 2] = value
            value = spread
        state[key] = value
    square.load_state_dict(state)
    torch.testing.assert_close(flat(x), square(x[:, :, None])[:, :, 0])
