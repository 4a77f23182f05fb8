"""Losses on spectra at several resolutions: spectral convergence with log magnitudes, and compressed spectra.

Parallel WaveGAN, arXiv 1910.11480 (multi-resolution STFT loss); Multi-band MelGAN, arXiv 2005.05106 (the same of
sub-bands); A Kaiser window approach for the design of prototype filters of cosine modulated filterbanks, Lin and
Vaidyanathan 1998 (their filters); Looking to Listen, arXiv 1804.03619 (compressed spectra).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.constants import HasConstants

_TAPS, _BETA = 62, 9.0  # of the filters of sub-bands


@dataclass(frozen=True)
class MultiResolutionSTFTConfig(Config):
    """The defaults are those of Parallel WaveGAN.

    Attributes:
        n_ffts, hop_lengths, window_lengths: of each transform, in samples of a band.
        bands: that the signal is split into first, each at its share of the sample rate.
        weight: of this loss in the sum.
    """

    n_ffts: tuple[int, ...] = (1024, 2048, 512)
    hop_lengths: tuple[int, ...] = (120, 240, 50)
    window_lengths: tuple[int, ...] = (600, 1200, 240)
    bands: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        sizes = (self.n_ffts, self.hop_lengths, self.window_lengths)
        self.require(len({len(size) for size in sizes}) == 1 and len(self.n_ffts) >= 1, "as many sizes each", sizes)
        fits = all(1 <= hop <= window <= n_fft for n_fft, hop, window in zip(*sizes))
        self.require(fits, "hop lengths of at most the windows', and these of at most n_fft", sizes)
        self.require(self.bands >= 1 and self.weight >= 0, "bands >= 1 and a weight >= 0", (self.bands, self.weight))


class MultiResolutionSTFT(HasConstants):
    """Two batches of signals (B, C, T) -> a scalar, the mean over transforms.

    Of each transform: the norm of the difference of magnitudes over the norm of the target's (spectral convergence,
    over the whole batch), and the mean absolute difference of their logarithms.
    """

    def __init__(self, config: MultiResolutionSTFTConfig) -> None:
        super().__init__()
        self.config = config
        self.split = Bands(config.bands) if config.bands > 1 else nn.Identity()
        for i, window in enumerate(config.window_lengths):
            self.register_constant(f"window_{i}", torch.hann_window, window)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        one, other = (self.split(x.float().flatten(0, 1)[:, None]).flatten(0, 1) for x in (reconstruction, target))
        total = torch.zeros((), device=target.device)
        for i in range(len(self.config.n_ffts)):
            made, wanted = self._magnitude(one, i), self._magnitude(other, i)
            total = total + (wanted - made).norm() / wanted.norm() + F.l1_loss(made.log(), wanted.log())
        return total / len(self.config.n_ffts)

    def _magnitude(self, x: Tensor, i: int) -> Tensor:
        n_fft, hop = self.config.n_ffts[i], self.config.hop_lengths[i]
        window = self.get_buffer(f"window_{i}").float()
        spectrum = torch.stft(x, n_fft, hop, len(window), window, pad_mode="reflect", return_complex=True)
        return torch.view_as_real(spectrum).square().sum(-1).clamp_min(1e-7).sqrt()


class Bands(HasConstants):
    """Signals (B, 1, T) -> `count` bands of equal width (B, count, ceil(T / count)), cosine-modulated filters.

    The prototype is a Kaiser-windowed sinc whose cutoff makes synthesis with the mirrored filters nearly perfect.
    """

    filters: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_constant("filters", _filters, count)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.filters.to(x.dtype), stride=self.count, padding=_TAPS // 2)


def _prototype(cutoff: float) -> np.ndarray:
    """A low-pass filter; `cutoff` as a share of half the sample rate."""
    time = np.arange(_TAPS + 1) - _TAPS / 2
    return cutoff * np.sinc(cutoff * time) * np.kaiser(_TAPS + 1, _BETA)


def _cutoff(count: int) -> float:
    """The cutoff at which the prototype is nearest to a 2 x `count`-th band filter, by two grids one in the other."""
    low, high = 0.2 / count, 1.5 / count
    for _ in range(4):
        grid = np.linspace(low, high, 101)
        best = grid[np.argmin([_imperfection(_prototype(cutoff), count) for cutoff in grid])]
        step = grid[1] - grid[0]
        low, high = best - step, best + step
    return float(best)


def _imperfection(prototype: np.ndarray, count: int) -> float:
    autocorrelation = np.convolve(prototype, prototype[::-1])[_TAPS :: 2 * count]
    return float(np.abs(autocorrelation[1:]).max(initial=0) + abs(autocorrelation[0] - 1 / (2 * count)))


class CompressedSpectrumLoss(HasConstants):
    """Two batches of signals (B, C, T) -> a scalar: mean squared difference of magnitudes to the power of 0.3.

    Plus 0.3 times that of the spectra themselves with magnitudes so compressed, which looks at phases. Frames of 25 ms
    start every quarter of it.

    Args:
        sample_rate: of the signals, in Hz.
    """

    window: Tensor

    def __init__(self, sample_rate: int, power: float = 0.3, complex_weight: float = 0.3) -> None:
        super().__init__()
        length = round(0.025 * sample_rate)
        self.n_fft, self.hop_length = 1 << (length - 1).bit_length(), length // 4
        self.power, self.complex_weight = power, complex_weight
        self.register_constant("window", torch.hann_window, length)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        (one, size), (other, wanted) = self._compressed(reconstruction), self._compressed(target)
        phases = (one - other).square().sum(-1).mean() / 2
        return (size - wanted).square().mean() + self.complex_weight * phases

    def _compressed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.stft(
            x.float().flatten(0, 1), self.n_fft, self.hop_length, len(self.window), self.window.float(),
            return_complex=True,
        )  # fmt: skip
        parts = torch.view_as_real(spectrum)
        energy = parts.square().sum(-1) + 1e-7
        return parts * energy.pow((self.power - 1) / 2)[..., None], energy.pow(self.power / 2)


def _filters(count: int) -> Tensor:
    """(count, 1, taps)."""
    time = np.arange(_TAPS + 1) - _TAPS / 2
    k = np.arange(count)[:, None]
    phase = (2 * k + 1) * math.pi / (2 * count) * time + (-1.0) ** k * math.pi / 4
    return torch.from_numpy(2 * _prototype(_cutoff(count)) * np.cos(phase)).float()[:, None]
