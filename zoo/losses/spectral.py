"""Losses of audio codecs on spectra and waveforms: EnCodec's multi-scale mel loss, DAC's STFT distance, SI-SDR.

EnCodec, arXiv 2210.13438 (as trained by audiocraft); DAC, arXiv 2306.06546; SI-SDR, arXiv 1811.02508.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.constants import HasConstants, hann_taper
from zoo.losses.mel import MelConfig, MelSpectrogram

_FLOAT_STEP = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class MultiScaleMelLossConfig(Config):
    """Sizes and terms; the defaults are those of EnCodec's recipe.

    Attributes:
        sample_rate: in Hz.
        n_ffts: length of a frame at each scale; frames start every quarter of it.
        n_mels: bands at each scale.
        low, high: in Hz, the ends of the lowest and highest band; `high` None is half the sample rate.
        growing: the logarithmic term of a scale weighs sqrt(n_fft - 1) instead of 1.
        normalized: spectra are divided by the window's norm, and the sum by the weights of all terms.
        floor: added to the mel spectra under the logarithm.
    """

    kind = "multi_scale_mel"
    sample_rate: int = 24000
    n_ffts: tuple[int, ...] = (64, 128, 256, 512, 1024)
    n_mels: int = 64
    low: float = 64.0
    high: float | None = None
    growing: bool = False
    normalized: bool = True
    floor: float = 1e-5

    def __post_init__(self) -> None:
        self.require(min(self.n_ffts, default=0) >= 4, "at least one scale, of 4 samples or more", self.n_ffts)
        self.require(self.floor > 0, "a floor > 0", self.floor)

    @property
    def scales(self) -> tuple[MelConfig, ...]:
        return tuple(
            MelConfig(
                self.sample_rate, n_fft, n_fft // 4, self.n_mels, self.low, self.high, power=2, padding="filled",
                window_norm=self.normalized,
            )
            for n_fft in self.n_ffts
        )  # fmt: skip


class MultiScaleMelLoss(nn.Module):
    """Two batches of signals (B, C, T) -> a scalar: at each scale L1 of the mel spectra and L2 of their logarithms."""

    def __init__(self, config: MultiScaleMelLossConfig) -> None:
        super().__init__()
        self.config = config
        self.spectrograms = nn.ModuleList(MelSpectrogram(scale) for scale in config.scales)
        self.weights = [math.sqrt(n_fft - 1) if config.growing else 1.0 for n_fft in config.n_ffts]

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros((), device=target.device)
        for weight, spectrogram in zip(self.weights, self.spectrograms):
            one, other = spectrogram(reconstruction), spectrogram(target)
            logs = [(self.config.floor + mel).log10() for mel in (one, other)]
            total = total + F.l1_loss(one, other) + weight * F.mse_loss(*logs)
        return total / sum(weight + 1 for weight in self.weights) if self.config.normalized else total


class STFTDistance(HasConstants):
    """Two batches of signals (B, C, T) -> a scalar: the sum over windows of L1 of log magnitudes and of magnitudes.

    Args:
        windows: in samples; frames start every quarter of it.
        power: that magnitudes have under the logarithm.
        floor: that magnitudes are clamped to under the logarithm.
    """

    def __init__(self, windows: tuple[int, ...] = (2048, 512), power: float = 2.0, floor: float = 1e-5) -> None:
        super().__init__()
        self.windows, self.power, self.floor = windows, power, floor
        for window in windows:
            self.register_constant(f"taper_{window}", hann_taper, window)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros((), device=target.device)
        for window in self.windows:
            one, other = (self._magnitude(signal, window) for signal in (reconstruction, target))
            logs = [magnitude.clamp_min(self.floor).pow(self.power).log10() for magnitude in (one, other)]
            total = total + F.l1_loss(*logs) + F.l1_loss(one, other)
        return total

    def _magnitude(self, signal: Tensor, window: int) -> Tensor:
        taper = self.get_buffer(f"taper_{window}")
        return torch.stft(
            signal.float().flatten(0, 1), window, window // 4, window=taper, pad_mode="reflect", return_complex=True
        ).abs()


def si_sdr(reconstruction: Tensor, target: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Scale-invariant signal to distortion ratio of signals (..., T), zero-mean: (...) in dB.

    `epsilon` is added to every energy.
    """
    estimate, reference = (
        signal.float() - signal.float().mean(-1, keepdim=True) for signal in (reconstruction, target)
    )
    energy = reference.square().sum(-1, keepdim=True) + epsilon
    projection = (estimate * reference).sum(-1, keepdim=True) / energy * reference
    noise = (estimate - projection).square().sum(-1) + epsilon
    return 10 * ((projection.square().sum(-1) + epsilon) / noise).log10()


def framed_si_sdr(reconstruction: Tensor, target: Tensor, frame: int, stride: int) -> Tensor:
    """The mean of `si_sdr` over frames that start every `stride` samples, zeros after the end: a scalar in dB."""
    count = -(-target.shape[-1] // stride)
    surplus = max(0, (count - 1) * stride + frame - target.shape[-1])
    one, other = (
        F.pad(signal, (0, surplus)).unfold(-1, frame, stride)[..., :count, :] for signal in (reconstruction, target)
    )
    return si_sdr(one, other, epsilon=_FLOAT_STEP * frame).mean()
