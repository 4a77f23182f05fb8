"""A discriminator on the features of a frozen vision transformer, DINO's by default.

Paper: StyleGAN-T, arXiv 2301.09515 (section 3.2); RobustTok (arXiv 2503.08354) and UniTok (arXiv 2502.20321) train
their tokenizers against it, with heads that see the class token beside each patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from zoo.layers.constants import HasConstants, per_channel
from zoo.losses.discriminators import Discriminator, DiscriminatorConfig
from zoo.losses.frozen import Frozen, timm_network


@dataclass(frozen=True)
class DinoDiscriminatorConfig(DiscriminatorConfig):
    """The frozen network, which of its blocks get a head, and the heads."""

    kind = "dino"
    backbone: str = "vit_small_patch16_224.dino"  # a vision transformer of timm
    weights: str | None = None  # a local file in timm's layout; None takes the published one of the hub
    blocks: tuple[int, ...] = (2, 5, 8, 11)
    kernel_size: int = 9  # of the heads' convolution over the sequence of patches, odd
    norm: Literal["group", "batch"] = "group"  # of the heads: of each image, or of up to 8 images together
    groups: int = 32  # of channels, of the group norms
    spectral_norm: bool = True  # of the heads' convolutions

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.blocks) > 0 and min(self.blocks) >= 0, "at least one block, counted from 0", self.blocks)
        self.require(self.kernel_size >= 1 and self.kernel_size % 2 == 1, "an odd kernel_size", self.kernel_size)
        self.require(self.norm in ("group", "batch"), "norm group or batch", self.norm)


class DinoDiscriminator(HasConstants, Discriminator):
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, blocks, patches). The backbone sees them at its own size."""

    config: DinoDiscriminatorConfig

    def __init__(self, config: DinoDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        network = timm_network(config.backbone, config.weights)
        depth = len(getattr(network, "blocks", ()))
        config.require(max(config.blocks) < depth, f"blocks below {depth}, those of {config.backbone}", config.blocks)
        width: int = network.num_features  # type: ignore[assignment]
        config.require(width % config.groups == 0, f"groups that divide the width {width}", config.groups)
        facts = network.pretrained_cfg
        self.side: int = facts["input_size"][-1]  # type: ignore[index]
        self.backbone = Frozen(network)
        self.classed = bool(getattr(network, "has_class_token", False))
        self.register_constant("mean", per_channel, facts["mean"])  # type: ignore[index]
        self.register_constant("deviation", per_channel, facts["std"])  # type: ignore[index]
        self.heads = nn.ModuleList(_Head(width, config) for _ in config.blocks)

    def logits(self, images: Tensor) -> Tensor:
        images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        images = ((images + 1) / 2 - self.mean) / self.deviation
        features = self.backbone.network.forward_intermediates(  # type: ignore[operator]
            images, indices=list(self.config.blocks), intermediates_only=True, output_fmt="NLC",
            return_prefix_tokens=self.classed,
        )  # fmt: skip
        rows = [patches + others[:, :1] for patches, others in features] if self.classed else features
        return torch.stack([head(x.transpose(1, 2)) for head, x in zip(self.heads, rows)], dim=1)


DinoDiscriminatorConfig.discriminator = DinoDiscriminator


class _Head(nn.Module):
    """(B, C, N) -> logits (B, N): 1x1 convolution, residual convolution over the sequence, projection to one."""

    def __init__(self, width: int, config: DinoDiscriminatorConfig) -> None:
        super().__init__()
        self.enter = _block(width, 1, config)
        self.mix = _block(width, config.kernel_size, config)
        self.to_logit = _normed(nn.Conv1d(width, 1, 1), config)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = (x + self.mix(x)) * 0.5**0.5
        return self.to_logit(x)[:, 0]


def _block(width: int, kernel_size: int, config: DinoDiscriminatorConfig) -> nn.Sequential:
    convolution = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, padding_mode="circular")
    norm = _SmallBatchNorm(width) if config.norm == "batch" else nn.GroupNorm(config.groups, width, eps=1e-6)
    return nn.Sequential(_normed(convolution, config), norm, nn.LeakyReLU(0.2))


def _normed(convolution: nn.Conv1d, config: DinoDiscriminatorConfig) -> nn.Module:
    return spectral_norm(convolution) if config.spectral_norm else convolution


class _SmallBatchNorm(nn.Module):
    """Normalises the channels (B, C, N) over neighbouring images, as many as fit in 8 and divide the batch.

    Statistics are always those of the images at hand. Source: StyleGAN-T, arXiv 2301.09515.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        count = max(size for size in range(1, 9) if len(x) % size == 0)
        groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (-1, count))  # (G, count, C, N)
        variance, mean = torch.var_mean(groups, (1, 3), correction=0, keepdim=True)
        normed = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(0, 1)
        return normed * self.weight[:, None] + self.bias[:, None]
