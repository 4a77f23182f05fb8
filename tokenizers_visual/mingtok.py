"""MingTok: latents of an image, read one after the other into features that both understand it and paint it.

Paper: Ming-UniVision, arXiv 2510.06590. Original: inclusionAI/Ming-UniVision (MIT), whose latents are continuous; here
each of their numbers is rounded to a bin of the normal distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.diffusion_transformer import image_of
from zoo.layers.query_transformer import TransformerSizes, learned
from zoo.layers.transformer import MLP, GatedMLP, TransformerBlock
from zoo.losses.patch_features import PatchFeatures, dinov2_patches
from zoo.quantizers import DimensionWiseConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class MingTokConfig(Config):
    """Sizes of the networks; the defaults are those of the published model."""

    image_size: int = 512  # pixels a side
    patch_size: int = 32
    pixel_patch_size: int = 16  # of the decoder of pixels, which divides a patch into smaller ones
    encoder: TransformerSizes = TransformerSizes(width=768, layers=12, heads=12)
    semantic: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    pixels: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    latent_mean: float = 1.46817409  # these two bring the latents of the published encoder to mean 0 and variance 1
    latent_scale: float = 8.09449291
    quantizer: QuantizerConfig = DimensionWiseConfig(dim=32, bits=6, limit=3.0, deviations=3.0)

    def __post_init__(self) -> None:
        self.require(self.image_size % self.patch_size == 0, f"a multiple of {self.patch_size} px", self.image_size)
        wanted = f"a pixel_patch_size that divides {self.patch_size}"
        self.require(self.patch_size % self.pixel_patch_size == 0, wanted, self.pixel_patch_size)
        self.require(self.latent_scale > 0, "a latent_scale > 0", self.latent_scale)


@register("mingtok")
class MingTok(Tokenizer):
    """Images (B, 3, S, S) in [-1, 1] of the configured size -> a grid of tokens (B, S / patch, S / patch).

    `features` of a token depend on no later token in raster order, so that a language model may understand a picture
    while it makes it. Pixels come from the features, not from the latents.
    """

    config: MingTokConfig  # type: ignore[assignment]

    def __init__(self, config: MingTokConfig) -> None:
        size = (config.image_size, config.image_size)
        super().__init__(config, InputSpec("image", 3, (-1.0, 1.0), size, config.patch_size), config.quantizer)
        self.grid, self.parts = config.image_size // config.patch_size, config.patch_size // config.pixel_patch_size
        dim, pixels = config.quantizer.dim, config.pixels.width
        self.encoder = Encoder(config)
        self.from_codes = nn.Linear(dim, config.semantic.width)
        self.semantic = nn.ModuleList(_gated_block(config.semantic) for _ in range(config.semantic.layers))
        self.semantic_norm = nn.LayerNorm(config.semantic.width, eps=1e-6)
        self.to_parts = nn.Linear(config.semantic.width, pixels * self.parts**2)
        self.pixels = nn.ModuleList(
            TransformerBlock(pixels, config.pixels.heads, MLP(pixels, 4 * pixels), eps=1e-6)
            for _ in range(config.pixels.layers)
        )
        self.pixel_norm = nn.LayerNorm(pixels, eps=1e-6)
        self.to_pixels = nn.Linear(pixels, 3 * config.pixel_patch_size**2)

    def latent(self, x: Tensor) -> Tensor:
        return (self.encoder(x) - self.config.latent_mean) / self.config.latent_scale

    def features(self, codes: Tensor) -> Tensor:
        """Codes (B, g, g, D) -> what they mean (B, g, g, width), each in the light of those before it alone."""
        z = (codes * self.config.latent_scale + self.config.latent_mean).flatten(1, 2)
        width = self.config.semantic.width
        x = self.from_codes(z) + z[..., torch.arange(width, device=z.device) * z.shape[-1] // width]
        earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for block in self.semantic:
            x = block(x, mask=earlier)
        return self.semantic_norm(x).unflatten(1, codes.shape[1:3])

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.paint(self.features(codes))

    def paint(self, features: Tensor) -> Tensor:
        """Features (B, g, g, width) -> images (B, 3, S, S)."""
        parts = image_of(self.to_parts(features).flatten(1, 2), self.parts, (self.grid, self.grid))
        x = parts.flatten(2).mT
        for block in self.pixels:
            x = block(x)
        side = self.grid * self.parts
        return image_of(self.to_pixels(self.pixel_norm(x)), self.config.pixel_patch_size, (side, side))


class Encoder(nn.Module):
    """Images (B, 3, S, S) -> latents (B, g, g, dim): a projection, and beside it means over the channels of a group."""

    def __init__(self, config: MingTokConfig) -> None:
        super().__init__()
        width, self.grid = config.encoder.width, config.image_size // config.patch_size
        self.patches = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.class_token = learned(width)
        self.positions = learned(self.grid**2 + 1, width)
        self.blocks = nn.ModuleList(_gated_block(config.encoder) for _ in range(config.encoder.layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_latent = nn.Linear(width, config.quantizer.dim)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).mT
        last = self.class_token.to(patches.dtype).expand(x.shape[0], 1, -1)  # of which the latents leave nothing
        x = torch.cat([patches, last], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        x = x[:, :-1]
        means = F.adaptive_avg_pool1d(x, self.to_latent.out_features)
        return (self.to_latent(F.gelu(self.norm(x))) + means).unflatten(1, (self.grid, self.grid))


def _gated_block(sizes: TransformerSizes) -> TransformerBlock:
    hidden = -(-(8 * sizes.width // 3) // 8) * 8  # two thirds of four times the width, to a multiple of 8
    return TransformerBlock(sizes.width, sizes.heads, GatedMLP(sizes.width, hidden, bias=True), eps=1e-6)


def config_from_original(meta: dict[str, Any]) -> MingTokConfig:
    """The config of the original's arguments; a head is 64 channels wide there, and a fixture states other widths."""
    kwargs, head = meta["original"]["kwargs"], meta["original"].get("head_width", 64)
    encoder, semantic, pixels = (kwargs[name] for name in ("low_level_encoder", "semantic_decoder", "pixel_decoder"))

    def sizes(stated: dict[str, Any], depth: str) -> TransformerSizes:
        return TransformerSizes(stated["embed_dim"], stated[depth], stated["embed_dim"] // head)

    return MingTokConfig(
        image_size=encoder["img_size"],
        patch_size=encoder["patch_size"],
        pixel_patch_size=pixels["patch_size"],
        encoder=sizes(encoder, "depth"),
        semantic=sizes(semantic, "decoder_depth"),
        pixels=sizes(pixels, "decoder_depth"),
        latent_mean=kwargs.get("mean", 0.0),
        latent_scale=kwargs.get("scaling_factor", 1.0),
        quantizer=DimensionWiseConfig(dim=encoder["out_dim"], bits=6, limit=3.0, deviations=3.0),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """None: the original's latents are continuous."""
    return {}


def _blocks(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.blocks.0.{{}}.attn.*": f"{own}.{{}}.attention.*",
        f"{published}.blocks.0.{{}}.mlp.w3.*": f"{own}.{{}}.mlp.fc2.*",
        f"{published}.blocks.0.{{}}.*": f"{own}.{{}}.*",
    }


def _gates_and_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published file has both halves of a gated layer in one."""
    found = {name: value for name, value in state.items() if ".mlp.w12." not in name}
    for name in state.keys() - found.keys():
        halves = [name.replace(".w12.", part) for part in (".fc1.", ".fc3.")]
        found |= zip(halves, state[name].chunk(2))
    return found


KEY_MAP = KeyMap(
    {
        "low_level_encoder.cls_token": "encoder.class_token",
        "low_level_encoder.pos_embed": "encoder.positions",
        "low_level_encoder.patch_embed.proj.*": "encoder.patches.*",
        **_blocks("low_level_encoder", "encoder.blocks"),
        "low_level_encoder.out_norm.*": "encoder.norm.*",
        "low_level_encoder.out_proj.*": "encoder.to_latent.*",
        "semantic_decoder.in_proj.*": "from_codes.*",
        **_blocks("semantic_decoder", "semantic"),
        "semantic_decoder.norm.*": "semantic_norm.*",
        "sem_to_pix.*": "to_parts.*",
        **_blocks("pixel_decoder", "pixels"),
        "pixel_decoder.norm.*": "pixel_norm.*",
        "pixel_decoder.head.*": "to_pixels.*",
        "target_backbone.*": None,  # the teacher of its training
    },
    transforms={"encoder.class_token": torch.flatten, "encoder.positions": lambda positions: positions[0]},
    finish=_gates_and_values,
)


# -- training ------------------------------------------------------------------------------------------------------


def semantic_teacher(config: MingTokConfig, weights: Path | None = None) -> PatchFeatures:
    """A frozen teacher of the semantic features, of their width; which one the paper's is, is not known.

    Args:
        config: of the model.
        weights: a file in timm's layout; None resolves the published ones of DINOv2 ViT-L/14, whose sizes are those of
            the published semantic decoder.

    Raises:
        CheckpointError: weights of other sizes than `config.semantic`.
        zoo.hub.HubError: weights that cannot be had.
    """
    grid = config.image_size // config.patch_size
    return dinov2_patches("vit_large_patch14_dinov2.lvd142m", config.semantic, grid, (-1.0, 1.0), weights)


def semantic_loss(model: MingTok, features: Tensor, codes: Tensor) -> Tensor:
    """1 - cosine of the teacher's features (B, g, g, width) and those that the model makes of codes (B, g, g, D)."""
    return (1 - F.cosine_similarity(model.features(codes).float(), features.float(), dim=-1)).mean()
