"""BigCodec's discriminators: on periods of the waveform, and on magnitudes of spectra (arXiv 2409.05377).

Periods: HiFi-GAN, arXiv 2010.05646.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zoo.layers.constants import HasConstants
from zoo.losses.audio_discriminators import (
    AudioDiscriminator,
    AudioDiscriminatorConfig,
    Judgement,
    PeriodDiscriminator,
)
from zoo.ops.precision import full_precision


@dataclass(frozen=True)
class MagnitudeDiscriminatorConfig(AudioDiscriminatorConfig):
    """Sizes of the discriminators, one for each period and one for each transform; the defaults are the published.

    Attributes:
        periods: of the first discriminators.
        period_channels: of their convolutions, all but the last of stride 3.
        n_ffts, hop_lengths: of the others' transforms.
        window_lengths: of their Hann windows, centred in the frames; empty for windows as long as the transforms.
        channels: of their first convolution; each layer multiplies them by its stride, and the last but one by 2, up
            to `most_channels`.
        strides: of their convolutions after a first one of 2; one of stride s has 2 s + 1 taps.
        kernel_size: of their first convolution.
        last_kernel_size: of their last two.
    """

    kind = "magnitude"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (16, 64, 256, 512, 512)
    n_ffts: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    hop_lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    window_lengths: tuple[int, ...] = ()
    channels: int = 32
    most_channels: int = 512
    strides: tuple[int, ...] = (2, 2, 2)
    kernel_size: int = 5
    last_kernel_size: int = 3

    def __post_init__(self) -> None:
        self.require(len(self.periods) + len(self.n_ffts) >= 1, "at least one discriminator", self.periods)
        self.require(len(self.period_channels) >= 1, "at least one layer", self.period_channels)
        self.require(len(self.n_ffts) == len(self.hop_lengths), "a hop length per transform", self.hop_lengths)
        windows = self.window_lengths or self.n_ffts
        fit = len(windows) == len(self.n_ffts) and all(map(operator.le, windows, self.n_ffts))
        self.require(fit, "a window at most as long as it per transform", self.window_lengths)
        odd = self.kernel_size % 2 == self.last_kernel_size % 2 == 1
        self.require(odd, "odd kernel sizes", (self.kernel_size, self.last_kernel_size))


class MagnitudeDiscriminators(AudioDiscriminator):
    """Signals (B, 1, T) -> a judgement a period, then a transform."""

    def __init__(self, config: MagnitudeDiscriminatorConfig) -> None:
        periods = [
            PeriodDiscriminator(period, config.period_channels, always_pad=False, last_kernel_size=2)
            for period in config.periods
        ]
        sizes = zip(config.n_ffts, config.hop_lengths, config.window_lengths or config.n_ffts)
        super().__init__(config, [*periods, *(MagnitudeDiscriminator(config, *size) for size in sizes)])


class _Conv2d(nn.Conv2d):
    """As torch's, but narrow maps in float32: for their strided convolutions in bfloat16 oneDNN, where a CPU has AMX,
    adds up what memory happens to hold.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu" or input.shape[-1] > 2:
            return super()._conv_forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            values = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return values.to(input.dtype)


class MagnitudeDiscriminator(HasConstants):
    """Judges the magnitudes of one transform: (B, 1, T) -> logits (B, 1, frequencies, times)."""

    window: Tensor

    def __init__(self, config: MagnitudeDiscriminatorConfig, n_fft: int, hop_length: int, window: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_constant("window", torch.hann_window, window)
        kernels = [config.kernel_size, *(2 * stride + 1 for stride in config.strides), config.last_kernel_size]
        strides = [2, *config.strides, 1]
        grown = accumulate((*config.strides, 2), operator.mul, initial=config.channels)
        widths = [1, *(min(width, config.most_channels) for width in grown)]
        self.convs = nn.ModuleList(
            weight_norm(_Conv2d(a, b, kernel, stride, kernel // 2))
            for a, b, kernel, stride in zip(widths, widths[1:], kernels, strides)
        )
        last = config.last_kernel_size
        self.conv_post = weight_norm(nn.Conv2d(widths[-1], 1, last, padding=last // 2))

    def forward(self, x: Tensor) -> Judgement:
        with full_precision(x):
            spectrum = torch.stft(
                x[:, 0].float(), self.n_fft, self.hop_length, len(self.window), self.window.float(), return_complex=True
            )
            power = torch.view_as_real(spectrum).square().sum(-1)
            h = power.clamp(1e-7, 1e3).sqrt()[:, None].to(x.dtype)
        features = []
        for conv in self.convs:
            h = F.leaky_relu(conv(h), 0.2)
            features.append(h)
        return Judgement(self.conv_post(h), tuple(features))


MagnitudeDiscriminatorConfig.discriminator = MagnitudeDiscriminators
