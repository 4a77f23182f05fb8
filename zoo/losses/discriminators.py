"""Discriminators for images: PatchGAN and the blurred discriminator of VQGAN+ and MaskBit.

Papers: PatchGAN arXiv 1611.07004, as in VQGAN (arXiv 2012.09841, CompVis/taming-transformers); VQGAN+ arXiv 2409.16211
(markweberdev/maskbit), also TiTok's. Module names are those of the originals, so their weights load as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.same_conv import SameConv2d, same_padding

BLUR_ROWS = {3: (1.0, 2.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}


@dataclass(frozen=True)
class PatchGANConfig:
    """Sizes of a PatchGAN."""

    in_channels: int = 3
    hidden_channels: int = 64
    num_layers: int = 3  # convolutions with stride 2

    def __post_init__(self) -> None:
        if min(self.in_channels, self.hidden_channels, self.num_layers) < 1:
            raise ValueError(f"expected sizes of at least 1, got {self}")


class PatchGAN(nn.Module):
    """Images (B, C, H, W) -> logits (B, 1, h, w), each of one patch; 30 x 30 for 256 x 256 pixels and 3 layers."""

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
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2, True),
            ]
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


@dataclass(frozen=True)
class BlurDiscriminatorConfig:
    """Sizes of the VQGAN+ discriminator; the defaults are those of MaskBit's published recipes."""

    in_channels: int = 3
    hidden_channels: int = 128  # a multiple of 32; stage i has 2**i times as many
    num_stages: int = 4
    blur_kernel_size: int | None = 4  # 3, 4 or 5; None takes the mean of 2 x 2 pixels

    def __post_init__(self) -> None:
        if self.hidden_channels < 32 or self.hidden_channels % 32:
            raise ValueError(f"expected hidden_channels to be a multiple of 32, got {self.hidden_channels}")
        if self.in_channels < 1 or self.num_stages < 1:
            raise ValueError(f"expected in_channels and num_stages of at least 1, got {self}")
        if self.blur_kernel_size is not None and self.blur_kernel_size not in BLUR_ROWS:
            raise ValueError(f"expected blur_kernel_size 3, 4, 5 or None, got {self.blur_kernel_size}")


class BlurDiscriminator(nn.Module):
    """Images (B, C, H, W) -> logits (B, 1, 16, 16): stages of convolution, blurred downsampling and group norm."""

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

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.block_in(images)
        for block in self.blocks:
            hidden = block(hidden)
        return self.to_logits(self.pool(hidden))


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
