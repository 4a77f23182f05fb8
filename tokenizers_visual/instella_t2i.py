"""Instella-T2I's tokenizer: a row of binary tokens whose number does not grow with the image.

Paper: arXiv 2506.21022. Original: AMD-AGI/Instella-T2I (research licence).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.inference import is_plain
from zoo.layers.packed import Linear, can_be_packed, linear
from zoo.layers.query_transformer import TransformerSizes
from zoo.layers.transformer import GatedMLP, RMSNorm, TransformerBlock, through
from zoo.ops.attention import attend
from zoo.quantizers import BernoulliConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Extent, Tokens

Rotation = tuple[Tensor, Tensor]  # cosines and sines (L, width of a head) of a sequence's positions


@dataclass(frozen=True)
class InstellaT2IConfig(Config):
    """Sizes of the network; the defaults are those of the repository's example."""

    patch_size: int = 16
    num_tokens: int = 128
    encoder: TransformerSizes = TransformerSizes(width=768, layers=12, heads=12)
    decoder: TransformerSizes = TransformerSizes(width=1024, layers=16, heads=16)
    halve_after: tuple[int, ...] = (7,)  # blocks of the encoder after which the grid is halved
    double_after: tuple[int, ...] = (7,)  # blocks of the decoder after which the grid is doubled
    rotary_widths: tuple[int, int, int] = (8, 28, 28)  # of a head: for the place in the row, the grid's row and column
    position_size: int | None = None  # the grid is laid over that of an image of so many pixels a side; None: its own
    decoded_size: int = 1024  # pixels a side of images from tokens that do not tell their size
    quantizer: QuantizerConfig = BernoulliConfig(
        dim=768, bits=64, subtokens=2, temperature=0.1, uncertainty_of="probability"
    )

    def __post_init__(self) -> None:
        for side in (self.encoder, self.decoder):
            head = side.width // side.heads
            self.require(sum(self.rotary_widths) == head, f"rotary_widths of {head} in all", self.rotary_widths)
        self.require(all(width % 2 == 0 for width in self.rotary_widths), "even rotary_widths", self.rotary_widths)
        for blocks, side in ((self.halve_after, self.encoder), (self.double_after, self.decoder)):
            inside = all(0 <= block < side.layers for block in blocks)
            self.require(inside and len(blocks) in (1, 2), f"1 or 2 blocks of {side.layers}", blocks)
        fits = self.decoded_size % self.multiple == 0
        self.require(fits, f"a decoded_size that is a multiple of {self.multiple}", self.decoded_size)

    @property
    def multiple(self) -> int:
        """What the sides of images are multiples of."""
        return self.patch_size * 2 ** max(len(self.halve_after), len(self.double_after))


@register("instella_t2i")
class InstellaT2I(Tokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of 32 -> tokens (B, num_tokens), whatever the size."""

    layout = "sequence"
    config: InstellaT2IConfig

    def __init__(self, config: InstellaT2IConfig) -> None:
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=config.multiple)
        super().__init__(config, spec, config.quantizer)
        dim = config.quantizer.dim
        self.encoder = _Encoder(config)
        self.to_latent = nn.Linear(config.encoder.width, dim)
        self.from_codes = nn.Sequential(RMSNorm(dim, eps=1e-6), nn.Linear(dim, config.decoder.width))
        self.decoder = _Decoder(config)
        self.to_pixels = nn.Linear(config.decoder.width, 3 * config.patch_size**2)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.num_tokens,)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x))

    def reconstruct(self, codes: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        """Code vectors (B, num_tokens, D) -> images of `size` (H, W), multiples of 32; None: `decoded_size`."""
        patch = self.config.patch_size
        height, width = size or (self.config.decoded_size,) * 2
        if codes.shape[1] != self.config.num_tokens:
            raise ValueError(f"expected {self.config.num_tokens} tokens, got {codes.shape[1]}")
        features = self.decoder(self.from_codes(codes), (height // patch, width // patch))
        pixels = self.to_pixels(features).unflatten(-1, (patch**2, 3)).transpose(-1, -2).flatten(-2)
        return F.pixel_shuffle(pixels.movedim(-1, 1), patch)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        return self.reconstruct(codes, None if tokens.extent is None else self._padded(tokens.extent))

    def _padded(self, extent: Extent) -> tuple[int, ...]:
        """The one size after padding of all items."""
        sizes = {tuple(side + grow for side, grow in zip(size, self.spec.padding(size))) for size in extent.sizes}
        if len(sizes) != 1:
            raise ValueError(f"expected items of one size after padding, got {sorted(sizes)}; decode them apart")
        return sizes.pop()

    def forward(self, x: Tensor) -> Output:
        self.spec.check_shape(x)
        padded = self.pad(x)
        latent = self.latent(padded)
        quantized = self.quantizer(latent)
        signal = self.reconstruct(quantized.codes.to(latent.dtype), tuple(padded.shape[2:]))
        return Output(signal[..., : x.shape[2], : x.shape[3]], latent, quantized)


class _Attention(nn.Module):
    """Full attention with norms of each head's queries and keys, and rotary positions; no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (Linear(width, width, bias=False) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(width // heads, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, rotation: Rotation, *, kept: slice = slice(None)) -> Tensor:
        """(B, N, C) -> the same, of the `kept` positions alone."""
        parts = (self.q(x[:, kept]), self.k(x), self.v(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        cosines, sines = rotation
        q, k = rotate(self.norm_q(q), (cosines[kept], sines[kept])), rotate(self.norm_k(k), rotation)
        return self.proj(attend(q, k, v))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """(B, heads, L, C) with C channels paired i and i + C / 2.

    The tables hold each angle for two neighbours, so the two of a pair turn by angles of their own: as published.
    """
    cosines, sines = (table.to(x.dtype) for table in rotation)
    half = x.shape[-1] // 2
    turned = x * cosines
    turned[..., :half].addcmul_(x[..., half:], sines[:, :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sines[:, half:])
    return turned


def rotation(places: Tensor, widths: Sequence[int]) -> Rotation:
    """Places (L, axes), float64 -> the tables of rotary positions, each axis in its own part of the channels."""
    rates = [
        10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=places.device) / width) for width in widths
    ]
    angles = torch.cat([places[:, axis, None] * rate for axis, rate in enumerate(rates)], -1).repeat_interleave(2, -1)
    return angles.cos().float(), angles.sin().float()


class _Downsample(nn.Module):
    """Halves H and W by a convolution, plus the mean of 2 x 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.avg_pool2d(x, 2)


class _Upsample(nn.Module):
    """Doubles H and W by a convolution whose channels become 2 x 2 positions, plus the nearest neighbour."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self._wide(x), 2) + F.interpolate(x, scale_factor=2.0, mode="nearest")

    def _wide(self, x: Tensor) -> Tensor:
        if not (is_plain(self.conv, nn.Conv2d) and can_be_packed(x, self.conv.weight)):
            return self.conv(x)  # type: ignore[no-any-return]
        seen = F.unfold(x, 3, padding=1).transpose(1, 2)  # a hundredth of the weights, which so are laid out once
        return linear(seen, self.conv.weight, self.conv.bias).transpose(1, 2).unflatten(2, x.shape[2:])


class _Mixed(nn.Module):
    """Blocks over a row of latents and a grid, which some blocks are followed by a change of size of."""

    def __init__(
        self, config: InstellaT2IConfig, sizes: TransformerSizes, after: Sequence[int], resample: type[nn.Module]
    ) -> None:
        super().__init__()
        width = sizes.width
        self.blocks = nn.ModuleList(
            TransformerBlock(width, _Attention(width, sizes.heads), GatedMLP(width, 4 * width), eps=1e-6, norm=RMSNorm)
            for _ in range(sizes.layers)
        )
        self.resamples = nn.ModuleList(resample(width) for _ in after)
        self.after, self.count, self.widths = tuple(sorted(after)), config.num_tokens, config.rotary_widths
        self.position_size = config.position_size
        self.patch_size = config.patch_size
        self.norm_out = RMSNorm(width, eps=1e-6)

    def scale(self) -> int | None:
        """Cells a side of the grid that positions are laid over, at the resolution of patches."""
        return None if self.position_size is None else self.position_size // self.patch_size

    def mix(self, latents: Tensor, grid: Tensor, scale: int | None, factor: float, wanted: slice) -> Tensor:
        """(B, N, C) and (B, C, h, w) -> the `wanted` positions of the row of both, the grid of its last size.

        `factor` is what a change of size does to the grid.
        """
        first, blocks = 0, list(self.blocks)
        for place, resample in zip(self.after, self.resamples):
            row = through(blocks[first : place + 1], _row(latents, grid), self._rotation(grid, scale))
            latents, flat = row.split([self.count, row.shape[1] - self.count], 1)
            grid = resample(flat.transpose(1, 2).unflatten(2, grid.shape[2:]))
            scale = None if scale is None else int(scale * factor)
            first = place + 1
        if first == len(blocks):
            return _row(latents, grid)[:, wanted]
        return through(blocks[first:], _row(latents, grid), self._rotation(grid, scale), kept=wanted)

    def _rotation(self, grid: Tensor, scale: int | None) -> Rotation:
        def axis(count: int) -> Tensor:
            cells = torch.arange(count, dtype=torch.float64, device=grid.device)
            return cells if scale is None else cells * ((scale - 1) / max(1, count - 1))

        rows, columns = torch.meshgrid(axis(grid.shape[2]), axis(grid.shape[3]), indexing="ij")
        cells = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
        row = torch.arange(self.count, dtype=torch.float64, device=grid.device)
        return rotation(torch.cat([F.pad(row[:, None], (0, 2)), cells]), self.widths)


def _row(latents: Tensor, grid: Tensor) -> Tensor:
    """(B, N, C) and (B, C, h, w) -> (B, N + h w, C)."""
    return torch.cat([latents, grid.flatten(2).transpose(1, 2)], 1)


class _Encoder(_Mixed):
    """Images (B, 3, H, W) -> (B, N, width)."""

    def __init__(self, config: InstellaT2IConfig) -> None:
        super().__init__(config, config.encoder, config.halve_after, _Downsample)
        width, patch = config.encoder.width, config.patch_size
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.queries = nn.Parameter(torch.randn(config.num_tokens, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(x.shape[0], -1, -1)
        return self.norm_out(self.mix(queries.to(x.dtype), self.patches(x), self.scale(), 0.5, slice(self.count)))


class _Decoder(_Mixed):
    """(B, N, width) and the number of patches a side -> (B, h, w, width)."""

    def __init__(self, config: InstellaT2IConfig) -> None:
        super().__init__(config, config.decoder, config.double_after, _Upsample)
        self.mask_token = nn.Parameter(torch.randn(config.decoder.width) * 0.02)

    def forward(self, latents: Tensor, patches: tuple[int, int]) -> Tensor:
        factor = 2 ** len(self.after)
        height, width = (side // factor for side in patches)
        grid = self.mask_token.to(latents.dtype)[:, None, None].expand(latents.shape[0], -1, height, width)
        scale = self.scale()
        scale = None if scale is None else scale // factor
        return self.norm_out(self.mix(latents, grid, scale, 2, slice(self.count, None)).unflatten(1, patches))


def config_from_original(meta: dict[str, Any]) -> InstellaT2IConfig:
    """The config of the original's, as a fixture or a published listing states it."""
    kwargs = meta["original"]["kwargs"]["config"]
    if kwargs["in_channels"] != 3:
        raise ValueError(f"expected 3 channels, got {kwargs['in_channels']}")
    sizes = [
        TransformerSizes(kwargs[f"{side}_num_heads"] * kwargs[f"{side}_head_dim"], *(
            kwargs[f"{side}_{part}"] for part in ("layers", "num_heads")
        ))
        for side in ("encoder", "decoder")
    ]  # fmt: skip
    bits = kwargs["codebook_size"]
    return InstellaT2IConfig(
        patch_size=kwargs["patch_size"],
        num_tokens=kwargs["num_latent_tkns"],
        encoder=sizes[0],
        decoder=sizes[1],
        halve_after=tuple(kwargs["downsample_idx"]),
        double_after=tuple(kwargs["upsample_idx"]),
        rotary_widths=tuple(kwargs["axes_dims_rope"]),
        quantizer=BernoulliConfig(
            dim=sizes[0].width,
            bits=bits,
            subtokens=-(-bits // 32),
            temperature=kwargs.get("train_temp", 0.1),
            uncertainty_of="probability",
        ),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original's single loss, unweighted."""
    return {"loss.code": quantized.losses["uncertainty"]}


def _side(side: str) -> dict[str, str]:
    key, own = f"{side}.transformer_blocks.{{}}", f"{side}.blocks.{{}}"
    attention = {f"{key}.attn.{part}_proj.*": f"{own}.attention.{part}.*" for part in "qkv"}
    return {
        **attention,
        f"{key}.attn.o_proj.*": f"{own}.attention.proj.*",
        f"{key}.attn.norm_q.*": f"{own}.attention.norm_q.*",
        f"{key}.attn.norm_k.*": f"{own}.attention.norm_k.*",
        f"{key}.input_layernorm.*": f"{own}.norm1.*",
        f"{key}.post_attention_layernorm.*": f"{own}.norm2.*",
        f"{key}.mlp.gate_proj.*": f"{own}.mlp.fc1.*",
        f"{key}.mlp.up_proj.*": f"{own}.mlp.fc3.*",
        f"{key}.mlp.down_proj.*": f"{own}.mlp.fc2.*",
        f"{side}.norm_out.*": f"{side}.norm_out.*",
    }


KEY_MAP = KeyMap(
    {
        "encoder.patch_embedder.*": "encoder.patches.*",
        "encoder.latent_tokens": "encoder.queries",
        **_side("encoder"),
        "encoder.down_layers.{}.*": "encoder.resamples.{}.*",
        "encoder.proj_out.*": "to_latent.*",
        "quantizer.proj.0.*": "quantizer.projection.*",
        "quantizer.embed": "quantizer.embedding",
        "decoder.input_layer.{}.*": "from_codes.{}.*",
        "decoder.mask_tokens": "decoder.mask_token",
        **_side("decoder"),
        "decoder.up_layers.{}.*": "decoder.resamples.{}.*",
        "decoder.repa_proj.*": None,  # of a loss on features in the original's training
        "to_pixel.*": "to_pixels.*",
    },
    transforms={"decoder.mask_token": torch.flatten, "encoder.queries": lambda queries: queries.flatten(0, -2)},
)
