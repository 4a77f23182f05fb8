"""HiFi-GAN's discriminators on the waveform (arXiv 2010.05646), at several scales and of several periods.

SpeechTokenizer and DM-Codec train with both. Logits are the last of the feature maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from zoo.losses.audio_discriminators import (
    AudioDiscriminator,
    AudioDiscriminatorConfig,
    Judgement,
    PeriodDiscriminator,
)

# kernel size, stride and groups of the convolutions; of each the width is stated by the config
_LAYERS = ((15, 1, 1), (41, 2, 4), (41, 2, 16), (41, 4, 16), (41, 4, 16), (41, 1, 16), (5, 1, 1))


@dataclass(frozen=True)
class ScaleDiscriminatorConfig(AudioDiscriminatorConfig):
    """Sizes of the discriminators, one for each scale; the defaults are the published.

    Attributes:
        scales: the signal, its half, its quarter, ...; weights of the first are normalised by their spectrum.
        channels: of the seven convolutions, in multiples of 16.
    """

    kind = "scale"
    scales: int = 3
    channels: tuple[int, ...] = (128, 128, 256, 512, 1024, 1024, 1024)

    def __post_init__(self) -> None:
        self.require(self.scales >= 1, "at least one scale", self.scales)
        fits = len(self.channels) == len(_LAYERS) and all(width >= 1 and width % 16 == 0 for width in self.channels)
        self.require(fits, f"{len(_LAYERS)} widths in multiples of 16", self.channels)


class ScaleDiscriminators(AudioDiscriminator):
    """Signals (B, 1, T) -> a judgement a scale."""

    def __init__(self, config: ScaleDiscriminatorConfig) -> None:
        norms = [spectral_norm, *([weight_norm] * (config.scales - 1))]
        super().__init__(config, [_ScaleDiscriminator(config.channels, norm) for norm in norms])

    def forward(self, x: Tensor) -> tuple[Judgement, ...]:
        found = []
        for scale, discriminator in enumerate(self.discriminators):
            x = F.avg_pool1d(x, 4, 2, padding=2) if scale else x
            found.append(discriminator(x))
        return tuple(found)


class _ScaleDiscriminator(nn.Module):
    def __init__(self, channels: tuple[int, ...], norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(a, b, kernel, stride, kernel // 2, groups=groups))
            for a, b, (kernel, stride, groups) in zip((1, *channels), channels, _LAYERS)
        )
        self.conv_post = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Judgement:
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return _logits_too(Judgement(self.conv_post(x), tuple(features)))


@dataclass(frozen=True)
class PeriodDiscriminatorConfig(AudioDiscriminatorConfig):
    """Sizes of the discriminators, one for each period; the defaults are the published.

    They see the signal as it is, where those of `WaveDiscriminatorConfig` scale it, and pad it to whole periods alone.

    Attributes:
        periods: in samples.
        channels: of the convolutions.
        first_map: whether that of the first convolution is one of the feature maps (not in Vocos and WavTokenizer).
    """

    kind = "period"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    first_map: bool = True

    def __post_init__(self) -> None:
        self.require(min(self.periods, default=0) >= 1, "periods >= 1", self.periods)
        self.require(min(self.channels, default=0) >= 1, "widths >= 1", self.channels)


class PeriodDiscriminators(AudioDiscriminator):
    """Signals (B, 1, T) -> a judgement a period."""

    def __init__(self, config: PeriodDiscriminatorConfig) -> None:
        parts = [PeriodDiscriminator(period, config.channels, always_pad=False) for period in config.periods]
        super().__init__(config, parts)
        self.first = 0 if config.first_map else 1

    def forward(self, x: Tensor) -> tuple[Judgement, ...]:
        judged = super().forward(x)
        return tuple(_logits_too(Judgement(one.logits, one.features[self.first :])) for one in judged)


def _logits_too(judgement: Judgement) -> Judgement:
    return Judgement(judgement.logits, (*judgement.features, judgement.logits))


ScaleDiscriminatorConfig.discriminator = ScaleDiscriminators
PeriodDiscriminatorConfig.discriminator = PeriodDiscriminators
