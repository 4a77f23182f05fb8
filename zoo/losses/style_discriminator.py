"""The residual discriminator of StyleGAN2, as BSQ-ViT trains against it.

Papers: arXiv 1912.04958 (and 2006.06676); BSQ: arXiv 2406.07548. Module names are those of the original's weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.losses.discriminators import Discriminator, DiscriminatorConfig


@dataclass(frozen=True)
class StyleDiscriminatorConfig(DiscriminatorConfig):
    """Sizes of a StyleGAN2 discriminator; the defaults are BSQ's for 256 x 256 pixels."""

    kind = "style"
    in_channels: int = 3
    resolution: int = 256  # pixels a side, a power of two from 8
    channel_base: int = 32768  # a stage at resolution r has min(channel_base / r, channel_maximum) channels
    channel_maximum: int = 512
    group_size: int = (
        4  # images whose spread is one further channel at the end; the batch is a multiple of it, or below
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        power = self.resolution >= 8 and self.resolution & (self.resolution - 1) == 0
        self.require(power, "a resolution that is a power of two from 8", self.resolution)
        sizes = (self.in_channels, self.channel_maximum, self.group_size)
        self.require(min(sizes) >= 1, "sizes of at least 1", sizes)
        self.require(self.channel_base >= self.resolution, "channel_base >= resolution", self.channel_base)

    def channels(self, resolution: int) -> int:
        """Width of the stage at a resolution."""
        return min(self.channel_base // resolution, self.channel_maximum)


class StyleDiscriminator(Discriminator):
    """Images (B, C, H, W) of the configured resolution -> logits (B, 1)."""

    config: StyleDiscriminatorConfig

    def __init__(self, config: StyleDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.resolutions = [config.resolution >> i for i in range(int(math.log2(config.resolution)) - 2)]
        for resolution in self.resolutions:
            pixels = config.in_channels if resolution == config.resolution else 0
            self.add_module(
                f"b{resolution}", _Stage(pixels, config.channels(resolution), config.channels(resolution // 2))
            )
        self.b4 = _Epilogue(config.channels(4), config.group_size)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, 1).

        Raises:
            ValueError: images of another size, or a batch above `group_size` that is no multiple of it.
        """
        side = self.config.resolution
        if images.ndim != 4 or images.shape[1:] != (self.config.in_channels, side, side):
            wanted = (self.config.in_channels, side, side)
            raise ValueError(f"the style discriminator: expected images (B, {wanted}), got {tuple(images.shape)}")
        hidden = images
        for resolution in self.resolutions:
            hidden = getattr(self, f"b{resolution}")(hidden)
        return self.b4(hidden)


StyleDiscriminatorConfig.discriminator = StyleDiscriminator


class _Convolution(nn.Module):
    """Convolution whose weights are of unit variance and scaled when they are used; blurred before a stride of 2."""

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, size: int, *, down: bool = False, plain: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.bias = None if plain else nn.Parameter(torch.zeros(out_channels))
        self.down, self.plain, self.size = down, plain, size
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("resample_filter", torch.outer(row, row))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = self.weight * self.weight[0].numel() ** -0.5
        if self.down:
            grow = self.size // 2 + 1
            blur = self.resample_filter[None, None].to(x.dtype).expand(x.shape[1], -1, -1, -1)
            x = F.conv2d(F.pad(x, (grow,) * 4), blur, groups=x.shape[1])
            x = F.conv2d(x, weight.to(x.dtype), stride=2)
        else:
            x = F.conv2d(x, weight.to(x.dtype), padding=self.size // 2)
        if self.bias is not None:
            x = x + self.bias.to(x.dtype)[:, None, None]
        return x * gain if self.plain else F.leaky_relu(x, 0.2) * (gain * 2**0.5)


class _Stage(nn.Module):
    """Pixels to features (the first stage), then a residual block that halves the size."""

    def __init__(self, pixels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.fromrgb = _Convolution(pixels, channels, 1) if pixels else None
        self.conv0 = _Convolution(channels, channels, 3)
        self.conv1 = _Convolution(channels, out_channels, 3, down=True)
        self.skip = _Convolution(channels, out_channels, 1, down=True, plain=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        return self.skip(x, 0.5**0.5) + self.conv1(self.conv0(x), 0.5**0.5)


class _Linear(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, activation: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * self.weight.shape[1] ** -0.5, self.bias)
        return F.leaky_relu(x, 0.2) * 2**0.5 if self.activation else x


class _Epilogue(nn.Module):
    """The 4 x 4 stage: the spread within groups of images as a further channel, and two linear layers."""

    def __init__(self, channels: int, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.conv = _Convolution(channels + 1, channels, 3)
        self.fc = _Linear(channels * 16, channels, activation=True)
        self.out = _Linear(channels, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(torch.cat([x, self._spread(x)], dim=1))
        return self.out(self.fc(hidden.flatten(1)))

    def _spread(self, x: Tensor) -> Tensor:
        size = min(self.group_size, len(x))
        if len(x) % size:
            raise ValueError(f"the style discriminator: expected a batch that is a multiple of {size}, got {len(x)}")
        groups = x.float().unflatten(0, (size, -1))
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # one number a group
        return deviation.to(x.dtype).repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])
