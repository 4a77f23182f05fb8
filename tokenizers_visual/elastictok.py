"""ElasticTok: videos in blocks of frames, each of which takes as many tokens as its content needs.

Paper: arXiv 2410.08368. Original: LargeWorldModel/ElasticTok (Apache-2.0), in JAX. Its weights are of JAX too and do
not load here; nor is its finite scalar quantisation, whose bound differs a little, repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.adaptive import fewest, token_counts
from zoo.config import Config
from zoo.layers.transformer import GatedMLP, RMSNorm, SelfAttention, TransformerBlock, rotate
from zoo.quantizers import FiniteScalarConfig, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Tokens


@dataclass(frozen=True)
class ElasticTokConfig(Config):
    """Sizes of the network; the defaults are those of the published FSQ model, for one block."""

    resolution: int = 256
    blocks: int = 1  # of a video; no weight depends on it
    block_frames: int = 4
    patch_frames: int = 1
    patch_size: int = 8
    least_tokens: int = 256  # of a block
    width: int = 1024
    hidden: int = 2048  # of the gated layers
    layers: int = 10  # of the encoder, and of the decoder
    heads: int = 8
    rotary_base: float = 5e7
    quantizer: QuantizerConfig = FiniteScalarConfig(levels=(8, 8, 8, 5, 5, 5))

    def __post_init__(self) -> None:
        frames, patch = self.block_frames, self.patch_frames
        self.require(frames % patch == 0, f"block_frames that are a multiple of {patch}", frames)
        self.require(self.resolution % self.patch_size == 0, f"a resolution of {self.patch_size} n", self.resolution)
        most = self.block_tokens
        self.require(1 <= self.least_tokens < most, f"least_tokens from 1 to {most - 1}", self.least_tokens)
        self.require(self.width % (2 * self.heads) == 0, f"a width of even parts for {self.heads} heads", self.width)
        self.require(self.blocks >= 1, "at least one block", self.blocks)

    @property
    def block_tokens(self) -> int:
        """The most tokens of a block: one for each patch."""
        return self.block_frames // self.patch_frames * (self.resolution // self.patch_size) ** 2


@register("elastictok")
class ElasticTok(Tokenizer):
    """Videos (B, 3, blocks * block_frames, S, S) in [-1, 1] -> for each block the first 1 to `block_tokens` tokens.

    `encode(x, num_tokens=n)` gives every block n / blocks tokens, n one number for all items or a list of one for each;
    `encode(x, quality=e)` gives each block of each item the fewest with a mean squared error of at most e. The encoder
    knows the number, so that fewer tokens are not the first of more.
    """

    layout = "sequence"
    encode_options = frozenset({"num_tokens", "quality"})
    config: ElasticTokConfig  # type: ignore[assignment]

    def __init__(self, config: ElasticTokConfig) -> None:
        size = (config.blocks * config.block_frames, config.resolution, config.resolution)
        super().__init__(config, InputSpec("video", 3, (-1.0, 1.0), size), config.quantizer)
        width, dim = config.width, config.quantizer.dim
        pixels = 3 * config.patch_frames * config.patch_size**2
        self.patches = nn.Linear(pixels, width, bias=False)
        self.kept = nn.Parameter(torch.randn(width) * 0.02)
        self.dropped = nn.Parameter(torch.randn(width) * 0.02)
        self.encoder = Transformer(config)
        self.to_latent = nn.Linear(width, dim)
        self.from_codes = nn.Linear(dim, width)
        self.decoder = Transformer(config)
        self.to_pixels = nn.Linear(width, pixels)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.blocks * self.config.block_tokens,)

    def shorter_rows(self, most: int) -> Sequence[int]:
        blocks, config = self.config.blocks, self.config
        return range(blocks * config.least_tokens, most, blocks)

    # -- encoding --------------------------------------------------------------------------------------------------

    def latent(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, N, D) of the first blocks of a video, given which of their tokens will be kept (B, N); None: all."""
        patches = self.patches(self._patchify(x))
        told = self.kept if kept is None else torch.where(kept[..., None], self.kept, self.dropped)
        return self.to_latent(self.encoder(patches + told))

    def forward(self, x: Tensor) -> Output:
        """One pass for training, in which every block keeps a number of tokens drawn uniformly.

        The latents of dropped tokens take part in no reconstruction, but in the quantizer's losses.
        """
        self.spec.check_shape(x)
        config = self.config
        kept = None
        if self.training:  # at least one more than the least number, as in the original
            shape = (len(x), config.blocks, 1)
            last = torch.randint(config.least_tokens, config.block_tokens, shape, device=x.device)
            kept = (torch.arange(config.block_tokens, device=x.device) <= last).flatten(1)
        latent = self.latent(x, kept)
        quantized = self.quantizer(latent)
        codes = quantized.codes.to(latent.dtype)
        return Output(self.reconstruct(codes if kept is None else codes * kept[..., None]), latent, quantized)

    def _encode_batch(self, x: Tensor, options: dict[str, Any]) -> Tokens:
        x = x.to(self.dtype)
        config, quality = self.config, options.get("quality")
        if quality is not None and "num_tokens" in options:
            raise ValueError(f"expected num_tokens or quality, got both: {options['num_tokens']} and {quality}")
        with self._evaluating():
            if quality is None:
                most = config.blocks * config.block_tokens
                allowed = range(config.blocks * config.least_tokens, most + 1, config.blocks)
                counts = token_counts(options.get("num_tokens"), len(x), allowed)
                numbers = torch.tensor(counts, device=x.device)[:, None].expand(-1, config.blocks) // config.blocks
            else:
                numbers = self._numbers_within(x, quality)
            kept = self._mask(numbers)
            levels = self.quantizer(self.latent(x, kept)).levels[: options.get("num_codebooks")]
        lengths = kept.sum(1)
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
        valid = torch.arange(order.shape[1], device=x.device) < lengths[:, None]
        levels = tuple(level.gather(1, order).masked_fill(~valid, 0) for level in levels)
        extent = self.extent_of(x)
        if bool((numbers != numbers[:, :1]).any()) or bool((lengths != lengths[0]).any()):
            extent = replace(extent, places=tuple(tuple(item.nonzero()[:, 0].tolist()) for item in kept))
        given = None if bool(valid.all()) else lengths
        return Tokens(levels, self.vocab_sizes[: len(levels)], self.layout, given, self.source, extent, self.prefix)

    def _numbers_within(self, x: Tensor, error: float) -> Tensor:
        """(B, blocks): block by block, as the later ones see the earlier, the fewest tokens within a squared error."""
        config = self.config
        if not error > 0:
            raise ValueError(f"quality: expected a mean squared error > 0, got {error}")
        allowed = range(config.least_tokens, config.block_tokens + 1)
        numbers = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        for block in range(config.blocks):
            seen = x[:, :, : (block + 1) * config.block_frames]

            def met(counts: list[int], seen: Tensor = seen, chosen: Tensor = numbers) -> list[bool]:
                kept = self._mask(torch.cat([chosen, chosen.new_tensor(counts)[:, None]], dim=1))
                codes = self.quantizer(self.latent(seen, kept)).codes.to(x.dtype) * kept[..., None]
                wrong = (self.reconstruct(codes) - seen)[:, :, -config.block_frames :]
                return (wrong.float().square().mean(dim=(1, 2, 3, 4)) <= error).tolist()

            found = fewest(met, len(x), allowed)
            numbers = torch.cat([numbers, numbers.new_tensor(found)[:, None]], dim=1)
        return numbers

    def _mask(self, numbers: Tensor) -> Tensor:
        """Tokens of each block (B, blocks) -> which places are kept (B, blocks * block_tokens)."""
        return (torch.arange(self.config.block_tokens, device=numbers.device) < numbers[..., None]).flatten(1)

    # -- decoding --------------------------------------------------------------------------------------------------

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Codes (B, N, D) of the first blocks, zero where a token was dropped -> their frames."""
        return self._unpatchify(self.to_pixels(self.decoder(self.from_codes(codes))).tanh())

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        config, (batch, count, dim) = self.config, codes.shape
        whole = codes.new_zeros(batch, config.blocks * config.block_tokens, dim)
        places = None if tokens.extent is None else tokens.extent.places
        if places is None:
            if count % config.blocks or not count <= whole.shape[1]:
                wanted = f"a row of as many tokens, at most {config.block_tokens}, in each of {config.blocks} blocks"
                raise ValueError(f"expected {wanted}, got {count}")
            each = codes.unflatten(1, (config.blocks, -1))
            return self.reconstruct(F.pad(each, (0, 0, 0, config.block_tokens - each.shape[2])).flatten(1, 2))
        for item, kept in enumerate(places):
            if kept and kept[-1] >= whole.shape[1]:
                raise ValueError(f"expected places below {whole.shape[1]}, got {kept[-1]}")
            whole[item, list(kept)] = codes[item, : len(kept)]
        return self.reconstruct(whole)

    def _patchify(self, x: Tensor) -> Tensor:
        t, p = self.config.patch_frames, self.config.patch_size
        parts = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, t))  # (B, 3, T, t, H, p, W, p)
        return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)

    def _unpatchify(self, patches: Tensor) -> Tensor:
        t, p, side = self.config.patch_frames, self.config.patch_size, self.config.resolution // self.config.patch_size
        parts = patches.unflatten(2, (t, p, p, 3)).unflatten(1, (-1, side, side))  # (B, T, H, W, t, p, p, 3)
        return parts.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6).flatten(4, 5).flatten(2, 3)


class BlockAttention(SelfAttention):
    """Attention of each block of positions to itself and the blocks before it, with rotary positions; no biases."""

    def __init__(self, width: int, heads: int, block: int, base: float) -> None:
        super().__init__(width, heads, bias=False)
        self.block, self.base = block, base

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # its blocks are its mask
        """(B, N, C) -> the same."""
        q, k, v = self.split(x)
        q, k = (rotate(part, 0, self.base) for part in (q, k))
        parts = [
            F.scaled_dot_product_attention(q[:, :, end - self.block : end], k[:, :, :end], v[:, :, :end])
            for end in range(self.block, x.shape[1] + 1, self.block)
        ]
        return self.join(torch.cat(parts, dim=2))


class Transformer(nn.Module):
    """Blocks of attention and gated layers, and a norm: (B, N, width) -> the same."""

    def __init__(self, config: ElasticTokConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                TransformerBlock(
                    config.width,
                    BlockAttention(config.width, config.heads, config.block_tokens, config.rotary_base),
                    GatedMLP(config.width, config.hidden),
                    norm=RMSNorm,
                )
                for _ in range(config.layers)
            )
        )
        self.norm = RMSNorm(config.width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(x))
