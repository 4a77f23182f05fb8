"""Discriminators for images: PatchGAN and the blurred discriminator of VQGAN+ and MaskBit.

Papers: PatchGAN arXiv 1611.07004, as in VQGAN (arXiv 2012.09841, CompVis/taming-transformers); VQGAN+ arXiv 2409.16211
(markweberdev/maskbit), also TiTok's. Module names are those of the originals, so their weights load as they are.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.same_conv import SameConv2d, same_padding
from zoo.losses.augmentation import augment
from zoo.ops.collective import mean_over_ranks, world_size
from zoo.ops.precision import full_precision

BLUR_ROWS = {3: (1.0, 2.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}


@dataclass(frozen=True)
class DiscriminatorConfig(Config):
    """Base of the discriminators' configs; `kind` is the discriminator's name. A field of this type takes any."""

    discriminator: ClassVar[type[Discriminator]]
    _: KW_ONLY
    augmentation: float = 0.0  # share of the images whose colour is shifted, that are moved and have a part cut out
    cutout: float = 0.2  # side of that part, as a share of the image's

    def __post_init__(self) -> None:
        self.require(0 <= self.augmentation <= 1, "augmentation in [0, 1]", self.augmentation)
        self.require(0 <= self.cutout < 1, "cutout in [0, 1)", self.cutout)

    def build(self) -> Discriminator:
        """The discriminator, freshly initialised: images (B, C, H, W) -> logits (B, ...)."""
        return self.discriminator(self)


class Discriminator(nn.Module):
    """Base of the discriminators: a subclass sets `config` and writes `logits`."""

    config: DiscriminatorConfig

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (B, C, H, W), in training of what `augment` makes of them."""
        if self.training and self.config.augmentation > 0:
            images = augment(images, self.config.augmentation, self.config.cutout)
        return self.logits(images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, ...) of images as they are."""
        raise NotImplementedError


@dataclass(frozen=True)
class PatchGANConfig(DiscriminatorConfig):
    """Sizes of a PatchGAN."""

    kind = "patchgan"
    in_channels: int = 3
    hidden_channels: int = 64
    num_layers: int = 3  # convolutions with stride 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("in_channels", "hidden_channels", "num_layers"):
            self.require(getattr(self, name) >= 1, f"{name} >= 1", getattr(self, name))


class PatchGAN(Discriminator):
    """Images (B, C, H, W) -> logits (B, 1, h, w), each of one patch; 30 x 30 for 256 x 256 pixels and 3 layers."""

    config: PatchGANConfig

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_channels
        layers: list[nn.Module] = [
            nn.Conv2d(config.in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, True),
        ]
        for layer in range(1, config.num_layers + 1):
            previous, width = width, config.hidden_channels * min(2**layer, 8)
            stride = 2 if layer < config.num_layers else 1
            layers += [
                nn.Conv2d(previous, width, 4, stride=stride, padding=1, bias=False),
                JoinedBatchNorm2d(width),
                nn.LeakyReLU(0.2, True),
            ]
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialize)

    def logits(self, images: Tensor) -> Tensor:
        return self.main(images)


PatchGANConfig.discriminator = PatchGAN


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes together, on any device; each process brings as many images."""

    def forward(self, x: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(x)
        with full_precision(x):
            values = x.float()
            mean = mean_over_ranks(values.mean((0, 2, 3)))
            variance = mean_over_ranks((values - mean[:, None, None]).square().mean((0, 2, 3)))
            count = world_size() * values.numel() // values.shape[1]
            with torch.no_grad():
                share = 0.1 if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)  # type: ignore[union-attr]
                self.running_var.lerp_(variance * count / max(1, count - 1), share)  # type: ignore[union-attr]
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            scale = self.weight * (variance + self.eps).rsqrt()
            normalised = values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]
        return normalised.to(x.dtype)


@dataclass(frozen=True)
class BlurDiscriminatorConfig(DiscriminatorConfig):
    """Sizes of the VQGAN+ discriminator; the defaults are those of MaskBit's published recipes."""

    kind = "blur"
    in_channels: int = 3
    hidden_channels: int = 128  # a multiple of 32; stage i has 2**i times as many
    num_stages: int = 4
    blur_kernel_size: int | None = 4  # 3, 4 or 5; None takes the mean of 2 x 2 pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.hidden_channels >= 32 and self.hidden_channels % 32 == 0
        self.require(whole, "hidden_channels to be a multiple of 32", self.hidden_channels)
        sizes = (self.in_channels, self.num_stages)
        self.require(min(sizes) >= 1, "in_channels and num_stages of at least 1", sizes)
        known = self.blur_kernel_size is None or self.blur_kernel_size in BLUR_ROWS
        self.require(known, "blur_kernel_size 3, 4, 5 or None", self.blur_kernel_size)


class BlurDiscriminator(Discriminator):
    """Images (B, C, H, W) -> logits (B, 1, 16, 16): stages of convolution, blurred downsampling and group norm."""

    config: BlurDiscriminatorConfig

    def __init__(self, config: BlurDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_channels
        self.block_in = nn.Sequential(SameConv2d(config.in_channels, width, 5), nn.LeakyReLU(0.1))
        self.blocks = nn.ModuleList()
        for stage in range(config.num_stages):
            previous, width = width, config.hidden_channels * 2**stage
            self.blocks.append(
                nn.Sequential(
                    SameConv2d(previous, width, 3),
                    nn.AvgPool2d(2) if config.blur_kernel_size is None else BlurDownsample(config.blur_kernel_size),
                    nn.GroupNorm(32, width),
                    nn.LeakyReLU(0.1),
                )
            )
        self.pool = nn.AdaptiveMaxPool2d((16, 16))
        self.to_logits = nn.Sequential(SameConv2d(width, width, 1), nn.LeakyReLU(0.1), SameConv2d(width, 1, 5))
        self.apply(_initialize)

    def logits(self, images: Tensor) -> Tensor:
        hidden = self.block_in(images)
        for block in self.blocks:
            hidden = block(hidden)
        return self.to_logits(self.pool(hidden))


BlurDiscriminatorConfig.discriminator = BlurDiscriminator


class BlurDownsample(nn.Module):
    """Binomial blur and every second pixel: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)), zeros outside."""

    kernel: Tensor

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        row = torch.tensor(BLUR_ROWS[kernel_size])
        kernel = torch.outer(row, row)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])

    def forward(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        size = self.kernel.shape[-1]
        images = F.pad(images, (*same_padding(width, size, 2), *same_padding(height, size, 2)))
        return F.conv2d(images, self.kernel.expand(channels, -1, -1, -1), stride=2, groups=channels)


def _initialize(module: nn.Module) -> None:
    """Weights as DCGAN starts them (arXiv 1511.06434), as both originals do."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
