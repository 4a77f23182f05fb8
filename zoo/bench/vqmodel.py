"""LlamaGen's tokenizer and diffusers' VQModel of the same shape, with the same weights."""

from __future__ import annotations

import dataclasses
import re
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

_BLOCKS = {r"blocks\.": "resnets.", "shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


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


def diffusers_model(model: Tokenizer, shape: Shape) -> nn.Module:
    """diffusers' VQModel with our model's weights, on its device."""
    from diffusers import VQModel

    last = len(shape.multipliers) - 1
    peer = VQModel(
        down_block_types=("DownEncoderBlock2D",) * last + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * last),
        block_out_channels=tuple(shape.channels * factor for factor in shape.multipliers),
        layers_per_block=shape.blocks,
        latent_channels=shape.latent_channels,
        num_vq_embeddings=shape.codes,
        vq_embed_dim=shape.dim,
        lookup_from_codebook=True,
    )
    weights = {diffusers_name(name): tensor for name, tensor in model.state_dict().items()}
    expected = peer.state_dict()
    peer.load_state_dict({name: tensor.reshape(expected[name].shape) for name, tensor in weights.items()})
    return peer.to(next(model.parameters()).device).eval()


def diffusers_name(name: str) -> str:
    """The name of our parameter in diffusers' layout."""
    for ours_, theirs in {"to_latent": "quant_conv", "from_codes": "post_quant_conv"}.items():
        name = name.replace(ours_, theirs)
    name = name.replace("quantizer.codebook", "quantize.embedding").replace("norm_out", "conv_norm_out")
    name = re.sub(r"^encoder\.levels", "encoder.down_blocks", name)
    name = re.sub(r"^decoder\.levels", "decoder.up_blocks", name)
    name = name.replace("resample.conv", "downsamplers.0.conv" if name.startswith("encoder") else "upsamplers.0.conv")
    for ours_, theirs in {"mid.0": "mid_block.resnets.0", "mid.2": "mid_block.resnets.1"}.items():
        name = name.replace(ours_, theirs)
    name = name.replace("mid.1", "mid_block.attentions.0")
    for pattern, theirs in _BLOCKS.items():
        name = re.sub(rf"(?<=\.){pattern}", theirs, name)
    return re.sub(r"(attentions\.\d+)\.(\w+)", lambda match: f"{match[1]}.{_ATTENTION[match[2]]}", name)


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
