"""FlexTok: ordered tokens, of which any first ones give an image, by a flow that starts from noise.

Paper: arXiv 2502.13967; norm guidance (APG): arXiv 2410.02416. Original: apple/ml-flextok (non-commercial licences).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.flextok_blocks import Block, plain_norm, through
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.interop.diffusers import KEY_MAP as DIFFUSERS_KEY_MAP
from zoo.layers.base_autoencoder import VariationalBase, VariationalBaseConfig
from zoo.layers.ddim import item_noise
from zoo.layers.diffusion_transformer import WaveEmbedding, flow_times, image_of, interpolate
from zoo.layers.positions import sine_grid
from zoo.layers.query_transformer import TransformerSizes
from zoo.prefix import PrefixTokenizer
from zoo.quantizers import FiniteScalarConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output


@dataclass(frozen=True)
class FlexTokConfig(Config):
    """Sizes of the network; the defaults are those of the published smallest model, as far as they are known."""

    image_size: int = 256  # pixels a side
    num_tokens: int = 256
    patch_size: int = 2  # latents of the base a side
    encoder: TransformerSizes = TransformerSizes(width=768, layers=12, heads=12)
    decoder: TransformerSizes = TransformerSizes(width=768, layers=12, heads=12)
    separate_modulation: bool = True  # the decoder's blocks modulate patches and tokens apart
    base: VariationalBaseConfig = VariationalBaseConfig(
        dim=16, channel_multipliers=(1, 2, 4, 4), attention=(False,) * 4, scale=1.0
    )
    null_probability: float = 0.0  # of an item to be trained without its tokens
    steps: int = 20  # of sampling, unless `decode` is told another number
    guidance_scale: float = 7.5  # of the difference that the tokens make; 1: no guidance
    norm_guidance: bool = True  # APG, else plain classifier-free guidance
    quantizer: QuantizerConfig = FiniteScalarConfig(levels=(8, 8, 8, 5, 5, 5))

    def __post_init__(self) -> None:
        multiple = self.base.stride * self.patch_size
        self.require(
            self.image_size % multiple == 0, f"an image_size that is a multiple of {multiple}", self.image_size
        )
        counts = (self.num_tokens, self.steps)
        self.require(min(counts) >= 1, "num_tokens and steps >= 1", counts)
        self.require(0 <= self.null_probability < 1, "a null_probability in [0, 1)", self.null_probability)
        widths = (self.encoder.width, self.decoder.width)
        self.require(all(width % 4 == 0 for width in widths), "widths that are multiples of 4", widths)


@register("flextok")
class FlexTok(PrefixTokenizer):
    """Images (B, 3, S, S) in [-1, 1] of the configured size -> 1 to `num_tokens` tokens, any prefix of which decodes.

    `decode` follows the velocity from noise (of the base's latents; or a `seed`, 0 if none is given, a list with one
    for each item) in `steps` equal steps, with `guidance_scale`. In training a pass gives the loss `flow`, the squared
    distance of velocities, for prefixes of random length, and the image that a single step from its time leads to.
    """

    decode_options = frozenset({"steps", "guidance_scale", "seed", "noise"})
    own_losses = frozenset({"flow"})
    config: FlexTokConfig

    def __init__(self, config: FlexTokConfig) -> None:
        size, stride = config.image_size, config.base.stride
        multiple = stride * config.patch_size
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), size=(size, size), multiple=multiple)
        super().__init__(config, spec, config.quantizer)
        self.base = VariationalBase(config.base).requires_grad_(False)  # as published, it rests in training
        self.encoder = _Encoder(config, size // multiple)
        self.to_latent = nn.Linear(config.encoder.width, config.quantizer.dim)
        self.decoder = _Decoder(config, size // multiple)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.num_tokens,)

    def latent(self, x: Tensor) -> Tensor:
        return self.latent_of(self.base.latent(x))

    def latent_of(self, base_latent: Tensor) -> Tensor:
        """The base's latents (B, h, w, dim) -> latents (B, num_tokens, D)."""
        return self.to_latent(F.layer_norm(self.encoder(base_latent), (self.config.encoder.width,)))

    def reconstruct(self, codes: Tensor, lengths: Tensor | None = None, **options: Any) -> Tensor:
        """Code vectors (B, k, D) -> images; options as those of `sample`."""
        return self.base.decode(self.sample(codes, lengths, **options) / self.config.base.scale)

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
        """Code vectors (B, k, D), of each item the first `lengths` (B,) -> the base's scaled latents (B, h, w, dim)."""
        config = self.config
        steps = config.steps if steps is None else steps
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        noise = item_noise(self.noise_shape(codes), seed, noise)
        x = noise.to(codes).movedim(1, -1)
        tokens = self.decoder.embed(codes, lengths)
        without = self.decoder.null(codes.shape[0]).to(tokens) if scale != 1 else None
        running: Tensor | None = None
        for place in flow_times(steps):
            time = torch.full((x.shape[0],), place, device=x.device)
            velocity = self.decoder(x, time, tokens)
            if without is not None:
                difference = velocity - self.decoder(x, time, without)
                if config.norm_guidance:
                    difference, running = _norm_guided(velocity, difference, running)
                velocity = velocity + (scale - 1) * difference
            x = x - velocity / steps
        return x

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Output:
        self.spec.check_shape(x)
        base_latent = self.base.latent(x)
        latent = self.latent_of(base_latent)
        quantized = self.quantizer(latent)
        codes = quantized.codes.to(latent.dtype)
        if not self.training:
            return Output(self.reconstruct(codes, lengths), latent, quantized)
        count = len(x)
        kept = torch.randint(1, self.config.num_tokens + 1, (count,), device=x.device) if lengths is None else lengths
        null = torch.rand(count, device=x.device) < self.config.null_probability
        share = torch.randn(count, device=x.device).sigmoid()
        noise = torch.randn_like(base_latent)
        noised, velocity = self.flow(base_latent, codes, share, noise, kept, null)
        quantized.losses["flow"] = F.mse_loss(velocity.float(), (noise - base_latent).float())
        predicted = noised - share.to(noised)[:, None, None, None] * velocity
        return Output(self.base.decode(predicted / self.config.base.scale), latent, quantized)

    def flow(
        self, base_latent: Tensor, codes: Tensor, share: Tensor, noise: Tensor, kept: Tensor, null: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The base's latents with a share (B,) of noise, and their predicted velocities, both (B, h, w, dim).

        Args:
            kept: (B,) how many of the first tokens are seen.
            null: (B,) bool, whether none is.
        """
        noised = interpolate(base_latent, noise, share)
        tokens = self.decoder.embed(codes, kept)
        tokens = torch.where(null[:, None, None], self.decoder.null(len(codes)).to(tokens), tokens)
        return noised, self.decoder(noised, share, tokens)


def _norm_guided(velocity: Tensor, difference: Tensor, running: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is orthogonal to the velocity of a difference with momentum and a bounded norm; and the momentum."""
    running = difference if running is None else difference - 0.5 * running
    bounded = running * (2.5 / running.flatten(1).norm(dim=1)).clamp(max=1.0)[:, None, None, None]
    wide = torch.float32 if velocity.device.type == "mps" else torch.float64
    direction = F.normalize(velocity.flatten(1).to(wide), dim=1)
    flat = bounded.flatten(1).to(wide)
    across = flat - (flat * direction).sum(1, keepdim=True) * direction
    return across.to(velocity.dtype).view_as(velocity), running


class _Patches(nn.Module):
    """The base's latents (B, h, w, dim) -> patches (B, h w / p^2, width), with the positions of their grid."""

    positions: Tensor

    def __init__(self, config: FlexTokConfig, width: int, grid: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(config.patch_size**2 * config.base.dim, width)
        self.register_buffer("positions", sine_grid(width, grid)[0].flatten(1).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        p = self.patch_size
        cells = x.unflatten(1, (-1, p)).unflatten(3, (-1, p)).transpose(2, 3)  # (B, h / p, w / p, p, p, dim)
        return self.proj(cells.flatten(3).flatten(1, 2)) + self.positions.to(x.dtype)


class _Encoder(nn.Module):
    """The base's latents -> (B, num_tokens, width); a token sees all patches, and tokens up to itself."""

    def __init__(self, config: FlexTokConfig, grid: int) -> None:
        super().__init__()
        width = config.encoder.width
        self.patches = _Patches(config, width, grid)
        self.registers = nn.Parameter(torch.randn(config.num_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.encoder.heads) for _ in range(config.encoder.layers))

    def forward(self, base_latent: Tensor) -> Tensor:
        patches = self.patches(base_latent)
        x = torch.cat([patches, self.registers.expand(patches.shape[0], -1, -1).to(patches.dtype)], 1)
        return through(self.blocks, x, slice(patches.shape[1], None), seen=patches.shape[1])


class _Decoder(nn.Module):
    """Noisy latents of the base, their time, and tokens -> the velocity."""

    def __init__(self, config: FlexTokConfig, grid: int) -> None:
        super().__init__()
        width = config.decoder.width
        self.grid, self.patch_size, self.count = grid, config.patch_size, config.num_tokens
        self.from_codes = nn.Linear(config.quantizer.dim, width)
        self.positions = nn.Parameter(torch.randn(config.num_tokens, width) * 0.02)
        self.dropped_token = nn.Parameter(torch.randn(width) * 0.02)
        self.null_token = nn.Parameter(torch.randn(width) * 0.02)
        self.patches = _Patches(config, width, grid)
        self.time = WaveEmbedding(width, base=256.0)
        modulations = 2 if config.separate_modulation else 1
        self.blocks = nn.ModuleList(
            Block(width, config.decoder.heads, modulations) for _ in range(config.decoder.layers)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.to_velocity = nn.Linear(width, config.patch_size**2 * config.base.dim)

    def embed(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes (B, k, D) -> tokens (B, num_tokens, width), those beyond the given ones replaced by a learned one."""
        count = codes.shape[1]
        if not 1 <= count <= self.count:
            raise ValueError(f"expected 1 to {self.count} tokens, got {count}")
        tokens = self.from_codes(F.pad(codes, (0, 0, 0, self.count - count))) + self.positions
        lengths = torch.full((codes.shape[0],), count, device=codes.device) if lengths is None else lengths
        given = torch.arange(self.count, device=codes.device) < lengths.to(codes.device)[:, None]
        return torch.where(given[..., None], tokens, self.dropped_token.to(tokens.dtype))

    def null(self, batch: int) -> Tensor:
        """Tokens that tell nothing, (B, num_tokens, width)."""
        return self.null_token.expand(batch, self.count, -1)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """(B, h, w, dim), times (B,) from 0 (data) to 1 (noise), tokens (B, num_tokens, width) -> (B, h, w, dim)."""
        condition = self.time(1000 * time)
        patches = self.patches(x)
        sequence = torch.cat([patches, tokens.to(patches.dtype)], 1)
        parts = (patches.shape[1], tokens.shape[1])
        patches = through(self.blocks, sequence, slice(parts[0]), condition, parts=parts)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, -1)
        patches = self.to_velocity(plain_norm(patches) * (1 + scale) + shift)
        return image_of(patches, self.patch_size, (self.grid, self.grid)).movedim(1, -1)


def config_from_original(meta: dict[str, Any]) -> FlexTokConfig:
    """The config of a fixture's sizes, or of what a published listing tells; the released config was not at hand."""
    kwargs = meta["original"]["kwargs"]
    if "encoder_depth" in kwargs:
        sizes = [
            TransformerSizes(
                kwargs[f"{side}_width"], kwargs[f"{side}_depth"], kwargs[f"{side}_width"] // kwargs["head_dim"]
            )
            for side in ("encoder", "decoder")
        ]
        return FlexTokConfig(kwargs["image_size"], kwargs["num_registers"], encoder=sizes[0], decoder=sizes[1])
    stated = kwargs["sizes"]
    vae = stated["vae"]
    if len(set(stated["patch"])) != 1:
        raise ValueError(f"expected square patches, got {stated['patch']}")
    widths = vae["block_out_channels"]
    return FlexTokConfig(
        image_size=stated["img"],
        num_tokens=stated["N"],
        patch_size=stated["patch"][0],
        encoder=TransformerSizes(stated["enc_dim"], stated["enc_depth"], stated["enc_dim"] // stated["head_dim"]),
        decoder=TransformerSizes(stated["dec_dim"], stated["dec_depth"], stated["dec_dim"] // stated["head_dim"]),
        separate_modulation=stated["exp"] == 2,
        base=VariationalBaseConfig(
            dim=stated["zc"],
            channels=widths[0],
            channel_multipliers=tuple(width // widths[0] for width in widths),
            blocks=vae["layers_per_block"],
            norm_groups=vae["norm_num_groups"],
            attention=(False,) * len(widths),
            scale=stated["sf"],
        ),
        quantizer=FiniteScalarConfig(levels=tuple(stated["levels"])),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer has none."""
    return {}


def _blocks(published: str, own: str) -> dict[str, str]:
    key, block = f"{published}.blocks.{{}}", f"{own}.blocks.{{}}"
    return {
        **{f"{key}.attn.w{part}.*": f"{block}.attention.{part}.*" for part in "qkv"},
        f"{key}.attn.proj.*": f"{block}.attention.proj.*",
        f"{key}.mlp.*": f"{block}.mlp.*",
        f"{key}.adaLN_modulation.1.*": f"{block}.modulation.*",
    }


KEY_MAP = KeyMap(
    {
        **{
            f"vae.vae.{key}": f"base.{own}"
            for key, own in DIFFUSERS_KEY_MAP.patterns.items()
            if key.startswith(("encoder.", "decoder."))
        },
        "vae.vae.quant_conv.*": "base.to_posterior.*",
        "vae.vae.post_quant_conv.*": "base.from_latent.*",
        "encoder.module_dict.enc_patch_emb.patch_proj.*": "encoder.patches.proj.*",
        "encoder.module_dict.enc_posemb_module.posembs": "encoder.patches.positions",
        "encoder.module_dict.enc_register_module.registers": "encoder.registers",
        **_blocks("encoder.module_dict.enc_transformer", "encoder"),
        "encoder.module_dict.enc_to_latents.proj.*": "to_latent.*",
        "decoder.module_dict.dec_from_latents.proj.*": "decoder.from_codes.*",
        "decoder.module_dict.dec_registers_posemb_module.posembs": "decoder.positions",
        "decoder.module_dict.dec_nested_dropout.dropout_mask_token": "decoder.dropped_token",
        "decoder.module_dict.dec_latent_dropout.nullcond": "decoder.null_token",
        "decoder.module_dict.dec_noise_patch_emb.patch_proj.*": "decoder.patches.proj.*",
        "decoder.module_dict.dec_patches_posemb_module.posembs": "decoder.patches.positions",
        "decoder.module_dict.dec_time_embedder.mlp.{}.*": "decoder.time.{}.*",
        **_blocks("decoder.module_dict.dec_transformer", "decoder"),
        "decoder.module_dict.dec_to_patches.adaLN_modulation.1.*": "decoder.modulation.*",
        "decoder.module_dict.dec_to_patches.proj.*": "decoder.to_velocity.*",
    },
    transforms={
        **DIFFUSERS_KEY_MAP.transforms,
        "*.patches.positions": lambda table: table[0].flatten(1).T,
        "decoder.positions": lambda table: table[0, 0].T,
    },
)
