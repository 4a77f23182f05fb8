"""Vocos's discriminators on magnitudes of plain spectra (arXiv 2306.00814), with which WavTokenizer trains too.

They are UnivNet's (arXiv 2106.07889) with two-dimensional strides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zoo.losses.audio_discriminators import AudioDiscriminator, AudioDiscriminatorConfig, Judgement
from zoo.ops.precision import full_precision

# kernel sizes and strides of the convolutions, along frequencies and frames
_LAYERS = (((7, 5), (2, 2)), ((5, 3), (2, 1)), ((5, 3), (2, 2)), ((3, 3), (2, 1)), ((3, 3), (2, 2)))


@dataclass(frozen=True)
class SpectrumDiscriminatorConfig(AudioDiscriminatorConfig):
    """Sizes of the discriminators, one for each transform; the defaults are the published.

    Attributes:
        n_ffts, hop_lengths: of the transforms, whose frames have no window.
        channels: of all convolutions.
    """

    kind = "spectrum"
    n_ffts: tuple[int, ...] = (1024, 2048, 512)
    hop_lengths: tuple[int, ...] = (256, 512, 128)
    channels: int = 64

    def __post_init__(self) -> None:
        self.require(len(self.n_ffts) == len(self.hop_lengths) >= 1, "a hop length per transform", self.hop_lengths)
        self.require(min(*self.n_ffts, *self.hop_lengths, self.channels) >= 1, "sizes >= 1", self)


class SpectrumDiscriminators(AudioDiscriminator):
    """Signals (B, 1, T) -> a judgement a transform."""

    def __init__(self, config: SpectrumDiscriminatorConfig) -> None:
        sizes = zip(config.n_ffts, config.hop_lengths)
        super().__init__(config, [_SpectrumDiscriminator(config.channels, *size) for size in sizes])


class _SpectrumDiscriminator(nn.Module):
    """(B, 1, T) -> logits (B, 1, frequencies / 32, frames / 8), which are the last of the feature maps too."""

    def __init__(self, channels: int, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(width, channels, kernel, stride, (kernel[0] // 2, kernel[1] // 2)))
            for width, (kernel, stride) in zip((1, *[channels] * 4), _LAYERS)
        )
        self.conv_post = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Judgement:
        with full_precision(x):
            window = x.new_ones(self.n_fft, dtype=torch.float32)
            spectrum = torch.stft(x[:, 0].float(), self.n_fft, self.hop_length, window=window, return_complex=True)
            h = spectrum.abs()[:, None].to(x.dtype)
        features = []
        for conv in self.convs:
            h = F.leaky_relu(conv(h), 0.1)
            features.append(h)
        logits = self.conv_post(h)
        return Judgement(logits, (*features, logits))


SpectrumDiscriminatorConfig.discriminator = SpectrumDiscriminators
