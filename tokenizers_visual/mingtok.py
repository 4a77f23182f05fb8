"""MingTok: latents of an image, read one after the other into features that both understand it and paint it.

Paper: Ming-UniVision, arXiv 2510.06590. Original: inclusionAI/Ming-UniVision (MIT), whose latents are continuous; here
each of their numbers is rounded to a bin of the normal distribution. The numbers of layers and the names of the
published weights (inclusionAI/MingTok-Vision) are not known, so that these do not load.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import checkpoint, hub
from zoo.config import Config
from zoo.layers.constants import HasConstants, per_channel
from zoo.layers.diffusion_transformer import image_of
from zoo.layers.query_transformer import TransformerSizes, learned
from zoo.layers.transformer import MLP, TransformerBlock
from zoo.quantizers import DimensionWiseConfig, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class MingTokConfig(Config):
    """Sizes of the networks; the paper's are those of image, patches, latents and the semantic width."""

    image_size: int = 512  # pixels a side
    patch_size: int = 32
    pixel_patch_size: int = 16  # of the decoder of pixels, which divides a patch into smaller ones
    encoder: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    semantic: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    pixels: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    latent_mean: float = 0.0  # these two bring the latents to mean 0 and variance 1
    latent_scale: float = 1.0
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
        dim, cells = config.quantizer.dim, self.grid**2
        self.patches = nn.Conv2d(3, config.encoder.width, config.patch_size, stride=config.patch_size)
        self.encoder = Transformer(config.encoder, cells)
        self.to_latent = nn.Linear(config.encoder.width, dim)
        self.from_codes = nn.Linear(dim, config.semantic.width)
        self.semantic = Transformer(config.semantic, cells, causal=True)
        self.to_parts = nn.Linear(config.semantic.width, config.pixels.width * self.parts**2)
        self.pixels = Transformer(config.pixels, cells * self.parts**2)
        self.to_pixels = nn.Linear(config.pixels.width, 3 * config.pixel_patch_size**2)

    def latent(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        z = self.to_latent(self.encoder(patches.flatten(2).mT)).unflatten(1, patches.shape[2:])
        return (z - self.config.latent_mean) / self.config.latent_scale

    def features(self, codes: Tensor) -> Tensor:
        """Codes (B, g, g, D) -> what they mean (B, g, g, width), each in the light of those before it alone."""
        sequence = (codes * self.config.latent_scale + self.config.latent_mean).flatten(1, 2)
        return self.semantic(self.from_codes(sequence)).unflatten(1, codes.shape[1:3])

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.paint(self.features(codes))

    def paint(self, features: Tensor) -> Tensor:
        """Features (B, g, g, width) -> images (B, 3, S, S)."""
        config, side = self.config, self.grid * self.parts
        parts = image_of(self.to_parts(features).flatten(1, 2), self.parts, (self.grid, self.grid))
        patches = self.to_pixels(self.pixels(parts.flatten(2).mT))
        return image_of(patches, config.pixel_patch_size, (side, side))


class Transformer(nn.Module):
    """Learned positions, pre-norm blocks with layer scale, as DINOv2's, and a norm: (B, N, width) -> the same."""

    def __init__(self, sizes: TransformerSizes, positions: int, *, causal: bool = False) -> None:
        super().__init__()
        width, self.causal = sizes.width, causal
        self.positions = learned(positions, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, sizes.heads, MLP(width, 4 * width), eps=1e-6, layer_scale=1.0)
            for _ in range(sizes.layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=x.device).tril() if self.causal else None
        x = x + self.positions[:count]
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


# -- training ------------------------------------------------------------------------------------------------------


class SemanticTeacher(HasConstants):
    """A DINOv2 whose patches are as many as the tokens: images (B, 3, S, S) in [-1, 1] -> features (B, g, g, width)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: MingTokConfig) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        sizes, self.grid = config.semantic, config.image_size // config.patch_size
        self.network = VisionTransformer(
            14 * self.grid, 14, num_classes=0, embed_dim=sizes.width, depth=sizes.layers, num_heads=sizes.heads,
            init_values=1.0,
        )  # fmt: skip
        self.register_constant("mean", per_channel, (0.485, 0.456, 0.406))
        self.register_constant("deviation", per_channel, (0.229, 0.224, 0.225))

    def forward(self, x: Tensor) -> Tensor:
        side = (14 * self.grid,) * 2
        with torch.autocast(x.device.type, enabled=False):
            small = F.interpolate(x.float(), side, mode="bicubic", antialias=True)
        features = self.network.forward_features(((small + 1) / 2 - self.mean) / self.deviation)
        return features[:, 1:].unflatten(1, (self.grid, self.grid))


def semantic_teacher(config: MingTokConfig, weights: Path | None = None) -> SemanticTeacher:
    """A frozen teacher of the semantic features, of their width; which one the paper's is, is not known.

    Args:
        config: of the model.
        weights: a file in timm's layout; None resolves the published ones of DINOv2 ViT-L/14, whose sizes are those of
            the paper's semantic decoder.

    Raises:
        CheckpointError: weights of other sizes than `config.semantic`.
        zoo.hub.HubError: weights that cannot be had.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    source = hub.WeightSource(repo="timm/vit_large_patch14_dinov2.lvd142m", file="model.safetensors")
    state = checkpoint.read(weights or hub.resolve(source, name="DINOv2 ViT-L/14"))
    teacher = SemanticTeacher(config)
    checkpoint.load_into(teacher.network, checkpoint_filter_fn(state, teacher.network, antialias=True))
    return teacher.requires_grad_(False).eval()


def semantic_loss(model: MingTok, features: Tensor, codes: Tensor) -> Tensor:
    """1 - cosine of the teacher's features (B, g, g, width) and those that the model makes of codes (B, g, g, D)."""
    return (1 - F.cosine_similarity(model.features(codes).float(), features.float(), dim=-1)).mean()
