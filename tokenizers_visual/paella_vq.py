"""Paella's VQGAN, which is Würstchen's stage A: patches, few blocks down, many blocks of depthwise convolutions up.

Papers: Paella arXiv 2211.07292, Würstchen arXiv 2306.00637. Originals: dome272/Paella and dome272/Wuerstchen (MIT);
huggingface/diffusers and huggingface/open-muse have it too (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import CheckpointError, KeyMap
from zoo.config import Config, require_arguments
from zoo.layers.inference import channels_last
from zoo.quantizers import Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.sizes import count_of, quantizer_of, sizes_of
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class PaellaVQConfig(Config):
    """Sizes of the network; the defaults are those of the published f4 model."""

    patch_size: int = 2  # of the finest level
    levels: int = 2  # stride = patch_size * 2 ** (levels - 1)
    bottleneck_blocks: int = 12  # of the decoder's coarsest level; every other level has one, as all of the encoder's
    channels: int = 384  # of the coarsest level; each finer one has half as many
    quantizer: QuantizerConfig = VectorConfig(codebook_size=8192, dim=4)
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        self.require(
            self.patch_size >= 1 and self.levels >= 1, "a size and levels >= 1", (self.patch_size, self.levels)
        )
        finest = 2 ** (self.levels - 1)
        self.require(self.channels % finest == 0, f"channels that are a multiple of {finest}", self.channels)


class MixingBlock(nn.Module):
    """A depthwise 3x3 convolution, then two maps of each position; each adds to the input what it makes of its norm.

    (B, C, H, W) -> the same. `gammas` scale (around 1) and shift the norms, and scale what is added: it starts with
    nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(channels, channels, 3, groups=channels))
        self.channelwise = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.gammas = nn.Parameter(torch.zeros(6))
        for layer in (self.depthwise[1], self.channelwise[0], self.channelwise[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift, gate, channel_scale, channel_shift, channel_gate = self.gammas.unbind()
        x = x + self.depthwise(_normalised(x, scale, shift).movedim(-1, 1)) * gate
        return x + self.channelwise(_normalised(x, channel_scale, channel_shift)).movedim(-1, 1) * channel_gate


def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), normalised over C."""
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-6) * (1 + scale) + shift


@register("paella_vq")
class PaellaVQ(Tokenizer):
    """Images (B, C, H, W) in [0, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f).

    The originals scale codes by 0.3764 for their generators, which changes neither tokens nor images.
    """

    def __init__(self, config: PaellaVQConfig) -> None:
        stride = config.patch_size * 2 ** (config.levels - 1)
        spec = InputSpec("image", channels=config.in_channels, value_range=(0.0, 1.0), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        widths = [config.channels // 2**i for i in reversed(range(config.levels))]
        values, dim = config.in_channels * config.patch_size**2, config.quantizer.dim
        down: list[nn.Module] = [MixingBlock(widths[0])]
        for finer, coarser in pairwise(widths):
            down += [nn.Conv2d(finer, coarser, 4, stride=2, padding=1), MixingBlock(coarser)]
        normalised = nn.Sequential(nn.Conv2d(widths[-1], dim, 1, bias=False), nn.BatchNorm2d(dim))
        up: list[nn.Module] = [nn.Sequential(nn.Conv2d(dim, widths[-1], 1))]
        up += [MixingBlock(widths[-1]) for _ in range(config.bottleneck_blocks)]
        for coarser, finer in pairwise(widths[::-1]):
            up += [nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1), MixingBlock(finer)]
        self.from_pixels = nn.Sequential(nn.PixelUnshuffle(config.patch_size), nn.Conv2d(values, widths[0], 1))
        self.down = nn.Sequential(*down, normalised)
        self.up = nn.Sequential(*up)
        self.to_pixels = nn.Sequential(nn.Conv2d(widths[0], values, 1), nn.PixelShuffle(config.patch_size))

    def latent(self, x: Tensor) -> Tensor:
        return self.down(self.from_pixels(channels_last(x))).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.to_pixels(self.up(codes.movedim(-1, 1))).contiguous()


def config_from_original(meta: dict[str, Any]) -> PaellaVQConfig:
    """The config of the constructor arguments of diffusers' class, or of the original's and open-muse's.

    Raises:
        ValueError: images that go out with other channels than they come in.
    """
    kwargs = meta["original"]["kwargs"]
    channels = kwargs.get("in_channels", 3)
    require_arguments(kwargs, {"out_channels": channels}, "as many channels out as in")
    return PaellaVQConfig(
        patch_size=kwargs.get("up_down_scale_factor", 2),
        levels=kwargs.get("levels", 2),
        bottleneck_blocks=kwargs.get("bottleneck_blocks", 12),
        channels=kwargs.get("embed_dim", kwargs.get("c_hidden", 384)),
        quantizer=VectorConfig(
            codebook_size=kwargs.get("num_vq_embeddings", kwargs.get("codebook_size", 8192)),
            dim=kwargs.get("latent_channels", kwargs.get("c_latent", 4)),
        ),
        in_channels=channels,
    )


def sizes_from_tensors(own: Mapping[str, Tensor], stated: PaellaVQConfig) -> dict[str, Any]:
    """Fields of the config that the tensors of a file tell; a patch has `in_channels` as stated.

    Raises:
        CheckpointError: tensors of another network, or values that make no square patch of so many channels.
    """
    values = sizes_of(own, "from_pixels.1.weight", "width values 1 1")["values"]
    patch = isqrt(values // stated.in_channels)
    if values != stated.in_channels * patch**2:
        raise CheckpointError(
            f"expected square patches of {stated.in_channels} channels, got {values} values of a patch"
        )
    levels = 1
    while f"down.{2 * levels}.channelwise.0.weight" in own:
        levels += 1
    coarsest = sizes_of(own, f"down.{2 * (levels - 1)}.channelwise.0.weight", "hidden channels")
    return {
        "patch_size": patch,
        "levels": levels,
        "bottleneck_blocks": count_of(own, "up.{}.gammas", start=1),
        "channels": coarsest["channels"],
        "quantizer": quantizer_of(own, stated.quantizer),
    }


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The commitment weighs a quarter; in open-muse, whose arguments have the original's names, the other term does."""
    openmuse = meta["original"]["class"] == "PaellaVQModel" and "c_hidden" in meta["original"]["kwargs"]
    quarter, whole = ("codebook", "commitment") if openmuse else ("commitment", "codebook")
    return {"loss.quant": quantized.losses[whole] + 0.25 * quantized.losses[quarter]}


KEY_MAP = KeyMap(
    {
        "in_block.*": "from_pixels.*",
        "down_blocks.*": "down.*",
        "vquantizer.codebook.weight": "quantizer.codebook.weight",
        "vquantizer.embedding.weight": "quantizer.codebook.weight",  # diffusers'
        "up_blocks.*": "up.*",
        "out_block.*": "to_pixels.*",
    }
)
