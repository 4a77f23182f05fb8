"""LlamaGen's tokenizer in the sizes that diffusers' VQModel of the same weights is measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.tokenizer import Tokenizer

DIFFUSERS = "diffusers"
DIFFUSERS_MODULE = "diffusers.models.autoencoders.vq_model"


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are those of the published f16 model."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    latent_channels: int = 256
    codes: int = 16384
    dim: int = 8
    metric: str = "cosine"  # with "euclidean" the codebook is no longer on the unit sphere


SMALL = Shape(channels=32, multipliers=(1, 2), blocks=1, latent_channels=32, codes=64)
SMALL_EUCLIDEAN = dataclasses.replace(SMALL, metric="euclidean")


def ours(shape: Shape, device: str = "cpu") -> Tokenizer:
    """Our model with random weights, the same each time; codes at the scale of the latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.create_model(
            "llamagen_vq_f16",
            channels=shape.channels,
            channel_multipliers=shape.multipliers,
            decoder_channel_multipliers=shape.multipliers,
            blocks=shape.blocks,
            latent_channels=shape.latent_channels,
            quantizer="vector",
            codebook_size=shape.codes,
            dim=shape.dim,
            metric=shape.metric,
        )
        if shape.metric == "euclidean":
            nn.init.normal_(model.quantizer.codebook.weight, std=0.3)
    return model.to(device)


def images(count: int, side: int, device: str) -> Tensor:
    """Noise on a smooth ground, (count, 3, side, side) in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    ground = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(ground, (side, side), mode="bicubic").clamp(0, 1)
    return (1.6 * smooth + 0.4 * torch.rand(smooth.shape, generator=generator) - 1).to(device)


@cache
def flops(shape: Shape, side: int, part: str) -> float:
    """Operations on one image, counted by torch without computing.

    Args:
        shape: of the network.
        side: pixels a side of the image.
        part: "encode", "decode", or "train" (forward and backward pass of both).
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = ours(shape).to("meta")
    small = side // 2 ** (len(shape.multipliers) - 1)
    x, codes = torch.empty(1, 3, side, side, device="meta"), torch.empty(1, small, small, shape.dim, device="meta")
    lookup = 2.0 * small * small * shape.codes * shape.dim
    if part == "train":
        with FlopCounterMode(display=False) as counter:
            model.reconstruct(model.latent(x)).sum().backward()
        return counter.get_total_flops() + lookup
    work: Callable[[], Any] = (lambda: model.latent(x)) if part == "encode" else (lambda: model.reconstruct(codes))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops() + (lookup if part == "encode" else 0.0)
