"""Mel spectrograms and the losses of audio codecs on them, in the conventions of the published recipes.

Multi-resolution log-mel losses: HiFi-GAN (arXiv 2010.05646), DAC (arXiv 2306.06546).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.constants import HasConstants
from zoo.ops.precision import full_precision


@dataclass(frozen=True)
class MelConfig(Config):
    """One mel spectrogram.

    Attributes:
        sample_rate: in Hz.
        n_fft: length of a frame.
        hop_length: samples from frame to frame.
        n_mels: bands.
        low, high: in Hz, the ends of the lowest and the highest band; `high` None is half the sample rate.
        scale: "htk", 2595 log10(1 + f / 700), or "slaney", linear up to 1 kHz and logarithmic above.
        area_norm: bands of equal area (librosa's default) instead of equal height (torchaudio's).
        power: of the magnitudes, 1 or 2.
        padding: "center": frames are centred on multiples of the hop, the signal being reflected at both ends; "hop":
            the signal is reflected by (n_fft - hop_length) / 2 instead; "filled": as that, and zeros at the end so that
            every sample lies in a frame.
        window_length: of the Hann window, centred in the frame; None for one as long as the frame.
        window_norm: spectra are divided by the root of the sum of the squared window.
    """

    sample_rate: int = 24_000
    n_fft: int = 1024
    hop_length: int = 256
    n_mels: int = 100
    low: float = 0.0
    high: float | None = None
    scale: Literal["htk", "slaney"] = "htk"
    area_norm: bool = False
    power: Literal[1, 2] = 1
    padding: Literal["center", "hop", "filled"] = "center"
    window_length: int | None = None
    window_norm: bool = False

    def __post_init__(self) -> None:
        sizes = (self.sample_rate, self.n_fft, self.hop_length, self.n_mels)
        self.require(min(sizes) >= 1, "sizes >= 1", sizes)
        self.require(self.hop_length <= self.n_fft, f"a hop_length of at most {self.n_fft}", self.hop_length)
        window = self.n_fft if self.window_length is None else self.window_length
        self.require(1 <= window <= self.n_fft, f"a window_length from 1 to {self.n_fft}", self.window_length)
        self.require(0 <= self.low < self.top, f"a lowest frequency from 0 to below {self.top}", self.low)

    @property
    def top(self) -> float:
        """The end of the highest band, in Hz."""
        return self.sample_rate / 2 if self.high is None else self.high


class MelSpectrogram(HasConstants):
    """Signals (B, C, T) -> mel spectra (B, C, n_mels, frames), float32, not logarithmic."""

    window: Tensor
    bands: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_constant("window", torch.hann_window, config.window_length or config.n_fft)
        self.register_constant("bands", mel_bands, config)

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        with full_precision(x):
            signal = x.float().flatten(0, 1)
            if config.padding != "center":
                side = (config.n_fft - config.hop_length) // 2
                signal = F.pad(signal, (side, side), mode="reflect")
                if config.padding == "filled":
                    surplus = max(signal.shape[-1], config.n_fft) - config.n_fft
                    signal = F.pad(signal, (0, -surplus % config.hop_length))
            spectrum = torch.stft(
                signal, config.n_fft, config.hop_length, len(self.window), self.window.float(),
                center=config.padding == "center", pad_mode="reflect", return_complex=True,
            )  # fmt: skip
            if config.window_norm:
                spectrum = spectrum / self.window.float().square().sum().sqrt()
            magnitude = spectrum.abs() if config.power == 1 else torch.view_as_real(spectrum).square().sum(-1)
            return (self.bands.float() @ magnitude).unflatten(0, x.shape[:2])


def mel_bands(config: MelConfig) -> Tensor:
    """Triangular bands (n_mels, n_fft / 2 + 1), computed in float64."""
    ends = torch.tensor([config.low, config.top], dtype=torch.float64)
    low, high = (_to_mel(end, config.scale) for end in ends)
    edges = _to_hertz(low + (high - low) * torch.linspace(0, 1, config.n_mels + 2, dtype=torch.float64), config.scale)
    bins = torch.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bands = torch.minimum(rising, falling).clamp_min(0)
    if config.area_norm:
        bands = bands * (2 / (edges[2:] - edges[:-2]))[:, None]
    return bands.float()


_KNEE = 1000.0  # Hz, where Slaney's scale turns logarithmic, at mel 15
_MELS_A_HERTZ = 3 / 200
_LOG_STEP = math.log(6.4) / 27


def _to_mel(hertz: Tensor, scale: str) -> Tensor:
    if scale == "htk":
        return 2595 * torch.log10(1 + hertz / 700)
    above = _KNEE * _MELS_A_HERTZ + torch.log(hertz.clamp_min(_KNEE) / _KNEE) / _LOG_STEP
    return torch.where(hertz < _KNEE, hertz * _MELS_A_HERTZ, above)


def _to_hertz(mel: Tensor, scale: str) -> Tensor:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    knee = _KNEE * _MELS_A_HERTZ
    return torch.where(mel < knee, mel / _MELS_A_HERTZ, _KNEE * torch.exp(_LOG_STEP * (mel - knee).clamp_min(0)))


@dataclass(frozen=True)
class LogMelLossConfig(Config):
    """The mean absolute difference of logarithmic mel spectra, summed over resolutions.

    Attributes:
        resolutions: the spectrograms.
        weights: one per resolution; empty for 1 each.
        floor: what the mel spectra are clamped to from below.
        base: of the logarithm, "e" or "10".
    """

    kind = "log_mel"
    resolutions: tuple[MelConfig, ...] = (MelConfig(),)
    weights: tuple[float, ...] = ()
    floor: float = 1e-5
    base: Literal["e", "10"] = "e"

    def __post_init__(self) -> None:
        self.require(len(self.resolutions) >= 1, "at least one resolution", self.resolutions)
        fits = len(self.weights) in (0, len(self.resolutions))
        self.require(fits, f"{len(self.resolutions)} weights or none", self.weights)
        self.require(self.floor > 0, "a floor > 0", self.floor)


class LogMelLoss(nn.Module):
    """Two batches of signals (B, C, T) -> a scalar, float32. Of signals that differ in length, the frames of both."""

    def __init__(self, config: LogMelLossConfig) -> None:
        super().__init__()
        self.config = config
        self.spectrograms = nn.ModuleList(MelSpectrogram(resolution) for resolution in config.resolutions)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        weights = self.config.weights or (1.0,) * len(self.spectrograms)
        total = torch.zeros((), device=target.device)
        for weight, spectrogram in zip(weights, self.spectrograms):
            logs = [self._log(spectrogram(signal)) for signal in (reconstruction, target)]
            frames = min(spectrum.shape[-1] for spectrum in logs)
            total = total + weight * F.l1_loss(*(spectrum[..., :frames] for spectrum in logs))
        return total

    def _log(self, mel: Tensor) -> Tensor:
        clamped = mel.clamp_min(self.config.floor)
        return clamped.log() if self.config.base == "e" else clamped.log10()
