"""Decoders of audio codecs that end in an inverse short-time Fourier transform: ConvNeXt blocks and the spectral head.

Vocos, arXiv 2306.00814; ConvNeXt, arXiv 2201.03545.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.constants import HasConstants
from zoo.ops.precision import full_precision

MAGNITUDE_LIMIT = 100.0  # of one bin of the spectrum, against runaway exponentials early in training


class AdaptiveLayerNorm(nn.Module):
    """Layer norm (eps 1e-6) whose scale and shift are those of one of several conditions: (..., C) -> the same."""

    def __init__(self, width: int, conditions: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(conditions, width))
        self.shift = nn.Parameter(torch.zeros(conditions, width))

    def forward(self, x: Tensor, condition: int) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.scale[condition], self.shift[condition], eps=1e-6)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution of 7, adaptive layer norm, MLP, layer scale, plus the input: (B, C, T) -> the same.

    `scale`: start of the layer scale.
    """

    def __init__(self, width: int, hidden: int, conditions: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = AdaptiveLayerNorm(width, conditions)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, condition: int) -> Tensor:
        h = self.norm(self.depthwise(x).transpose(1, 2), condition)
        h = self.scale * self.fc2(F.gelu(self.fc1(h)))
        return x + h.transpose(1, 2)


class SpectralHead(HasConstants):
    """Features (B, T, C) -> waveform (B, 1, T x hop_length), through log magnitude and phase of each frame's spectrum.

    Args:
        width: C.
        n_fft: length of a frame, and of its Hann window; longer than the hop.
        hop_length: samples from frame to frame; half of n_fft - hop_length is cut at both ends (of an odd difference
            one sample more is left).
    """

    window: Tensor

    def __init__(self, width: int, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.out = nn.Linear(width, n_fft + 2)
        self.register_constant("window", torch.hann_window, n_fft)

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.out(x).transpose(1, 2)
        with full_precision(x):  # the transform has no half precision
            log_magnitude, phase = predicted.float().chunk(2, dim=1)
            magnitude = log_magnitude.exp().clamp(max=MAGNITUDE_LIMIT)
            spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
            return overlap_add(spectrum, self.window.float(), self.hop_length)[:, None].to(x.dtype)


def overlap_add(spectrum: Tensor, window: Tensor, hop_length: int) -> Tensor:
    """The signal of frames' spectra: windowed frames over the sum of the squared windows.

    Args:
        spectrum: (B, n_fft / 2 + 1, T), complex.
        window: (n_fft,).
        hop_length: samples from frame to frame; half of n_fft - hop_length is cut at both ends (of an odd difference
            one sample more is left).

    Returns:
        (B, T x hop_length), and that sample.
    """
    frames = torch.fft.irfft(spectrum, len(window), dim=1) * window[:, None]
    envelope = window.square()[None, :, None].expand(1, -1, spectrum.shape[-1])
    return _sum(frames, hop_length) / _sum(envelope, hop_length)


def _sum(frames: Tensor, hop_length: int) -> Tensor:
    """Frames (B, n_fft, T) added at their places, without the outer (n_fft - hop_length) / 2 samples."""
    n_fft, length = frames.shape[1], (frames.shape[-1] - 1) * hop_length + frames.shape[1]
    total = F.fold(frames, (1, length), (1, n_fft), stride=(1, hop_length))[:, 0, 0]
    cut = (n_fft - hop_length) // 2
    return total[:, cut : length - cut]
