"""A differentiable measure of intelligibility: correlation of the envelopes of third-octave bands over short times.

After STOI (Taal et al., IEEE TASLP 19(7), 2011), at the signals' own sample rate and with weights in place of STOI's
removal of silent frames; it measures, `zoo.metrics.audio.stoi` reports.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers.constants import HasConstants
from zoo.ops.precision import full_precision

_FRAME = 0.0256  # seconds; frames start every half of it
_BANDS, _LOWEST = 15, 150.0  # a third of an octave each, and the centre of the first in Hz
_SEGMENT = 30  # frames that are correlated, 384 ms
_LOUDER = 1 + 10 ** (15 / 20)  # most that a normalised envelope counts above the original's: STOI's clipping at -15 dB
_SILENCE = 40.0  # dB below the loudest frame, from where frames do not count


class IntelligibilityLoss(HasConstants):
    """Two batches of signals (B, C, T) -> 1 minus the mean correlation, a scalar from 0 to 2; float32.

    A segment counts if half of its frames are sounding in the original. Signals of less than a segment count in no
    part, and give 1.

    Args:
        sample_rate: of the signals, in Hz; bands above half of it are left out.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.hop_length = round(sample_rate * _FRAME) // 2
        self.n_fft = 1 << (2 * self.hop_length - 1).bit_length()
        self.register_constant("bands", _bands, sample_rate, self.n_fft)
        self.register_constant("window", torch.hann_window, 2 * self.hop_length)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        with full_precision(target):
            power, original = self._power(reconstruction), self._power(target)
            if original.shape[-1] < _SEGMENT:
                return reconstruction.float().sum() * 0 + 1
            level = 10 * (original.sum(1) + 1e-12).log10()
            sounding = (level > level.amax(-1, keepdim=True) - _SILENCE).float().unfold(-1, _SEGMENT, 1)[:, None]
            count = sounding.sum(-1, keepdim=True)
            one, other = (
                ((self.bands.float() @ spectrum + 1e-9).sqrt()).unfold(-1, _SEGMENT, 1) * sounding
                for spectrum in (power, original)
            )  # (B, bands, segments, frames)
            one = one * other.norm(dim=-1, keepdim=True) / (one.norm(dim=-1, keepdim=True) + 1e-6)
            one = torch.minimum(one, other * _LOUDER)
            one, other = ((part - part.sum(-1, keepdim=True) / count.clamp_min(1)) * sounding for part in (one, other))
            correlation = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1) + 1e-6)
            counts = (count[..., 0] >= _SEGMENT // 2).float().expand_as(correlation)
            return 1 - (correlation * counts).sum() / counts.sum().clamp_min(1)

    def _power(self, x: Tensor) -> Tensor:
        """(B, C, T) -> squared magnitudes (B x C, bins, frames)."""
        spectrum = torch.stft(
            x.float().flatten(0, 1), self.n_fft, self.hop_length, 2 * self.hop_length, self.window.float(),
            return_complex=True,
        )  # fmt: skip
        return torch.view_as_real(spectrum).square().sum(-1)


def _bands(sample_rate: int, n_fft: int) -> Tensor:
    """(bands, frequencies): 1 where a frequency lies in the third of an octave, of bands below half the sample rate."""
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    centres = _LOWEST * 2 ** (torch.arange(_BANDS, dtype=torch.float64)[:, None] / 3)
    bands = (frequencies >= centres * 2 ** (-1 / 6)) & (frequencies < centres * 2 ** (1 / 6))
    return bands[(bands.any(1) & (centres[:, 0] * 2 ** (1 / 6) <= sample_rate / 2))].float()
