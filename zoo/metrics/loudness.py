"""Loudness of audio in LUFS (ITU-R BS.1770-4), with filters by the audio-EQ cookbook at any sample rate."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = -70.0  # LUFS: the absolute gate, and the loudness of silence
_BLOCK = 0.4  # seconds; blocks start every quarter of it
_SHELF = (1500.0, 1 / math.sqrt(2), 4.0)  # of the ear and head: Hz, quality, dB
_HIGH_PASS = (38.0, 0.5)
_SETTLED = 1e-18  # of the impulse response, what is left of it where it is cut
_PIECE = 1 << 20  # samples that are filtered at a time


def loudness(x: Tensor, sample_rate: int) -> Tensor:
    """Integrated loudness, gated, all channels of an item together.

    Args:
        x: (B, C, T) in [-1, 1]; what is shorter than half a second is measured with zeros after it.
        sample_rate: in Hz.

    Returns:
        (B,) LUFS in float64, at least -70.
    """
    x = F.pad(x.double(), (0, max(0, sample_rate // 2 - x.shape[-1])))
    filtered = _filtered(x, _response(sample_rate).to(x.device))
    block = int(_BLOCK * sample_rate)
    hop = int(_BLOCK * sample_rate / 4)
    count = max(1, -(-(filtered.shape[-1] - block) // hop) + 1)
    filtered = F.pad(filtered, (0, max(0, (count - 1) * hop + block - filtered.shape[-1])))
    power = filtered.square().unfold(-1, block, hop)[..., :count, :].sum(-1) / (_BLOCK * sample_rate)  # (B, C, blocks)
    level = _level(power)
    audible = level > LEAST
    relative = _level(_mean(power, audible)) - 10
    gated = audible & (level > relative[:, None])
    return _level(_mean(power, gated)).clamp_min(LEAST)


def normalized(x: Tensor, sample_rate: int, target: Tensor | float) -> Tensor:
    """Signals (B, C, T) at a loudness, in LUFS, of one number or (B,)."""
    gain = 10 ** ((torch.as_tensor(target, dtype=torch.float64, device=x.device) - loudness(x, sample_rate)) / 20)
    return x * gain[:, None, None].to(x.dtype)


def _level(power: Tensor) -> Tensor:
    """(B, C, ...) mean squares -> (B, ...) LUFS."""
    return -0.691 + 10 * power.sum(1).log10()


def _mean(power: Tensor, chosen: Tensor) -> Tensor:
    """Mean of (B, C, blocks) over the blocks that are chosen, (B, blocks); 0 where there is none."""
    return (power * chosen[:, None]).sum(-1) / chosen.sum(-1).clamp_min(1)[:, None]


@lru_cache(maxsize=16)
def _response(sample_rate: int) -> Tensor:
    """Impulse response of the two filters, up to where it has died away."""
    frequency, quality, decibels = _SHELF
    gain = 10 ** (decibels / 40)
    w = 2 * math.pi * frequency / sample_rate
    alpha, cos, root = math.sin(w) / (2 * quality), math.cos(w), math.sqrt(gain)
    shelf_b = (
        gain * ((gain + 1) + (gain - 1) * cos + 2 * root * alpha),
        -2 * gain * ((gain - 1) + (gain + 1) * cos),
        gain * ((gain + 1) + (gain - 1) * cos - 2 * root * alpha),
    )
    shelf_a = (
        (gain + 1) - (gain - 1) * cos + 2 * root * alpha,
        2 * ((gain - 1) - (gain + 1) * cos),
        (gain + 1) - (gain - 1) * cos - 2 * root * alpha,
    )
    frequency, quality = _HIGH_PASS
    w = 2 * math.pi * frequency / sample_rate
    alpha, cos = math.sin(w) / (2 * quality), math.cos(w)
    pass_b = ((1 + cos) / 2, -(1 + cos), (1 + cos) / 2)
    pass_a = (1 + alpha, -2 * cos, 1 - alpha)
    impulse = [1.0] + [0.0] * int(-math.log(_SETTLED) / (2 * math.pi * frequency) * sample_rate)
    return torch.tensor(_biquad(_biquad(impulse, shelf_b, shelf_a), pass_b, pass_a), dtype=torch.float64)


def _biquad(x: list[float], b: tuple[float, float, float], a: tuple[float, float, float]) -> list[float]:
    b0, b1, b2 = (value / a[0] for value in b)
    a1, a2 = a[1] / a[0], a[2] / a[0]
    y, first, second = [], 0.0, 0.0
    for value in x:
        out = b0 * value + first
        first, second = b1 * value - a1 * out + second, b2 * value - a2 * out
        y.append(out)
    return y


def _filtered(x: Tensor, response: Tensor) -> Tensor:
    """The causal convolution of (..., T) with a response, piece by piece in the frequency domain."""
    length = min(_PIECE, x.shape[-1])
    size = length + len(response) - 1
    spectrum = torch.fft.rfft(response, size)
    y = x.new_zeros(*x.shape[:-1], x.shape[-1] + len(response) - 1)
    for start in range(0, x.shape[-1], length):
        piece = torch.fft.irfft(torch.fft.rfft(x[..., start : start + length], size) * spectrum, size)
        end = min(start + size, y.shape[-1])
        y[..., start:end] += piece[..., : end - start]
    return y[..., : x.shape[-1]]
