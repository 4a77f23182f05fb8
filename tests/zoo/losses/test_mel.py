"""Mel spectrograms and their losses, against the definitions and the feature extractors of transformers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.losses.mel import LogMelLoss, LogMelLossConfig, MelConfig, MelSpectrogram, mel_bands


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("area_norm", [False, True])
def test_bands_are_those_of_transformers(scale: str, area_norm: bool) -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    for n_fft, n_mels, low, high in ((512, 40, 0.0, None), (1024, 80, 50.0, 7000.0)):
        config = MelConfig(16_000, n_fft, n_fft // 4, n_mels, low, high, scale, area_norm)
        expected = audio_utils.mel_filter_bank(
            n_fft // 2 + 1, n_mels, low, high or 8000.0, 16_000, "slaney" if area_norm else None, scale
        )
        torch.testing.assert_close(mel_bands(config), torch.tensor(expected.T).float(), rtol=1e-4, atol=1e-6)


@given(
    samples=st.integers(200, 700),
    channels=st.integers(1, 2),
    power=st.sampled_from([1, 2]),
    norm=st.booleans(),
    length=st.sampled_from([None, 64, 47, 20]),
)
def test_spectrogram_is_its_definition(samples: int, channels: int, power: int, norm: bool, length: int | None) -> None:
    config = MelConfig(8000, 64, 16, 5, power=power, padding="hop", window_length=length, window_norm=norm)
    window, before = torch.zeros(64), (64 - (length or 64)) // 2
    window[before : before + (length or 64)] = torch.hann_window(length or 64)
    x = torch.randn(2, channels, samples, generator=torch.Generator().manual_seed(samples))
    padded = torch.nn.functional.pad(x, (24, 24), mode="reflect")
    frames = padded.unfold(-1, 64, 16) * window
    spectrum = torch.fft.rfft(frames).abs()
    if norm:
        spectrum = spectrum / window.square().sum().sqrt()
    expected = (spectrum**power @ mel_bands(config).T).transpose(-1, -2)
    torch.testing.assert_close(MelSpectrogram(config)(x), expected, rtol=1e-4, atol=1e-4)


@given(samples=st.integers(64, 300))
def test_padding_gives_the_frames_it_says(samples: int) -> None:
    x = torch.zeros(1, 1, samples)
    frames = {
        padding: MelSpectrogram(MelConfig(8000, 64, 16, 5, padding=padding))(x).shape[-1]
        for padding in ("center", "hop", "filled")
    }
    assert frames == {"center": samples // 16 + 1, "hop": samples // 16, "filled": -(-samples // 16)}


def test_a_tone_lies_in_its_band() -> None:
    config = MelConfig(16_000, 1024, 256, 40)
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)[None, None]
    loudest = int(MelSpectrogram(config)(tone).mean(-1).argmax())
    frequencies = torch.linspace(0, 8000, 513)
    assert abs(float(frequencies[mel_bands(config)[loudest].argmax()]) - 1000) < 100


def test_loss_is_the_sum_over_resolutions_of_the_difference_of_logs() -> None:
    resolutions = (MelConfig(8000, 64, 16, 5), MelConfig(8000, 128, 32, 9))
    a, b = torch.randn(2, 2, 1, 400, generator=torch.Generator().manual_seed(0))
    for base, log in (("e", torch.log), ("10", torch.log10)):
        loss = LogMelLoss(LogMelLossConfig(resolutions, (2.0, 0.5), floor=1e-3, base=base))
        parts = [
            (log(MelSpectrogram(r)(a).clamp(min=1e-3)) - log(MelSpectrogram(r)(b).clamp(min=1e-3))).abs().mean()
            for r in resolutions
        ]
        torch.testing.assert_close(loss(a, b), 2 * parts[0] + 0.5 * parts[1])
        assert float(loss(a, a)) == 0
    longer = torch.cat([b, torch.randn(2, 1, 90)], dim=-1)
    assert bool(loss(a, longer).isfinite())


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="hop_length of at most 64"):
        MelConfig(8000, 64, 65)
    with pytest.raises(ConfigError, match="from 0 to below 4000"):
        MelConfig(8000, 64, 16, low=4000.0)
    with pytest.raises(ConfigError, match="a window_length from 1 to 64"):
        MelConfig(8000, 64, 16, window_length=65)
    with pytest.raises(ConfigError, match="2 weights or none"):
        LogMelLossConfig((MelConfig(), MelConfig()), (1.0,))
