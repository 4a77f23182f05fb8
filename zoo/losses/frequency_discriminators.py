"""X-Codec's discriminators: on mel spectra at several resolutions, plain and in decibels (arXiv 2408.17175)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zoo.layers.constants import HasConstants
from zoo.losses.audio_discriminators import AudioDiscriminator, AudioDiscriminatorConfig, Judgement
from zoo.losses.mel import MelConfig, mel_bands
from zoo.ops.precision import full_precision

_STRIDES = (1, 2, 1, 2, 1, 2)  # of the convolutions, each twice as wide as the one before
_LOUDEST, _RANGE = 20.0, 100.0  # dB; levels this far below the loudest are 0


@dataclass(frozen=True)
class FrequencyDiscriminatorConfig(AudioDiscriminatorConfig):
    """Sizes of the discriminators, one for each hop length; the defaults are the published.

    Attributes:
        hop_lengths: a quarter of the transforms' lengths.
        channels: of the last hidden layer of each, in multiples of 32.
        sample_rate: in Hz.
    """

    kind = "frequency"
    hop_lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    channels: tuple[int, ...] = (64, 128, 256, 512, 512, 512)
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        self.require(len(self.hop_lengths) == len(self.channels) >= 1, "a width per hop length", self.channels)
        self.require(min(self.hop_lengths) >= 1, "hop lengths >= 1", self.hop_lengths)
        fits = all(width >= 32 and width % 32 == 0 for width in self.channels)
        self.require(fits, "widths in multiples of 32", self.channels)


class FrequencyDiscriminators(AudioDiscriminator):
    """Signals (B, 1, T) -> a judgement a hop length."""

    def __init__(self, config: FrequencyDiscriminatorConfig) -> None:
        sizes = zip(config.hop_lengths, config.channels)
        super().__init__(config, [_FrequencyDiscriminator(config.sample_rate, *size) for size in sizes])


class _FrequencyDiscriminator(HasConstants):
    """Judges as many mel bands as the transform has bins: (B, 1, T) -> logits (B, 1, bands / 8, frames / 8)."""

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int, hop_length: int, channels: int) -> None:
        super().__init__()
        self.hop_length, n_fft = hop_length, 4 * hop_length
        bins = n_fft // 2 + 1
        self.register_constant("window", torch.hann_window, n_fft)
        self.register_constant("bands", _bands, MelConfig(sample_rate, n_fft, hop_length, bins))
        widths = [2, *(channels // 2**i for i in reversed(range(len(_STRIDES))))]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, 3, stride)) for a, b, stride in zip(widths, widths[1:], _STRIDES)
        )
        self.conv_post = weight_norm(nn.Conv2d(channels, 1, 3))

    def forward(self, x: Tensor) -> Judgement:
        h = self._image(x).to(x.dtype)
        features = []
        for conv in self.convs:
            h = F.leaky_relu(conv(F.pad(h, (1, 1, 1, 1), mode="reflect")), 0.2)
            features.append(h)
        return Judgement(self.conv_post(F.pad(h, (1, 1, 1, 1), mode="reflect")), tuple(features))

    def _image(self, x: Tensor) -> Tensor:
        """(B, 1, T) -> (B, 2, bands, frames): magnitudes, and their levels from 0 to 1."""
        with full_precision(x):
            window = self.window.float()
            spectrum = torch.stft(
                x[:, 0].float(), len(window), self.hop_length, window=window, normalized=True, return_complex=True
            )
            magnitude = torch.view_as_real(spectrum).square().sum(-1).clamp_min(1e-7).sqrt()
            magnitude = self.bands.float() @ magnitude
            level = ((20 * magnitude.log10() - _LOUDEST) / _RANGE + 1).clamp(0, 1)
            return torch.stack([magnitude, level], dim=1)


FrequencyDiscriminatorConfig.discriminator = FrequencyDiscriminators


def _bands(config: MelConfig) -> Tensor:
    return mel_bands(config).clamp(1e-6, 1)
