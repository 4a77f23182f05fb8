"""Discriminators for audio, and the adversarial and feature losses on them.

On complex spectra at several scales: EnCodec, arXiv 2210.13438. On periods of the waveform: HiFi-GAN, arXiv 2010.05646.
On bands of complex spectra: DAC, arXiv 2306.06546.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zoo.config import Config
from zoo.layers.constants import HasConstants, hann_taper

Objective = Literal["hinge", "clamped_hinge", "least_squares"]  # clamped: nothing to gain by logits above 1
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


@dataclass(frozen=True)
class Judgement:
    """What one discriminator says: logits, and the feature maps on the way to them, for feature matching."""

    logits: Tensor
    features: tuple[Tensor, ...]


class AudioDiscriminatorConfig(Config):
    """Base of the discriminators' configs; a field of this type takes any."""

    discriminator: ClassVar[Callable[..., AudioDiscriminator]]

    def build(self) -> AudioDiscriminator:
        """The discriminators, freshly initialised."""
        return self.discriminator(self)


class AudioDiscriminator(nn.Module):
    """Several discriminators: signals (B, C, T) -> a judgement of each."""

    def __init__(self, config: AudioDiscriminatorConfig, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.discriminators = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Judgement, ...]:
        return tuple(discriminator(x) for discriminator in self.discriminators)


# -- spectra -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class STFTDiscriminatorConfig(AudioDiscriminatorConfig):
    """Sizes of EnCodec's discriminators, one for each scale; the defaults are those of its recipe."""

    kind = "stft"
    channels: int = 1  # of the signal
    filters: int = 32
    n_ffts: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    hop_lengths: tuple[int, ...] = (256, 512, 128, 64, 32)
    window_lengths: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    kernel_size: tuple[int, int] = (3, 9)  # frames, frequencies
    dilations: tuple[int, ...] = (1, 2, 4)  # along frames
    slope: float = 0.3  # of the leaky activations

    def __post_init__(self) -> None:
        sizes = (self.n_ffts, self.hop_lengths, self.window_lengths)
        self.require(len({len(size) for size in sizes}) == 1 and len(self.n_ffts) >= 1, "as many sizes each", sizes)
        self.require(min(self.channels, self.filters) >= 1, "widths >= 1", (self.channels, self.filters))


class STFTDiscriminators(AudioDiscriminator):
    """Signals (B, C, T) -> a judgement a scale, on real and imaginary parts as channels."""

    def __init__(self, config: STFTDiscriminatorConfig) -> None:
        sizes = zip(config.n_ffts, config.hop_lengths, config.window_lengths)
        super().__init__(config, [_STFTDiscriminator(config, *size) for size in sizes])


class _STFTDiscriminator(HasConstants):
    window: Tensor

    def __init__(self, config: STFTDiscriminatorConfig, n_fft: int, hop: int, window: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.slope = n_fft, hop, config.slope
        self.register_constant("window", torch.hann_window, window)
        width, (frames, frequencies) = config.filters, config.kernel_size
        side = (frames // 2, frequencies // 2)
        layers: list[nn.Module] = [nn.Conv2d(2 * config.channels, width, config.kernel_size, padding=side)]
        for dilation in config.dilations:
            padding = ((frames - 1) * dilation // 2, side[1])
            layers.append(
                weight_norm(nn.Conv2d(width, width, config.kernel_size, (1, 2), padding, dilation=(dilation, 1)))
            )
        layers.append(weight_norm(nn.Conv2d(width, width, (frames, frames), padding=(side[0], side[0]))))
        self.convs = nn.ModuleList(layers)
        self.conv_post = weight_norm(nn.Conv2d(width, 1, (frames, frames), padding=(side[0], side[0])))

    def forward(self, x: Tensor) -> Judgement:
        window = self.window.float()
        spectrum = torch.stft(
            x.float().flatten(0, 1), self.n_fft, self.hop, len(window), window, center=False, return_complex=True
        )
        spectrum = (spectrum / window.square().sum().sqrt()).unflatten(0, x.shape[:2])
        h = torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3).to(x.dtype)
        features = []
        for conv in self.convs:
            h = F.leaky_relu(conv(h), self.slope)
            features.append(h)
        return Judgement(self.conv_post(h), tuple(features))


# -- waveforms and bands -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WaveDiscriminatorConfig(AudioDiscriminatorConfig):
    """Sizes of DAC's discriminators, one for each period and one for each window; the defaults are the published."""

    kind = "wave"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    windows: tuple[int, ...] = (2048, 1024, 512)
    bands: tuple[tuple[float, float], ...] = BANDS  # as shares of the spectrum
    band_channels: int = 32

    def __post_init__(self) -> None:
        self.require(len(self.periods) + len(self.windows) >= 1, "at least one discriminator", self.periods)
        self.require(len(self.period_channels) >= 1, "at least one layer", self.period_channels)
        for window in self.windows:
            bins = window // 2 + 1
            edges = [(int(low * bins), int(high * bins)) for low, high in self.bands]
            self.require(all(low < high for low, high in edges), f"bands of a bin or more of {bins}", self.bands)


class WaveDiscriminators(AudioDiscriminator):
    """Signals (B, 1, T), zero-mean and with peaks at 0.8 -> a judgement a period, then a window."""

    def __init__(self, config: WaveDiscriminatorConfig) -> None:
        periods = [PeriodDiscriminator(period, config.period_channels) for period in config.periods]
        super().__init__(
            config, [*periods, *(BandDiscriminator(w, config.bands, config.band_channels) for w in config.windows)]
        )

    def forward(self, x: Tensor) -> tuple[Judgement, ...]:
        x = x - x.mean(-1, keepdim=True)
        x = 0.8 * x / (x.abs().amax(-1, keepdim=True) + 1e-9)
        return super().forward(x)


class PeriodDiscriminator(nn.Module):
    """Judges every `period`-th sample together: (B, 1, T) -> logits (B, 1, steps, period).

    `always_pad`: a signal of whole periods gets one more. `last_kernel_size`: of the convolution to the logits.
    """

    def __init__(
        self, period: int, channels: Sequence[int], *, always_pad: bool = True, last_kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.period, self.always_pad = period, always_pad
        widths = [1, *channels]
        last = len(channels) - 1
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (1 if i == last else 3, 1), (2, 0)))
            for i, (a, b) in enumerate(zip(widths, channels))
        )
        self.conv_post = weight_norm(nn.Conv2d(widths[-1], 1, (last_kernel_size, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> Judgement:
        missing = self.period - x.shape[-1] % self.period
        if missing < self.period or self.always_pad:
            x = F.pad(x, (0, missing), mode="reflect")
        h = x.unflatten(-1, (-1, self.period))
        features = []
        for conv in self.convs:
            h = F.leaky_relu(conv(h), 0.1)
            features.append(h)
        return Judgement(self.conv_post(h), tuple(features))


class BandDiscriminator(HasConstants):
    """Judges a complex spectrum by networks for each of its bands: (B, 1, T) -> logits (B, 1, frames, places)."""

    window: Tensor

    def __init__(self, window: int, bands: Sequence[tuple[float, float]], channels: int) -> None:
        super().__init__()
        bins = window // 2 + 1
        self.register_constant("window", hann_taper, window)
        self.bands = [(int(low * bins), int(high * bins)) for low, high in bands]
        self.band_convs = nn.ModuleList(self._stack(channels) for _ in bands)
        self.conv_post = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    @staticmethod
    def _stack(channels: int) -> nn.ModuleList:
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        layers += [nn.Conv2d(channels, channels, (3, 9), (1, 2), (1, 4)) for _ in range(3)]
        layers += [nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))]
        return nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, x: Tensor) -> Judgement:
        length = len(self.window)
        hop = length // 4
        side = (length - hop) // 2
        x = F.pad(x, (side, side + -x.shape[-1] % hop), mode="reflect")
        spectrum = torch.stft(
            x[:, 0].float(), length, hop, window=self.window.float(), pad_mode="reflect", return_complex=True
        )[..., 2:-2]  # the frames that padding alone fills
        image = torch.view_as_real(spectrum).permute(0, 3, 2, 1).to(x.dtype)  # (B, 2, frames, bins)
        features, ends = [], []
        for (low, high), convs in zip(self.bands, self.band_convs):
            h = image[..., low:high]
            for conv in convs:  # type: ignore[attr-defined]
                h = F.leaky_relu(conv(h), 0.1)
                features.append(h)
            ends.append(h)
        return Judgement(self.conv_post(torch.cat(ends, dim=-1)), tuple(features))


STFTDiscriminatorConfig.discriminator = STFTDiscriminators
WaveDiscriminatorConfig.discriminator = WaveDiscriminators


# -- losses --------------------------------------------------------------------------------------------------------


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


_DISCRIMINATOR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": _hinge,
    "clamped_hinge": _hinge,
    "least_squares": lambda real, fake: (1 - real).square().mean() + fake.square().mean(),
}
_GENERATOR: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": lambda fake: -fake.mean(),
    "clamped_hinge": lambda fake: F.relu(1 - fake).mean(),
    "least_squares": lambda fake: (1 - fake).square().mean(),
}


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement], objective: Objective) -> Tensor:
    """What the discriminators minimise: the mean over them (a recipe that adds them up weighs it by their number)."""
    losses = [_DISCRIMINATOR[objective](a.logits.float(), b.logits.float()) for a, b in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_loss(fake: Sequence[Judgement], objective: Objective) -> Tensor:
    """What the generator minimises: the mean over the discriminators."""
    return torch.stack([_GENERATOR[objective](judgement.logits.float()) for judgement in fake]).mean()


def feature_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Mean absolute difference of feature maps: the mean over the maps of a discriminator, then over discriminators."""
    return torch.stack([torch.stack(maps).mean() for maps in _differences(real, fake)]).mean()


def summed_feature_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """The sum over all maps of all discriminators of their mean absolute difference (DAC)."""
    return torch.stack([difference for maps in _differences(real, fake) for difference in maps]).sum()


def _differences(real: Sequence[Judgement], fake: Sequence[Judgement]) -> list[list[Tensor]]:
    return [
        [F.l1_loss(b.float(), a.detach().float()) for a, b in zip(one.features, other.features, strict=True)]
        for one, other in zip(real, fake, strict=True)
    ]
