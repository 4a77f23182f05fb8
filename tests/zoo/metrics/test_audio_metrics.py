"""Metrics of recordings: exact cases, order of quality, alignment, what is not defined, and the evaluation of a set."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.metrics.audio import AUDIO_METRICS, Undefined, aligned, si_sdr, snr
from zoo.metrics.audio_evaluation import AudioEvaluation

RATE = 16_000
NAMES = sorted(AUDIO_METRICS)


def speechlike(samples: int = RATE * 2, seed: int = 0) -> torch.Tensor:
    """Harmonics under a syllable-like envelope, (1, T)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / RATE
    pitch = 120 + 20 * torch.sin(2 * math.pi * 0.7 * time)
    phase = 2 * math.pi * torch.cumsum(pitch, 0) / RATE
    voice = sum(torch.sin(k * phase) / k for k in range(1, 20))
    envelope = (0.5 + 0.5 * torch.sin(2 * math.pi * 3 * time)) ** 2
    signal = voice * envelope + 0.01 * torch.randn(samples, generator=generator)
    return (0.4 * signal / signal.abs().max())[None]


def noisy(signal: torch.Tensor, strength: float) -> torch.Tensor:
    return signal + strength * torch.randn(signal.shape, generator=torch.Generator().manual_seed(1))


def measured(name: str, reconstruction: torch.Tensor, original: torch.Tensor) -> float:
    if name.startswith("pesq"):
        pytest.importorskip("pesq")
    if name.endswith("stoi"):
        pytest.importorskip("pystoi")
    return AUDIO_METRICS[name][1](reconstruction, original, RATE)


@pytest.mark.parametrize("name", NAMES)
def test_a_better_reconstruction_has_a_better_number(name: str) -> None:
    original = speechlike()
    if name == "loudness_difference":
        values = [measured(name, original * gain, original) for gain in (0.99, 0.9, 0.5)]
        assert values[2] == pytest.approx(-20 * math.log10(0.5), abs=1e-3)
    else:
        values = [measured(name, noisy(original, strength), original) for strength in (0.001, 0.02, 0.2)]
    better = AUDIO_METRICS[name][0].better
    assert values == sorted(values, reverse=better == "higher")
    assert len(set(values)) == 3


def test_ratios_are_those_of_their_definition() -> None:
    original = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    noise = torch.tensor([[0.1, 0.1, -0.1, -0.1]])  # orthogonal to it and without a mean
    assert snr(original + noise, original, RATE) == pytest.approx(20, abs=1e-4)
    assert si_sdr(0.3 * (original + noise) + 0.05, original, RATE) == pytest.approx(20, abs=1e-4)
    assert si_sdr(original + 1, original, RATE, zero_mean=False) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if AUDIO_METRICS[name][0].better == "lower"])
def test_equal_signals_have_no_distance(name: str) -> None:
    original = speechlike()
    assert measured(name, original, original) == 0


@given(shift=st.integers(-64, 64), seed=st.integers(0, 5))
def test_alignment_finds_the_shift(shift: int, seed: int) -> None:
    source = torch.randn(1, 700, generator=torch.Generator().manual_seed(seed))
    original, late = source[:, 64:-64], source[:, 64 - shift : 700 - 64 - shift]
    one, other, found = aligned(late, original)
    assert found == shift
    assert torch.equal(one, other)
    assert one.shape[-1] == original.shape[-1] - abs(shift)


def test_alignment_leaves_silence_and_short_clips_in_place() -> None:
    for signal in (torch.zeros(1, 500), torch.ones(1, 1)):
        one, other, shift = aligned(signal, signal)
        assert shift == 0
        assert torch.equal(one, signal)
        assert torch.equal(other, signal)


@pytest.mark.parametrize("name", ["si_sdr", "snr", "pesq", "pesq_nb", "stoi", "estoi"])
def test_silence_is_undefined(name: str) -> None:
    with pytest.raises(Undefined, match="silence"):
        measured(name, torch.rand(1, RATE), torch.zeros(1, RATE))


@pytest.mark.parametrize("name", ["pesq", "pesq_nb"])
def test_a_reconstruction_of_silence_has_no_opinion_score(name: str) -> None:
    with pytest.raises(Undefined, match="silence"):
        measured(name, torch.zeros(1, RATE), speechlike(RATE))


@pytest.mark.parametrize("name", ["mel_distance", "stft_distance", "stoi"])
def test_too_short_a_clip_is_undefined(name: str) -> None:
    with pytest.raises(Undefined, match="expected"):
        measured(name, speechlike(1000), speechlike(1000))


@pytest.mark.parametrize("name", NAMES)
def test_signals_that_do_not_belong_together_are_refused(name: str) -> None:
    clip = speechlike()
    for other in (clip[:, :-5], clip.repeat(2, 1), clip[0]):
        for pair in ((clip, other), (other, clip)):
            with pytest.raises(ValueError, match=r"expected two signals of one shape \(C, T\), got \("):
                measured(name, *pair)
    with pytest.raises(ValueError, match=r"one shape \(C, T\), got \(1, 0\) and \(1, 0\)"):
        measured(name, clip[:, :0], clip[:, :0])
    for other, got in (((clip * 32767).short(), r"torch\.int16"), (clip.numpy(), "ndarray")):
        with pytest.raises(ValueError, match=f"expected two floating point signals .*, got {got}"):
            measured(name, clip, other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a sample rate in Hz, got 0"):
        AUDIO_METRICS[name][1](clip, clip, 0)


def test_stereo_is_measured_channel_by_channel() -> None:
    left, right = speechlike(seed=0), speechlike(seed=1)
    original = torch.cat([left, right])
    decoded = torch.cat([noisy(left, 0.01), noisy(right, 0.1)])
    each = [si_sdr(decoded[i : i + 1], original[i : i + 1], RATE) for i in range(2)]
    assert si_sdr(decoded, original, RATE) == pytest.approx(sum(each) / 2, abs=1e-4)


# -- the evaluation of a set ---------------------------------------------------------------------------------------


def test_an_evaluation_is_the_mean_over_its_recordings() -> None:
    evaluation = AudioEvaluation(["si_sdr", "bitrate", "codebook", "mel_distance"], (4, 8), RATE)
    originals = [speechlike(RATE * 2), speechlike(RATE * 3, seed=1), torch.zeros(1, RATE)]
    decoded = [noisy(signal, 0.05) for signal in originals]
    levels = [[torch.tensor([[0, 1, 1]]), torch.tensor([[7, 7, 7]])] for _ in originals]
    for i, (original, one) in enumerate(zip(originals, decoded)):
        evaluation.update(f"{i}.wav", original, one, levels[i], bits=100 * (i + 1))
    found = {one.name: one for one in evaluation.compute()}
    values = [si_sdr(one, original, RATE) for one, original in zip(decoded[:2], originals)]
    assert found["si_sdr"].value == pytest.approx(sum(values) / 2, abs=1e-3)
    assert found["si_sdr"].count == 2
    assert "1 recordings left out" in found["si_sdr"].metric.protocol
    assert found["mel_distance"].count == 3
    assert found["bitrate"].value == 600 / 6
    assert found["usage_0"].value == 0.5
    assert found["usage_1"].value == 1 / 8
    assert list(found)[:3] == ["si_sdr", "bitrate", "usage_0"]
    rows = evaluation.recordings
    assert [row.name for row in rows] == ["0.wav", "1.wav", "2.wav"]
    assert rows[0].values["si_sdr"] == pytest.approx(values[0], abs=1e-3)
    assert "silence" in rows[2].undefined["si_sdr"]


def test_a_late_reconstruction_is_aligned_and_the_shift_told() -> None:
    evaluation = AudioEvaluation(["snr"], (4,), RATE)
    original = speechlike()
    late = torch.cat([torch.zeros(1, 8), original[:, :-8]], dim=1)
    row = evaluation.update("late.wav", original, late, [torch.zeros(1, 3, dtype=torch.int64)], bits=6)
    assert row.shift == 8
    assert row.values["snr"] > 100


def test_unknown_metrics_and_unequal_signals_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected some of .*got sisdr"):
        AudioEvaluation(["sisdr"], (4,), RATE)
    with pytest.raises(ValueError, match="expected at least one recording"):
        AudioEvaluation(["snr"], (4,), RATE).compute()
    with pytest.raises(ValueError, match=r"expected two signals \(C, T\), got \(1, 5\) and \(1, 4\)"):
        AudioEvaluation(["snr"], (4,), RATE).update("a", torch.zeros(1, 5), torch.zeros(1, 4), [], 0)
