"""Metrics of reconstructed recordings: SI-SDR, mel and STFT distance, loudness, PESQ and STOI.

SI-SDR: arXiv 1811.02508. Mel and STFT distance: DAC's, arXiv 2306.06546. PESQ (ITU-T P.862.2) and STOI (Taal et al.
2011) are measured by the packages `pesq` and `pystoi`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Concatenate, ParamSpec, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.losses.mel import LogMelLoss, LogMelLossConfig, MelConfig
from zoo.losses.spectral import STFTDistance
from zoo.metrics import Metric
from zoo.metrics.loudness import loudness

MOST_SHIFT = 64  # samples
SPEECH_RATE = 16_000  # Hz, of PESQ and STOI
_MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
_MEL_BANDS = (5, 10, 20, 40, 80, 160, 320)
_LONGEST_WINDOW = 2048


class Undefined(ValueError):
    """A recording on which a metric is not defined: silence, or too short."""


AudioMetric: TypeAlias = Callable[[Tensor, Tensor, int], float]
"""Reconstruction (C, T), original (C, T) and the sample rate in Hz -> a number; raises `Undefined`, or a ValueError
unless they are floating point signals of one shape."""
_Options = ParamSpec("_Options")


def _of_pairs(
    measure: Callable[Concatenate[Tensor, Tensor, int, _Options], float],
) -> Callable[Concatenate[Tensor, Tensor, int, _Options], float]:
    """The measure for two signals that belong together; broadcasting would measure others without a word."""

    @wraps(measure)
    def checked(
        reconstruction: Tensor, original: Tensor, sample_rate: int, *args: _Options.args, **options: _Options.kwargs
    ) -> float:
        for signal in (reconstruction, original):
            if not isinstance(signal, Tensor) or not signal.is_floating_point():
                got = signal.dtype if isinstance(signal, Tensor) else type(signal).__name__
                raise ValueError(f"expected two floating point signals (C, T), got {got}")
        if original.ndim != 2 or original.shape != reconstruction.shape or 0 in original.shape:
            shapes = f"{tuple(reconstruction.shape)} and {tuple(original.shape)}"
            raise ValueError(f"expected two signals of one shape (C, T), got {shapes}")
        if sample_rate < 1:
            raise ValueError(f"expected a sample rate in Hz, got {sample_rate}")
        return measure(reconstruction, original, sample_rate, *args, **options)

    return checked


def aligned(reconstruction: Tensor, original: Tensor, most: int = MOST_SHIFT) -> tuple[Tensor, Tensor, int]:
    """Both (C, T) shifted against each other so that they correlate best, and cut to what they have in common.

    Returns:
        Reconstruction, original, and by how many samples the reconstruction came late (early if negative).
    """
    most = min(most, original.shape[-1] - 1)
    one, other = (signal.double().mean(0) for signal in (reconstruction, original))
    size = 1 << (one.shape[-1] + most).bit_length()
    spectrum = torch.fft.rfft(one, size) * torch.fft.rfft(other, size).conj()
    products = torch.fft.irfft(spectrum, size)
    shifts = sorted(range(-most, most + 1), key=abs)  # of equals the smallest
    shift = max(shifts, key=lambda shift: float(products[shift]))
    length = original.shape[-1] - abs(shift)
    start, other_start = max(0, shift), max(0, -shift)
    return reconstruction[:, start : start + length], original[:, other_start : other_start + length], shift


@_of_pairs
def si_sdr(reconstruction: Tensor, original: Tensor, sample_rate: int, zero_mean: bool = True) -> float:
    """Scale-invariant signal to distortion ratio in dB, mean over channels."""
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    _require_sound(original)
    return scale_invariant_signal_distortion_ratio(reconstruction.double(), original.double(), zero_mean).mean().item()


@_of_pairs
def snr(reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
    """Signal to noise ratio in dB, mean over channels."""
    from torchmetrics.functional.audio import signal_noise_ratio

    _require_sound(original)
    return signal_noise_ratio(reconstruction.double(), original.double()).mean().item()


@_of_pairs
def mel_distance(reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
    """DAC's mel distance as in its validation: L1 of log10 mel spectra, summed over seven resolutions."""
    _require_length(original)
    return _mel_loss(sample_rate, _MEL_WINDOWS, _MEL_BANDS)(reconstruction[None], original[None]).item()


@_of_pairs
def mel_distance_default(reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
    """The other number of that name, of the defaults of DAC's class: two resolutions, and L1 of the spectra as well."""
    _require_length(original)
    loss = _mel_loss(sample_rate, (2048, 512), (150, 80))
    pair = reconstruction[None], original[None]
    plain = [F.l1_loss(*(spectrogram(signal) for signal in pair)) for spectrogram in loss.spectrograms]
    return (2 * loss(*pair) + torch.stack(plain).sum()).item()  # 2: of squares under the logarithm


@_of_pairs
def stft_distance(reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
    """DAC's STFT distance: L1 of magnitudes and of log10 of their squares, windows of 2048 and 512 samples."""
    _require_length(original)
    return STFTDistance()(reconstruction[None], original[None]).item()


@_of_pairs
def waveform_distance(reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of the samples."""
    return F.l1_loss(reconstruction, original).item()


@_of_pairs
def loudness_difference(reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
    """How much louder or softer the reconstruction is, in LU."""
    return (loudness(reconstruction[None], sample_rate) - loudness(original[None], sample_rate)).abs().item()


@_of_pairs
def pesq(reconstruction: Tensor, original: Tensor, sample_rate: int, mode: str = "wb") -> float:
    """Perceptual evaluation of speech quality, a mean opinion score; `mode`: "wb", or "nb", which takes 8 kHz too."""
    from pesq import PesqError
    from pesq import pesq as measure

    _require_sound(original)
    _require_sound(reconstruction)
    rate = sample_rate if (mode, sample_rate) == ("nb", 8000) else SPEECH_RATE
    one, other = (speech(signal, sample_rate, rate) for signal in (original, reconstruction))
    try:
        return float(measure(rate, one, other, mode))
    except PesqError as error:
        raise Undefined(f"PESQ finds no speech: {error}") from error


@_of_pairs
def stoi(reconstruction: Tensor, original: Tensor, sample_rate: int, extended: bool = False) -> float:
    """Short-time objective intelligibility; `extended`: ESTOI."""
    import warnings

    from pystoi import stoi as measure

    _require_sound(original)
    one, other = (speech(signal, sample_rate, sample_rate) for signal in (original, reconstruction))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        value = float(measure(one, other, sample_rate, extended=extended))
    if any("Not enough STFT frames" in str(warning.message) for warning in told):
        raise Undefined(f"expected more speech than {len(one) / sample_rate:.2f} s for STOI")
    return value


def speech(signal: Tensor, sample_rate: int, rate: int = SPEECH_RATE) -> np.ndarray:
    """(C, T) -> float32 (T,), mono, at another sample rate."""
    import soxr

    mono = signal.detach().float().cpu().mean(0).numpy()
    return mono if sample_rate == rate else soxr.resample(mono, sample_rate, rate, "VHQ")


@lru_cache(maxsize=8)
def _mel_loss(sample_rate: int, windows: tuple[int, ...], bands: tuple[int, ...]) -> LogMelLoss:
    resolutions = tuple(
        MelConfig(sample_rate, window, window // 4, count, scale="slaney", area_norm=True)
        for window, count in zip(windows, bands)
    )
    return LogMelLoss(LogMelLossConfig(resolutions, base="10"))


def _require_sound(signal: Tensor) -> None:
    if not bool(signal.any()):
        raise Undefined("expected sound, got silence")


def _require_length(original: Tensor) -> None:
    least = _LONGEST_WINDOW // 2 + 1  # what is reflected at either end
    if original.shape[-1] < least:
        raise Undefined(f"expected at least {least} samples, got {original.shape[-1]}")


_RATE = "at the model's sample rate"
AUDIO_METRICS: dict[str, tuple[Metric, AudioMetric]] = {
    "si_sdr": (Metric("si_sdr", "dB", "higher", f"SI-SDR, means removed, {_RATE}; mean over channels"), si_sdr),
    "snr": (Metric("snr", "dB", "higher", f"signal to noise ratio {_RATE}; mean over channels"), snr),
    "mel_distance": (
        Metric(
            "mel_distance", "", "lower",
            f"DAC's: L1 of log10 mel spectra above 1e-5, windows 32 to 2048, 5 to 320 bands, summed, {_RATE}",
        ),
        mel_distance,
    ),
    "stft_distance": (
        Metric("stft_distance", "", "lower", f"DAC's: windows 2048 and 512, log10 of squares and magnitudes, {_RATE}"),
        stft_distance,
    ),
    "waveform_distance": (
        Metric("waveform_distance", "", "lower", f"mean absolute difference {_RATE}"),
        waveform_distance,
    ),
    "loudness_difference": (
        Metric("loudness_difference", "LU", "lower", "difference of the BS.1770 loudness, without sign"),
        loudness_difference,
    ),
    "pesq": (Metric("pesq", "", "higher", "P.862.2 wideband, package pesq, mono at 16 kHz by soxr"), pesq),
    "pesq_nb": (
        Metric("pesq_nb", "", "higher", "P.862.1 narrowband, package pesq, mono at 16 kHz by soxr"),
        lambda one, other, rate: pesq(one, other, rate, "nb"),
    ),
    "stoi": (Metric("stoi", "", "higher", f"package pystoi, mono {_RATE}"), stoi),
    "estoi": (
        Metric("estoi", "", "higher", f"extended STOI, package pystoi, mono {_RATE}"),
        lambda one, other, rate: stoi(one, other, rate, extended=True),
    ),
}  # fmt: skip
