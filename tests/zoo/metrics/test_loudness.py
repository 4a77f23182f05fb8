"""Loudness by BS.1770: the reference tone, gating, shifts in level, and that channels add up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.metrics.loudness import LEAST, loudness, normalized


def tone(rate: int, seconds: float = 2.0, frequency: float = 997.0, peak: float = 1.0) -> torch.Tensor:
    t = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
    return (peak * torch.sin(2 * math.pi * frequency * t))[None, None].float()


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_the_reference_tone(rate: int) -> None:
    """A full-scale sine of 997 Hz in one channel has -3.01 LUFS, by the recommendation's own calibration."""
    assert loudness(tone(rate), rate).item() == pytest.approx(-3.01, abs=0.15)


def test_low_frequencies_count_less_and_high_ones_more() -> None:
    middle, low, high = (loudness(tone(48000, frequency=f), 48000).item() for f in (997, 30, 8000))
    assert low < middle - 3
    assert middle + 2 < high < middle + 4.5


@settings(max_examples=15, deadline=None)
@given(decibels=st.floats(-30, 0), seed=st.integers(0, 99))
def test_level_shifts_loudness_and_normalization_meets_its_target(decibels: float, seed: int) -> None:
    x = torch.rand(2, 1, 24000, generator=torch.Generator().manual_seed(seed)) - 0.5
    before = loudness(x, 16000)
    torch.testing.assert_close(loudness(x * 10 ** (decibels / 20), 16000), before + decibels, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        loudness(normalized(x, 16000, decibels), 16000),
        torch.full((2,), decibels, dtype=torch.float64),
        rtol=0,
        atol=1e-3,
    )


def test_channels_add_up() -> None:
    x = tone(16000)
    assert loudness(x.expand(1, 2, -1), 16000).item() == pytest.approx(loudness(x, 16000).item() + 10 * math.log10(2))


def test_pauses_do_not_count() -> None:
    x = tone(16000, 4.0)
    with_pause = torch.cat([x, torch.zeros(1, 1, 64000)], -1)
    assert loudness(with_pause, 16000).item() == pytest.approx(loudness(x, 16000).item(), abs=0.2)


def test_silence_and_short_signals() -> None:
    assert loudness(torch.zeros(1, 1, 16000), 16000).item() == LEAST
    assert torch.equal(normalized(torch.zeros(1, 1, 9), 16000, -16.0), torch.zeros(1, 1, 9))
    assert LEAST < loudness(tone(16000, 0.1), 16000).item() < -3


def test_long_signals_are_filtered_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 2, 30000, generator=torch.Generator().manual_seed(0)) - 0.5
    whole = loudness(x, 8000)
    monkeypatch.setattr("zoo.metrics.loudness._PIECE", 1000)
    torch.testing.assert_close(loudness(x, 8000), whole)
