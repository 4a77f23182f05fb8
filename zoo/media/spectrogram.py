"""Pictures of sounds: the spectrogram in decibels, dark where it is quiet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RANGE = 80.0  # dB that a picture shows below its loudest point
_COLOURS = np.array([(8, 10, 32), (64, 30, 110), (160, 45, 110), (235, 100, 70), (250, 190, 90), (255, 250, 220)])


def spectrogram_picture(signal: Tensor, sample_rate: int, *, loudest: float | None = None) -> np.ndarray:
    """Draw one sound: time to the right in columns of 10 ms, frequency upwards to half the sample rate.

    Args:
        signal: (C, T) in [-1, 1]; channels are averaged.
        sample_rate: in Hz.
        loudest: level in dB of the brightest colour; None for that of the signal.

    Returns:
        uint8 (256, columns, 3).
    """
    level = levels(signal, sample_rate)
    top = float(level.max()) if loudest is None else loudest
    shade = ((level - top) / RANGE + 1).clamp(0, 1).flip(0).numpy() * (len(_COLOURS) - 1)
    below = np.minimum(shade.astype(int), len(_COLOURS) - 2)
    part = (shade - below)[..., None]
    return np.rint(_COLOURS[below] * (1 - part) + _COLOURS[below + 1] * part).astype(np.uint8)


def levels(signal: Tensor, sample_rate: int) -> Tensor:
    """Energy in dB, (256, columns), low frequencies first."""
    mono = signal.detach().float().cpu().mean(0, keepdim=True)
    hop = max(1, round(sample_rate / 100))
    spectrum = torch.stft(
        torch.nn.functional.pad(mono, (256, 256)), 512, hop, window=torch.hann_window(512), center=False,
        return_complex=True,
    )  # fmt: skip
    return 20 * spectrum[0, :256].abs().clamp_min(1e-6).log10()
