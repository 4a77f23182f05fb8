"""BSQ-ViT: a vision transformer as autoencoder, whose codes are the signs of latents on the unit sphere (BSQ).

Paper: arXiv 2406.07548. Original: zhaoyue-zephyrus/bsq-vit (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config, require_arguments
from zoo.layers.transformer import MLP, TransformerBlock
from zoo.quantizers import BinaryConfig, BinaryEntropyConfig, Quantized, QuantizerConfig, SphericalBinaryConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer


@dataclass(frozen=True)
class TransformerConfig(Config):
    """Sizes of one side's transformer."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    layer_scale: float | None = None  # the start of learned factors on the branches; None for none

    def __post_init__(self) -> None:
        self.require(self.width % self.heads == 0, "a width that the heads divide", (self.width, self.heads))


@dataclass(frozen=True)
class BSQViTConfig(Config):
    """Sizes of the network; the defaults are those of the published 18 bit model."""

    image_size: int = 256  # pixels a side; the learned positions allow no other
    patch_size: int = 8
    encoder: TransformerConfig = TransformerConfig()
    decoder: TransformerConfig = TransformerConfig()
    output_width: int = 3072  # of the tanh layer before the pixels
    quantizer: QuantizerConfig = SphericalBinaryConfig(
        bits=18, entropy=BinaryEntropyConfig(temperature=1.0, group_bits=1)
    )

    def __post_init__(self) -> None:
        fits = self.patch_size >= 1 and self.image_size % self.patch_size == 0
        self.require(fits, "an image_size that is a multiple of patch_size", (self.image_size, self.patch_size))


@register("bsq_vit")
class BSQViT(Tokenizer):
    """Images (B, 3, S, S) in [-1, 1] of the configured size -> a grid of tokens (B, S / patch, S / patch).

    In training a pass clamps its images to [-1, 1], as published: the losses see, and move, nothing beyond.
    """

    def __init__(self, config: BSQViTConfig) -> None:
        size, patch = config.image_size, config.patch_size
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), size=(size, size), multiple=patch)
        super().__init__(config, spec, config.quantizer)
        positions, pixels = (size // patch) ** 2, 3 * patch**2
        self.patch_size = patch
        self.from_pixels = nn.Linear(pixels, config.encoder.width, bias=False)
        self.encoder = _Transformer(config.encoder, positions)
        self.to_latent = nn.Linear(config.encoder.width, config.quantizer.dim)
        self.from_codes = nn.Linear(config.quantizer.dim, config.decoder.width)
        self.decoder = _Transformer(config.decoder, positions)
        self.expand = nn.Linear(config.decoder.width, config.output_width)
        self.to_pixels = nn.Linear(config.output_width, pixels)

    def latent(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, self.patch_size).movedim(1, -1)  # (B, h, w, 3 * patch * patch)
        hidden = self.encoder(self.from_pixels(patches).flatten(1, 2))
        return self.to_latent(hidden).unflatten(1, patches.shape[1:3])

    def reconstruct(self, codes: Tensor) -> Tensor:
        hidden = self.decoder(self.from_codes(codes).flatten(1, 2))
        patches = self.to_pixels(self.expand(hidden).tanh()).unflatten(1, codes.shape[1:3])
        return F.pixel_shuffle(patches.movedim(-1, 1), self.patch_size)

    def forward(self, x: Tensor) -> Output:
        output = super().forward(x)
        if not self.training:
            return output
        return replace(output, reconstruction=output.reconstruction.clamp(*self.spec.value_range))


class _Transformer(nn.Module):
    """Positions, norm, blocks, norm."""

    def __init__(self, config: TransformerConfig, positions: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(positions, config.width) * 0.02)
        self.norm_in = nn.LayerNorm(config.width)
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, config.heads, MLP(width, hidden), layer_scale=config.layer_scale)
                for _ in range(config.layers)
            )
        )
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_out(self.blocks(self.norm_in(x + self.positions)))


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "embed_group_size": 9, "l2_norm": False, "post_q_l2_norm": False, "logit_laplace": False, "gamma0": 1.0,
    "gamma": 1.0, "zeta": 1.0, "persample_entropy_compute": "group", "inv_temperature": 1.0, "clamp_range": (0, 1),
}  # fmt: skip
_IMAGES = {  # arguments of the transformers that the published models of images share
    "num_frames": 1, "mask_type": "none", "ln_pre": True, "ln_post": True, "use_ffn_output": True,
}  # fmt: skip


def original_arguments(meta: dict[str, Any]) -> dict[str, Any]:
    """The original's constructor arguments, those that are not stated at their defaults."""
    return {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}


def config_from_original(meta: dict[str, Any]) -> BSQViTConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them.

    Without its two norms the original's quantizer is lookup-free quantisation.

    Raises:
        ValueError: one norm alone, the Laplace likelihood, or transformers of videos.
    """
    kwargs = original_arguments(meta)
    if kwargs["l2_norm"] != kwargs["post_q_l2_norm"] or kwargs["logit_laplace"]:
        raise ValueError("expected both of l2_norm and post_q_l2_norm or neither, without logit_laplace")
    encoder = kwargs["vitconfig"]
    decoder = kwargs.get("dvitconfig") or encoder
    entropy = entropy_from_original(kwargs, kwargs["embed_group_size"])
    quantizer: QuantizerConfig = SphericalBinaryConfig(bits=kwargs["embed_dim"], entropy=entropy)
    if not kwargs["l2_norm"]:
        quantizer = BinaryConfig(bits=kwargs["embed_dim"], entropy=entropy, most_significant_first=True)
    return BSQViTConfig(
        image_size=encoder["image_size"],
        patch_size=encoder["patch_size"],
        encoder=_sizes(encoder),
        decoder=_sizes(decoder),
        output_width=decoder.get("dim_ffn_output", 3072),
        quantizer=quantizer,
    )


def entropy_from_original(kwargs: dict[str, Any], group_size: int) -> BinaryEntropyConfig:
    """The entropy term of the original's arguments, without its weight (`entropy_weight`)."""
    # with "analytical" entropies both are those of single bits, whatever the group size
    analytical = kwargs["persample_entropy_compute"] == "analytical"
    return BinaryEntropyConfig(
        temperature=1 / kwargs["inv_temperature"],
        gamma=kwargs["gamma"] / kwargs["gamma0"],
        group_bits=1 if analytical else group_size,
    )


def entropy_weight(kwargs: dict[str, Any]) -> float:
    """What the original weighs the entropy term by."""
    return float(kwargs["zeta"] * kwargs["gamma0"] / kwargs["inv_temperature"])


def _sizes(vit: dict[str, Any]) -> TransformerConfig:
    require_arguments(vit, _IMAGES, "BSQ-ViT's transformer of images")
    mlp_ratio, layer_scale = float(vit["mlp_ratio"]), vit.get("ls_init_value")
    return TransformerConfig(vit["width"], vit["layers"], vit["heads"], mlp_ratio, layer_scale)


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original's sum over channels, with the weight 0.25 whatever its argument beta says, and the entropy term."""
    losses, kwargs = quantized.losses, original_arguments(meta)
    if "entropy" not in losses:
        return {}
    commitment = 0.25 * kwargs["embed_dim"] * losses["commitment"]
    return {"loss.quant": commitment + entropy_weight(kwargs) * losses["entropy"]}


def _side(side: str) -> dict[str, str | None]:
    return {
        f"{side}.positional_embedding": f"{side}.positions",
        f"{side}.ln_pre.*": f"{side}.norm_in.*",
        f"{side}.transformer.resblocks.{{}}.ln_1.*": f"{side}.blocks.{{}}.norm1.*",
        f"{side}.transformer.resblocks.{{}}.attn.in_proj_weight": f"{side}.blocks.{{}}.attention.qkv.weight",
        f"{side}.transformer.resblocks.{{}}.attn.in_proj_bias": f"{side}.blocks.{{}}.attention.qkv.bias",
        f"{side}.transformer.resblocks.{{}}.attn.out_proj.*": f"{side}.blocks.{{}}.attention.proj.*",
        f"{side}.transformer.resblocks.{{}}.ln_2.*": f"{side}.blocks.{{}}.norm2.*",
        f"{side}.transformer.resblocks.{{}}.mlp.c_fc.*": f"{side}.blocks.{{}}.mlp.fc1.*",
        f"{side}.transformer.resblocks.{{}}.mlp.c_proj.*": f"{side}.blocks.{{}}.mlp.fc2.*",
        f"{side}.transformer.resblocks.{{}}.ls_{{}}.gamma": f"{side}.blocks.{{}}.scale{{}}.scale",
        f"{side}.ln_post.*": f"{side}.norm_out.*",
    }


KEY_MAP = KeyMap(
    {
        "encoder.conv1.*": "from_pixels.*",
        **_side("encoder"),
        "quant_embed.*": "to_latent.*",
        "quantize.basis": None,  # powers of two
        "quantize.group_basis": None,
        "post_quant_embed.*": "from_codes.*",
        **_side("decoder"),
        "decoder.ffn.0.*": "expand.*",
        "decoder.conv_out.*": "to_pixels.*",
        "disc.*": None,  # a fixture's discriminator
    },
    prefix="model.",
)
