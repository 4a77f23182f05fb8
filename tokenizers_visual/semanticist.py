"""Semanticist: tokens ordered like principal components, each adding to those before it, and a diffusion decoder.

Paper: arXiv 2503.08685. Original: visual-gen/semanticist (MIT), whose tokens are continuous; here each of their
numbers, which have unit variance, is rounded to a bin of the normal distribution. Its weights were not found. Sampling
is deterministic here, and does not use the learned variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.base_autoencoder import VariationalBase, VariationalBaseConfig
from zoo.layers.constants import HasConstants
from zoo.layers.ddim import (
    ddim,
    denoising,
    item_noise,
    noised,
    signal_share,
    trailing_times,
    variance_bound,
)
from zoo.layers.diffusion_transformer import GridPatches, Modulation, PlainNorm, WaveEmbedding, image_of, modulate
from zoo.layers.mmdit import tanh_mlp
from zoo.layers.query_transformer import TransformerSizes
from zoo.layers.transformer import MLP, SelfAttention, TransformerBlock
from zoo.losses.patch_features import PatchFeatures, dinov2_patches
from zoo.prefix import PrefixTokenizer
from zoo.quantizers import DimensionWiseConfig, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output

_TRAIN_STEPS = 1000


@dataclass(frozen=True)
class SemanticistConfig(Config):
    """Sizes of the network; the defaults are those of the paper's L model."""

    image_size: int = 256  # pixels a side
    num_tokens: int = 256
    patch_size: int = 16  # pixels, of the encoder
    encoder: TransformerSizes = TransformerSizes(width=768, layers=12, heads=12)
    base: VariationalBaseConfig = VariationalBaseConfig()
    latent_patch: int = 2  # latents of the base a side, of the decoder
    decoder: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    steps: int = 25  # of sampling, unless `decode` is told another number
    guidance_scale: float = 3.0  # of the difference that the tokens make; 1: no guidance
    quantizer: QuantizerConfig = DimensionWiseConfig(dim=16, bits=6, limit=3.0, deviations=3.0)

    def __post_init__(self) -> None:
        for multiple in (self.patch_size, self.base.stride * self.latent_patch):
            wanted = f"an image_size that is a multiple of {multiple}"
            self.require(self.image_size % multiple == 0, wanted, self.image_size)
        self.require(self.num_tokens >= 1, "num_tokens >= 1", self.num_tokens)
        self.require(1 <= self.steps <= _TRAIN_STEPS, f"1 to {_TRAIN_STEPS} steps", self.steps)
        self.require(self.quantizer.dim >= 2, "tokens of at least 2 numbers, which are normalised", self.quantizer.dim)


@register("semanticist")
class Semanticist(PrefixTokenizer):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> 1 to `num_tokens` tokens, any prefix of which decodes.

    `decode` takes noise away (of the base's latents: `noise`, or by a `seed`, 0 if none is given, a list with one for
    each item) in `steps` steps, with `guidance_scale`. In training a pass gives the loss `diffusion`, the squared error
    of the predicted noise for prefixes of random length, the loss `variational`, which teaches the variances alone, and
    the image that a single step from its time leads to.
    """

    decode_options = frozenset({"steps", "guidance_scale", "seed", "noise"})
    own_losses = frozenset({"diffusion", "variational"})
    config: SemanticistConfig

    def __init__(self, config: SemanticistConfig) -> None:
        size = config.image_size
        super().__init__(config, InputSpec("image", 3, (0.0, 1.0), (size, size)), config.quantizer)
        self.base = VariationalBase(config.base).requires_grad_(False)
        self.encoder = Encoder(config)
        self.to_latent = nn.Linear(config.encoder.width, config.quantizer.dim)
        self.decoder = Decoder(config)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.num_tokens,)

    def latent(self, x: Tensor) -> Tensor:
        """(B, num_tokens, D), each token with mean 0 and variance 1 over its numbers."""
        z = self.to_latent(self.encoder(x)).float()
        z = z - z.mean(-1, keepdim=True)
        return (z / z.std(-1, keepdim=True).clamp_min(1e-6)).to(x.dtype)

    def reconstruct(self, codes: Tensor, lengths: Tensor | None = None, **options: Any) -> Tensor:
        """Code vectors (B, k, D) -> images; options as those of `sample`."""
        return self._image_of(self.sample(codes, lengths, **options))

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        base = self.config.base
        return (codes.shape[0], base.dim, *(self.config.image_size // base.stride,) * 2)

    def sample(
        self,
        codes: Tensor,
        lengths: Tensor | None = None,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | list[int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Code vectors (B, k, D), of each item the first `lengths` (B,) -> the base's latents (B, dim, h, w)."""
        config = self.config
        times = trailing_times(_TRAIN_STEPS, steps := config.steps if steps is None else steps)
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        noise = item_noise(self.noise_shape(codes), seed, noise)
        tokens = self.decoder.tokens(codes, lengths)
        if scale != 1:
            tokens = torch.cat([tokens, self.decoder.tokens(codes[:, :0])])

        def predict(x: Tensor, time: Tensor) -> Tensor:
            repeats = 1 if scale == 1 else 2
            found, _ = self.decoder(x.to(codes.dtype).repeat(repeats, 1, 1, 1), time.repeat(repeats), tokens)
            if scale == 1:
                return found
            given, without = found.unflatten(0, (2, -1))
            return without + scale * (given - without)

        share = signal_share("linear", _TRAIN_STEPS)
        return ddim(predict, noise.to(codes), share, times, _TRAIN_STEPS // steps, "epsilon", clip=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Output:
        self.spec.check_shape(x)
        latent = self.latent(x)
        quantized = self.quantizer(latent)
        codes = quantized.codes.to(latent.dtype)
        if not self.training:
            return Output(self.reconstruct(codes, lengths), latent, quantized)
        count, side, dim = len(x), self.config.image_size // self.config.base.stride, self.config.base.dim
        sample = torch.randn(count, side, side, dim, device=x.device, dtype=x.dtype)  # of the posterior
        clean = self.base.latent(2 * x - 1, sample).movedim(-1, 1)
        kept = torch.randint(1, self.config.num_tokens + 1, (count,), device=x.device) if lengths is None else lengths
        tokens, time = self.decoder.tokens(codes, kept), torch.randint(0, _TRAIN_STEPS, (count,), device=x.device)
        noise, share = torch.randn_like(clean), signal_share("linear", _TRAIN_STEPS)
        noisy = noised(clean, noise, time, share)
        found, spread = self.decoder(noisy, time, tokens)
        quantized.losses["diffusion"], predicted = denoising(lambda *_: found, clean, noise, time, share, "epsilon")
        quantized.losses["variational"] = variance_bound(clean, noisy, found, spread, time, _TRAIN_STEPS)
        return Output(self._image_of(predicted), latent, quantized)

    def _image_of(self, latent: Tensor) -> Tensor:
        return self.base.decode(latent.movedim(1, -1) / self.config.base.scale) / 2 + 0.5


def _mask(seen: int, queries: int) -> Tensor:
    """Whom each place sees: all see the first `seen`, and a query those before it and itself."""
    mask = torch.ones(seen + queries, seen + queries, dtype=torch.bool).tril()
    mask[:seen, :seen] = True
    return mask


class Encoder(HasConstants):
    """Images -> (B, num_tokens, width): a token sees the whole image and the tokens up to itself, the image none."""

    mask: Tensor

    def __init__(self, config: SemanticistConfig) -> None:
        super().__init__()
        width, count = config.encoder.width, config.num_tokens
        patches = (config.image_size // config.patch_size) ** 2
        self.patches = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(1, count, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + patches + count, width) * 0.02)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.encoder.heads, MLP(width, 4 * width), eps=1e-6)
            for _ in range(config.encoder.layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_constant("mask", _mask, 1 + patches, count)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).mT
        given = (self.class_token, self.queries)
        first, queries = (part.expand(x.shape[0], -1, -1).to(patches.dtype) for part in given)
        x = torch.cat([first, patches, queries], dim=1) + self.positions
        for block in self.blocks:
            x = block(x, mask=self.mask)
        return self.norm(x[:, -queries.shape[1] :])


class Block(nn.Module):
    """A transformer's block whose norms a condition (B, width) shifts and scales, and whose branches it gates."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = PlainNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads)
        self.mlp = tanh_mlp(width)
        self.modulation = Modulation(width, 6)
        nn.init.zeros_(self.modulation[1].weight)  # each block at first is the identity
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, :, None].unbind(1)
        x = x + gate1 * self.attention(modulate(self.norm(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm(x), shift2, scale2))


class Decoder(nn.Module):
    """Noisy latents of the base (B, dim, h, w), times (B,) and tokens (B, num_tokens, width) -> the noise in them, and
    the spread of the variance of a step (see `variance_bound`), of the same shape.
    """

    def __init__(self, config: SemanticistConfig) -> None:
        super().__init__()
        width, dim, size = config.decoder.width, config.base.dim, config.latent_patch
        self.size, self.side = size, config.image_size // (config.base.stride * size)
        self.patches = GridPatches(dim, width, size, self.side)
        self.null = nn.Parameter(torch.zeros(1, config.num_tokens, config.quantizer.dim))
        self.from_codes = nn.Linear(config.quantizer.dim, width)
        self.time = WaveEmbedding(width)
        self.blocks = nn.ModuleList(Block(width, config.decoder.heads) for _ in range(config.decoder.layers))
        self.norm = PlainNorm(width, eps=1e-6)
        self.modulation = Modulation(width, 2)
        self.to_noise = nn.Linear(width, size**2 * 2 * dim)

    def tokens(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes (B, k, D), of each item the first `lengths` (B,), and a learned code in the place of each other one."""
        count = self.null.shape[1]
        if codes.shape[1] > count:
            raise ValueError(f"expected at most {count} tokens, got {codes.shape[1]}")
        last = codes.shape[1] if lengths is None else lengths.to(codes.device)[:, None]
        kept = (torch.arange(count, device=codes.device) < last)[..., None]
        whole = F.pad(codes, (0, 0, 0, count - codes.shape[1]))
        return self.from_codes(torch.where(kept, whole, self.null.to(codes.dtype)))

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        patches, condition = self.patches(x), self.time(time)
        count = patches.shape[1]
        x = torch.cat([patches, tokens], dim=1)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, :, None].unbind(1)
        found = self.to_noise(modulate(self.norm(x[:, :count]), shift, scale))
        noise, spread = image_of(found, self.size, (self.side,) * 2).chunk(2, dim=1)
        return noise, spread


# -- training ------------------------------------------------------------------------------------------------------


def alignment_teacher(sizes: TransformerSizes, weights: Path | None = None) -> PatchFeatures:
    """The frozen DINOv2 that features of the decoder follow, of 16 x 16 patches.

    Args:
        sizes: of the network.
        weights: a file in timm's layout; None resolves the published ones of DINOv2 ViT-B/14.

    Raises:
        CheckpointError: weights of other sizes.
        zoo.hub.HubError: weights that cannot be had.
    """
    return dinov2_patches("vit_base_patch14_dinov2.lvd142m", sizes, 16, (0.0, 1.0), weights, antialias=False)
