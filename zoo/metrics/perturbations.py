"""Changes of a recording that leave its words alone: noise, speed and pitch, for the robustness of speech tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Perturbation = Callable[[Tensor, int], Tensor]
"""Signal (C, T) in [-1, 1] and its sample rate in Hz -> the changed signal (C, T')."""


def noisy(signal: Tensor, decibels: float, seed: int = 0) -> Tensor:
    """White noise at a signal to noise ratio of mean powers over the whole clip; what leaves [-1, 1] is clipped."""
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(seed))
    power = signal.square().mean() / noise.square().mean()
    return (signal + noise * (power * 10 ** (-decibels / 10)).sqrt()).clamp(-1, 1)


def faster(signal: Tensor, sample_rate: int, factor: float) -> Tensor:
    """Played at `factor` times the speed, its pitch with it, by soxr."""
    import soxr

    changed = soxr.resample(signal.T.numpy(), sample_rate * factor, sample_rate, "VHQ")
    return torch.from_numpy(np.ascontiguousarray(changed.T)).clamp(-1, 1)


def higher(signal: Tensor, sample_rate: int, semitones: float) -> Tensor:
    """At another pitch and the same length, by the package librosa."""
    from librosa.effects import pitch_shift

    changed = pitch_shift(signal.numpy(), sr=sample_rate, n_steps=semitones)
    return torch.from_numpy(np.ascontiguousarray(changed)).clamp(-1, 1)


def perturbation(name: str, seed: int = 0) -> Perturbation:
    """The change of a name: "noise_10" (dB), "speed_0.9" (factor) or "pitch_-1" (semitones).

    Raises:
        ValueError: another name.
    """
    kind, _, amount = name.partition("_")
    try:
        number = float(amount)
    except ValueError:
        kind = ""
    if kind == "noise":
        return lambda signal, rate: noisy(signal, number, seed)
    if kind == "speed" and number > 0:
        return lambda signal, rate: faster(signal, rate, number)
    if kind == "pitch":
        return lambda signal, rate: higher(signal, rate, number)
    raise ValueError(f"expected a perturbation such as noise_10, speed_0.9 or pitch_-1, got {name!r}")
