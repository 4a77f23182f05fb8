"""KARL: one pass that makes a row of tokens and halts those that a stated error does not need.

Paper: arXiv 2507.07995. Original: ShivamDuggal4/karl (no licence stated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.alit import base_from_original, latents_from_original
from tokenizers_visual.alit import original_losses as original_losses
from tokenizers_visual.alit_keys import BASE_KEYS, blocks_map
from zoo.adaptive import token_counts
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.base_autoencoder import BaseConfig, CodebookBaseConfig
from zoo.layers.query_transformer import Transformer, TransformerSizes
from zoo.layers.transformer import MLP, TransformerBlock, through
from zoo.quantizers import QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Extent, Tokens

# mean absolute errors that the encoder knows; a wanted error is rounded up to one of them
ERRORS = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38,
)  # fmt: skip


@dataclass(frozen=True)
class KARLConfig(Config):
    """Sizes of the network; the defaults are those of the published small model on a VQGAN."""

    image_size: int = 256  # pixels a side
    most_tokens: int = 512  # that there are queries for
    num_tokens: int = 256  # that are made unless `encode` says otherwise
    quality: float = 0.05  # the mean absolute error that is wanted unless `encode` says otherwise
    halting_threshold: float = 0.75  # a token of a larger probability of halting is halted
    halting_width: int = 512
    position_table: int = 64  # cells a side of the table of positions, of which every n-th is taken
    encoder: TransformerSizes = TransformerSizes(width=1024, layers=8, heads=8)
    decoder: TransformerSizes = TransformerSizes(width=1024, layers=8, heads=8)
    base: BaseConfig = CodebookBaseConfig()
    continuous: bool = False  # the decoder was trained on unquantised latents
    quantizer: QuantizerConfig = VectorConfig(codebook_size=4096, dim=12, metric="cosine")

    def __post_init__(self) -> None:
        self.require(self.image_size % self.base.stride == 0, "a multiple of the base's stride", self.image_size)
        inside = 1 <= self.num_tokens <= self.most_tokens
        self.require(inside, f"num_tokens from 1 to {self.most_tokens}", self.num_tokens)
        self.require(self.quality > 0, "a quality > 0", self.quality)
        self.require(0 <= self.halting_threshold <= 1, "a halting_threshold in [0, 1]", self.halting_threshold)
        self.require(self.encoder.width > self.base.dim, "an encoder wider than a base latent", self.encoder.width)


@dataclass(frozen=True)
class Row:
    """What the encoder gives.

    Attributes:
        embedding: (B, n, width) states of the queries.
        latent: (B, n, D) before quantisation.
        halting: (B, n) logits of the probability that a token is halted.
    """

    embedding: Tensor
    latent: Tensor
    halting: Tensor


@register("karl")
class KARL(Tokenizer):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> rows of tokens (B, n), of lengths of their own.

    `encode(x, quality=e)` keeps the tokens that the model finds necessary for a mean absolute error of e, of a row of
    `num_tokens` (one number for all items, or a list of one for each). The kept ones need not be the first of the row:
    their places are in `tokens.extent.places`, and fewer of them are no coarser image. At least one token is kept.
    """

    layout = "sequence"
    encode_options = frozenset({"num_tokens", "quality"})
    own_losses = frozenset({"active"})
    config: KARLConfig

    def __init__(self, config: KARLConfig) -> None:
        size, stride = config.image_size, config.base.stride
        spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), size=(size, size), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        dim, width = config.quantizer.dim, config.encoder.width
        self.base = config.base.build()
        self.encoder = _Encoder(config)
        self.norm_latent = nn.LayerNorm(width)
        self.to_latent = nn.Linear(width, dim)
        self.norm_halting = nn.LayerNorm(width)
        self.to_halting = nn.Sequential(
            nn.Linear(width, config.halting_width), nn.Tanh(), nn.Linear(config.halting_width, 1)
        )
        self.decoder = _Decoder(config)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.num_tokens,)

    def shorter_rows(self, most: int) -> Sequence[int]:
        return range(1, most)

    def latent(self, x: Tensor) -> Tensor:
        return self.row(x).latent

    def row(
        self,
        x: Tensor,
        counts: Sequence[int] | None = None,
        errors: Tensor | None = None,
        *,
        noise: Tensor | None = None,
    ) -> Row:
        """Images -> their rows.

        Args:
            counts: tokens of each item, of which the largest is n; None: `num_tokens` of all.
            errors: (B,) positions in `ERRORS`; None: that of the configured quality.
            noise: (B, h, w, dim) of a variational base; None takes the mean.
        """
        counts = [self.config.num_tokens] * len(x) if counts is None else counts
        if errors is None:
            errors = nearest_errors(x.new_full((len(x),), self.config.quality, dtype=torch.float32))
        embedding = self.encoder(x, self.base.latent(x, noise), counts, errors)
        halting = self.to_halting(self.norm_halting(embedding))[..., 0]
        return Row(embedding, self.to_latent(self.norm_latent(embedding)), halting)

    def predict(self, codes: Tensor, places: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Code vectors (B, n, D) -> what the base's latents are predicted to be, (B, h, w, predicted).

        Args:
            places: (B, n) of the codes in their rows; None: the first.
            mask: bool, broadcast to (B, heads, h w + n, h w + n), True where a query sees a key.
        """
        return self.decoder(codes, places, mask)

    def kept_mask(self, kept: Tensor) -> Tensor:
        """Which tokens (B, n) are kept -> the mask (B, 1, L, L) in which the others see, and are seen by, none else."""
        seen = F.pad(kept, (self.decoder.cells, 0), value=True)
        alone = torch.eye(seen.shape[1], dtype=torch.bool, device=kept.device)
        return (seen[:, :, None] & seen[:, None] | alone)[:, None]

    def reconstruct(self, codes: Tensor, places: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """Code vectors (B, n, D), their places (B, n) and which of them count (B, n) -> images."""
        mask = None if kept is None else self.kept_mask(kept)
        return self.base.decode(self.base.latent_of(self.predict(codes, places, mask)))

    def halted(self, row: Row) -> Tensor:
        """Which tokens (B, n) are halted."""
        return row.halting.float().sigmoid() > self.config.halting_threshold

    def _encode_batch(self, x: Tensor, options: dict[str, Any]) -> Tokens:
        x = x.to(self.dtype)
        config, count = self.config, options.get("num_codebooks")
        num_tokens = options.get("num_tokens", config.num_tokens)
        counts = token_counts(num_tokens, len(x), range(1, config.most_tokens + 1))
        quality = options.get("quality", config.quality)
        if not quality > 0:
            raise ValueError(f"quality: expected a mean absolute error > 0, got {quality}")
        with self._evaluating():
            row = self.row(x, counts, nearest_errors(x.new_full((len(x),), quality, dtype=torch.float32)))
            levels = self.quantizer(row.latent).levels[:count]
        inside = torch.arange(row.halting.shape[1], device=x.device) < torch.tensor(counts, device=x.device)[:, None]
        least = row.halting.masked_fill(~inside, torch.inf).min(1, keepdim=True).indices
        kept = (~self.halted(row) & inside).scatter(1, least, True)  # of a row without others the least halted
        extent = self.extent_of(x)
        lengths = kept.sum(1)
        longest = int(lengths.max())
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        valid = torch.arange(longest, device=x.device) < lengths[:, None]
        levels = tuple(level.gather(1, order).masked_fill(~valid, 0) for level in levels)
        places = tuple(tuple(item.nonzero()[:, 0].tolist()) for item in kept)
        if any(item != tuple(range(len(item))) for item in places):
            extent = replace(extent, places=places)
        vocab_sizes = self.vocab_sizes[: len(levels)]
        given = None if bool(valid.all()) else lengths
        return Tokens(levels, vocab_sizes, self.layout, given, self.source, extent, self.prefix)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        count = codes.shape[1]
        if not 1 <= count <= self.config.most_tokens:
            raise ValueError(f"expected 1 to {self.config.most_tokens} tokens, got {count}")
        kept = None
        if tokens.lengths is not None:
            kept = torch.arange(count, device=codes.device) < tokens.lengths.to(codes.device)[:, None]
        return self.reconstruct(codes, self._places(tokens.extent, codes), kept)

    def _places(self, extent: Extent | None, codes: Tensor) -> Tensor | None:
        if extent is None or extent.places is None:
            return None
        last = max(max(item, default=0) for item in extent.places)
        if last >= self.config.most_tokens:
            raise ValueError(f"expected places below {self.config.most_tokens}, got {last}")
        rows = [list(item) + [0] * (codes.shape[1] - len(item)) for item in extent.places]
        return torch.tensor(rows, device=codes.device)

    def forward(self, x: Tensor) -> Output:
        """One pass for training with all tokens active, which the loss `active` asks of the halting (the cross entropy,
        in nats). What the tokens then miss of the image tells a second pass how many of them to halt.
        """
        self.spec.check_shape(x)
        row = self.row(x)
        quantized = self.quantizer(row.latent)
        if self.training:
            quantized.losses["active"] = halting_loss(row.halting, 0.0)
        return Output(self.reconstruct(quantized.codes.to(row.latent.dtype)), row.latent, quantized)


def nearest_errors(errors: Tensor) -> Tensor:
    """Errors (...) -> the position of the least of `ERRORS` that is not smaller; else of the last."""
    known = torch.tensor(ERRORS, dtype=torch.float32, device=errors.device)
    return torch.searchsorted(known, errors.float().contiguous()).clamp(max=len(ERRORS) - 1)


def halting_loss(logits: Tensor, target: float) -> Tensor:
    """Binary cross entropy of logits of halting (...) with a target, their mean; of none 0."""
    logits = logits.float()
    if logits.numel() == 0:
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def _cells(table: Tensor, side: int) -> Tensor:
    """A table of positions (width, s, s), its nearest entries for a grid of `side` cells a side: (side^2, width)."""
    return F.interpolate(table[None], size=(side, side), mode="nearest")[0].flatten(1).T


class _Encoder(nn.Module):
    """Condition on the wanted error, patches, queries: full attention."""

    def __init__(self, config: KARLConfig) -> None:
        super().__init__()
        width, stride, table = config.encoder.width, config.base.stride, config.position_table
        self.side = config.image_size // stride
        self.patches = nn.Conv2d(3, width - config.base.dim, stride, stride=stride)
        self.positions = nn.Parameter(torch.randn(width, table, table) * width**-0.5)
        self.queries = nn.Parameter(torch.randn(config.most_tokens, width) * width**-0.5)
        self.error_embedding = nn.Parameter(torch.tensor(ERRORS)[:, None].repeat(1, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.encoder.heads, MLP(width, 4 * width)) for _ in range(config.encoder.layers)
        )

    def forward(self, x: Tensor, base_latent: Tensor, counts: Sequence[int], errors: Tensor) -> Tensor:
        """Images, base latents (B, h, w, dim), tokens of each item, and positions in `ERRORS` (B,) -> (B, n, width)."""
        longest = max(counts)
        image = torch.cat([self.patches(x).movedim(1, -1), base_latent], -1).flatten(1, 2)
        image = image + _cells(self.positions, self.side)
        queries = self.queries[:longest].expand(x.shape[0], -1, -1).to(image.dtype)
        sequence = self.norm_in(torch.cat([self.error_embedding[errors][:, None].to(image.dtype), image, queries], 1))
        mask = None
        if min(counts) < longest:
            inside = torch.arange(longest, device=x.device) < torch.tensor(counts, device=x.device)[:, None]
            mask = F.pad(inside, (1 + image.shape[1], 0), value=True)[:, None, None]
        return through(self.blocks, sequence, mask=mask, kept=slice(-longest, None))


class _Decoder(nn.Module):
    """A grid of mask tokens that reads tokens at their places."""

    def __init__(self, config: KARLConfig) -> None:
        super().__init__()
        width, table = config.decoder.width, config.position_table
        self.side = config.image_size // config.base.stride
        self.cells = self.side**2
        self.embed = nn.Linear(config.quantizer.dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(width, table, table) * width**-0.5)
        self.places = nn.Parameter(torch.randn(config.most_tokens, width) * width**-0.5)
        self.transformer = Transformer(config.decoder)
        self.to_prediction = nn.Sequential(
            nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, config.base.predicted)
        )

    def forward(self, codes: Tensor, places: Tensor | None, mask: Tensor | None) -> Tensor:
        """As `KARL.predict`."""
        rows = self.places[: codes.shape[1]] if places is None else self.places[places]
        latents = self.embed(codes) + rows
        grid = (self.mask_token + _cells(self.positions, self.side)).expand(codes.shape[0], -1, -1).to(latents.dtype)
        hidden = self.transformer(torch.cat([grid, latents], 1), kept=slice(self.cells), mask=mask)
        return self.to_prediction(hidden).unflatten(1, (self.side, self.side))


def config_from_original(meta: dict[str, Any]) -> KARLConfig:
    """The config of the original's arguments, as a fixture or a published listing states them."""
    kwargs = meta["original"]["kwargs"]
    stated = kwargs["base_tokenizer"]
    small = meta["original"].get("hard_coded_made_small", {})
    return KARLConfig(
        image_size=stated.get("ddconfig", stated).get("resolution", 256),
        most_tokens=small.get("latent tables (512)", 512),
        num_tokens=small.get("second-pass budget (256)", 256),
        halting_width=small.get("halting_mlp hidden (512)", 512),
        position_table=kwargs.get("max_grid_tokens", 64),
        base=base_from_original(stated),
        **latents_from_original(kwargs),
    )


KEY_MAP = KeyMap(
    {
        **BASE_KEYS,
        "patch_embed.*": "encoder.patches.*",
        "encoder_positional_embedding": "encoder.positions",
        "latent_tokens": "encoder.queries",
        "rec_loss_embeddings": "encoder.error_embedding",
        "encoder_ln_pre.*": "encoder.norm_in.*",
        **blocks_map("encoder.transformer", "encoder.blocks"),
        "encoder_ln_post.*": "norm_latent.*",
        "pre_quantizer_mlp.*": "to_latent.*",
        "encoder_ln_post_halt.*": "norm_halting.*",
        "halting_mlp.{}.*": "to_halting.{}.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "decoder_embed.*": "decoder.embed.*",
        "decoder_mask_token": "decoder.mask_token",
        "decoder_positional_embedding": "decoder.positions",
        "decoder_latent_tokens_timestep_embed": "decoder.places",
        "decoder.ln_pre.*": "decoder.transformer.norm_in.*",
        **blocks_map("decoder.transformer", "decoder.transformer.blocks"),
        "decoder.ln_post.*": "decoder.transformer.norm_out.*",
        "decoder.ffn.{}.*": "decoder.to_prediction.{}.*",
        "gan_losses.*": None,  # the discriminators and perceptual networks of the original's training
    },
    transforms={"decoder.mask_token": torch.flatten},
)
