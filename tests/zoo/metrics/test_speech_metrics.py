"""Metrics of speech that need a network: they run where their packages are, and say which are missing."""

import importlib.util

import pytest
import torch

from zoo.metrics import speech
from zoo.metrics.audio import Undefined
from zoo.metrics.perturbations import faster, higher, noisy, perturbation

RATE = 16_000


def tone(pitch: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * pitch * torch.arange(int(RATE * seconds)) / RATE)[None]


def pitch_of(signal: torch.Tensor) -> float:
    spectrum = torch.fft.rfft(signal[0] * torch.hann_window(signal.shape[-1])).abs()
    return float(spectrum.argmax()) * RATE / signal.shape[-1]


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")


def test_speaker_similarity_is_1_of_equal_clips_and_takes_short_ones() -> None:
    needs("resemblyzer")
    similarity = speech.SpeakerSimilarity()
    clip = noisy(tone(150.0, 2.0), 20)
    assert similarity(clip, clip, RATE) == pytest.approx(1, abs=1e-5)
    assert similarity(noisy(tone(2000.0, 2.0), 0), clip, RATE) < 0.95
    for samples in (100, 399, 5000, 25_600, 25_601):  # a window has 25,600
        assert similarity(clip[:, :samples], clip[:, :samples], RATE) == pytest.approx(1, abs=1e-5)
    long = similarity.network(clip[0])
    assert long.shape == (256,)
    assert float(long.norm()) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_dnsmos_hears_noise() -> None:
    needs("speechmos", "librosa", "onnxruntime")
    background = speech.DNSMOS("bak")
    clip = tone(150.0, 2.0)
    assert background(noisy(clip, 40), clip, RATE) > background(noisy(clip, 0), clip, RATE)
    with pytest.raises(Undefined, match="silence"):
        background(torch.zeros(1, RATE), clip, RATE)


@pytest.mark.slow
def test_a_clip_without_words_has_no_word_error_rate() -> None:
    needs("faster_whisper", *speech.WordErrorRate.parts)
    rate = speech.WordErrorRate()
    with pytest.raises(Undefined, match="expected words in the original"):
        rate(torch.zeros(1, RATE), torch.zeros(1, RATE), RATE)


def test_word_error_rates_count_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """On given transcripts, so that no recogniser is needed."""
    rate = object.__new__(speech.WordErrorRate)
    heard = {1: ["a", "dog", "barks"], 2: ["the", "dog"]}
    monkeypatch.setattr(rate, "words", lambda signal, sample_rate: heard[signal.shape[-1]], raising=False)
    assert rate(torch.zeros(1, 1), torch.zeros(1, 2), RATE) == 1.0
    assert rate(torch.zeros(1, 2), torch.zeros(1, 1), RATE) == pytest.approx(2 / 3)
    assert rate(torch.zeros(1, 1), torch.zeros(1, 1), RATE) == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for metric, package in [(speech.SpeakerSimilarity, "resemblyzer"), (speech.WordErrorRate, "faster-whisper")]:
        with pytest.raises(ImportError, match=f"expected the package {package}"):
            metric()


# -- perturbations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decibels", [20.0, 10.0, 0.0])
def test_noise_has_its_ratio_and_is_the_same_for_a_seed(decibels: float) -> None:
    clip = 0.2 * tone(300.0)
    changed = noisy(clip, decibels, seed=4)
    ratio = 10 * torch.log10(clip.square().mean() / (changed - clip).square().mean())
    assert float(ratio) == pytest.approx(decibels, abs=0.01)
    assert torch.equal(changed, noisy(clip, decibels, seed=4))
    assert not torch.equal(changed, noisy(clip, decibels, seed=5))


def test_speed_changes_length_and_pitch() -> None:
    changed = faster(tone(400.0), RATE, 1.25)
    assert changed.shape[-1] == pytest.approx(RATE / 1.25, abs=2)
    assert pitch_of(changed) == pytest.approx(500, rel=0.01)


def test_pitch_keeps_the_length() -> None:
    needs("librosa")
    changed = higher(tone(400.0), RATE, 12)
    assert changed.shape[-1] == RATE
    assert pitch_of(changed) == pytest.approx(800, rel=0.02)


def test_names_of_perturbations() -> None:
    clip = tone(300.0)
    assert torch.equal(perturbation("noise_10", 3)(clip, RATE), noisy(clip, 10, 3))
    assert torch.equal(perturbation("speed_0.9")(clip, RATE), faster(clip, RATE, 0.9))
    for name in ("noise", "reverb_3", "speed_0", "noise_loud"):
        with pytest.raises(ValueError, match="expected a perturbation such as"):
            perturbation(name)
