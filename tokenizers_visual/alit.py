"""ALIT: tokens in growing number, by rolling out one transformer that gets further queries at every step.

Paper: arXiv 2411.02393. Original: ShivamDuggal4/adaptive-length-tokenizer (no licence stated).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.alit_keys import BASE_KEYS, blocks_map
from zoo.adaptive import token_counts
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.base_autoencoder import BaseConfig, CodebookBase, CodebookBaseConfig, VariationalBaseConfig
from zoo.layers.query_transformer import QueryDecoder, TransformerSizes, learned
from zoo.layers.transformer import MLP, TransformerBlock, through
from zoo.quantizers import DimensionWiseConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens


@dataclass(frozen=True)
class ALITConfig(Config):
    """Sizes of the network; the defaults are those of the published small model on a VQGAN."""

    image_size: int = 256  # pixels a side; the learned positions allow no other
    rollouts: int = 8
    rollout_tokens: int = 32  # that each roll-out adds
    encoder: TransformerSizes = TransformerSizes(width=1024, layers=8, heads=8)
    decoder: TransformerSizes = TransformerSizes(width=1024, layers=8, heads=8)
    decoder_positions: int = 256  # at least the number of tokens of the last roll-out
    base: BaseConfig = CodebookBaseConfig()
    halting: float | None = 0.55  # patches whose code is predicted with less probability are never halted; None: none
    continuous: bool = False  # the network reads unquantised latents; tokens are quantised afterwards
    quantizer: QuantizerConfig = VectorConfig(codebook_size=4096, dim=12, metric="cosine")

    def __post_init__(self) -> None:
        self.require(self.image_size % self.base.stride == 0, "a multiple of the base's stride", self.image_size)
        counts = (self.rollouts, self.rollout_tokens)
        self.require(min(counts) >= 1, "rollouts and rollout_tokens >= 1", counts)
        most = self.rollouts * self.rollout_tokens
        self.require(self.decoder_positions >= most, f"at least {most} decoder_positions", self.decoder_positions)
        self.require(self.encoder.width > self.base.dim, "an encoder wider than a base latent", self.encoder.width)
        of_codes = isinstance(self.base, CodebookBaseConfig)
        self.require(self.halting is None or of_codes, "halting of a codebook base alone", self.halting)


@dataclass(frozen=True)
class Rollout:
    """What one roll-out gives.

    Attributes:
        embedding: (B, n, width) the queries' states.
        latent: (B, n, D) before quantisation.
        codes: (B, n, D) that the decoder reads.
        quantized: what the quantizer made of the latent.
        prediction: (B, h, w, predicted) of the base, where halting or the caller asked for it.
        halted: (B, h, w) patches that the next roll-out sees masked, where there is halting.
    """

    embedding: Tensor
    latent: Tensor
    codes: Tensor
    quantized: Quantized
    prediction: Tensor | None
    halted: Tensor | None


@register("alit")
class ALIT(Tokenizer):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> tokens (B, n), n a multiple of `rollout_tokens`.

    `encode(x, num_tokens=n)` takes n for all items or a list of one for each; `encode(x, quality=e)` gives each item
    the fewest tokens whose reconstruction is off by less than e in the mean of absolute differences, or the best. Every
    roll-out changes all tokens, so that fewer tokens are not the first of more.

    A patch whose base code is well predicted is halted at random in training; here, so that encoding is
    deterministic, when its probability is above 1/2 and at least `halting` (or as `roll_out` is given numbers).
    """

    layout = "sequence"
    encode_options = frozenset({"num_tokens", "quality"})
    config: ALITConfig

    def __init__(self, config: ALITConfig) -> None:
        size, stride = config.image_size, config.base.stride
        spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), size=(size, size), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        dim, width = config.quantizer.dim, config.decoder.width
        self.base = config.base.build()
        self.encoder = _RecurrentEncoder(config)
        self.to_latent = nn.Linear(config.encoder.width, dim)
        self.decoder = QueryDecoder(size // stride, dim, config.decoder_positions, config.decoder)
        self.to_prediction = nn.Sequential(
            nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, config.base.predicted)
        )

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.rollouts * self.config.rollout_tokens,)

    def shorter_rows(self, most: int) -> Sequence[int]:
        step = self.config.rollout_tokens
        return range(step, most, step)

    def latent(self, x: Tensor) -> Tensor:
        """Of the last roll-out."""
        return list(self.roll_out(x))[-1].latent

    def roll_out(
        self,
        x: Tensor,
        rollouts: int | None = None,
        *,
        uniforms: Tensor | None = None,
        noise: Tensor | None = None,
        predict: bool = False,
    ) -> Iterator[Rollout]:
        """The roll-outs one by one, of `rollout_tokens`, twice as many, ... tokens.

        Args:
            x: images.
            rollouts: how many; None: all.
            uniforms: (rollouts, B, h w) in [0, 1): a patch is halted where its number is below the probability of its
                code. None draws them in training, and is 1/2 otherwise.
            noise: (B, h, w, dim) of a variational base; None takes the mean.
            predict: whether every roll-out gives its prediction.
        """
        rollouts = self.config.rollouts if rollouts is None else rollouts
        base_latent = self.base.latent(x, noise)
        indices = self.base.indices(base_latent) if isinstance(self.base, CodebookBase) else None
        halts = self.config.halting is not None
        state = self.encoder.start(x, base_latent)
        for step in range(rollouts):
            last = step == rollouts - 1
            state = self.encoder.advance(state, step, last=last)
            embedding = state if last else self.encoder.latents(state)
            latent = self.to_latent(self.encoder.norm_out(embedding))
            quantized = self.quantizer(latent)
            codes = latent if self.config.continuous else quantized.codes.to(latent.dtype)
            prediction = self.predict(codes) if predict or (halts and not last) else None
            halted = None
            if halts and prediction is not None and indices is not None:
                halted = self.halted(prediction, indices, None if uniforms is None else uniforms[step])
                state = state if last else self.encoder.mask(state, halted)
            yield Rollout(embedding, latent, codes, quantized, prediction, halted)

    def halted(self, prediction: Tensor, indices: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """Where (B, h, w) patches of the base's `indices` are halted, given what was predicted of them."""
        share = code_probability(prediction, indices)
        if uniforms is None:
            uniforms = torch.rand_like(share) if self.training else torch.full_like(share, 0.5)
        threshold = 0.0 if self.config.halting is None else self.config.halting
        return (uniforms.view(share.shape) < share) & (share >= threshold)

    def predict(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Code vectors (B, n, D) -> what the base's latents are predicted to be, (B, h, w, predicted)."""
        return self.to_prediction(self.decoder(codes, lengths).movedim(1, -1))

    def reconstruct(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Code vectors (B, n, D) -> images; of each item only the first `lengths` (B,), where items differ."""
        return self.base.decode(self.base.latent_of(self.predict(codes, lengths)))

    def encode_levels(
        self,
        x: Tensor,
        *,
        num_tokens: int | list[int] | None = None,
        quality: float | None = None,
        **options: Any,
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        step, count = self.config.rollout_tokens, options.get("num_codebooks")
        allowed = range(step, step * self.config.rollouts + 1, step)
        if num_tokens is None and quality is None:
            *_, last = self.roll_out(x)
            return last.quantized.levels[:count], None
        if quality is not None:
            if num_tokens is not None:
                raise ValueError(f"expected num_tokens or quality, got both: {num_tokens} and {quality}")
            rolled = list(self.roll_out(x))
            counts = self._counts_within(x, rolled, quality)
        else:
            counts = token_counts(num_tokens, len(x), allowed)
            rolled = list(self.roll_out(x, max(counts) // step))
        rows: list[Tensor] = []
        for level in range(len(self.vocab_sizes[:count])):
            row = x.new_zeros(len(x), max(counts), dtype=torch.int64)
            for rollout in rolled[: max(counts) // step]:
                found = rollout.quantized.levels[level]
                chosen = torch.tensor([n == found.shape[1] for n in counts], device=x.device)
                row[chosen, : found.shape[1]] = found[chosen]
            rows.append(row)
        lengths = torch.tensor(counts, device=x.device) if min(counts) < max(counts) else None
        return tuple(rows), lengths

    def _counts_within(self, x: Tensor, rolled: Sequence[Rollout], quality: float) -> list[int]:
        if not quality > 0:
            raise ValueError(f"quality: expected a mean absolute difference > 0, got {quality}")
        errors = torch.stack(
            [(self.reconstruct(r.quantized.codes.to(self.dtype)) - x).abs().mean((1, 2, 3)) for r in rolled]
        )
        best = errors.min(0).indices
        within = errors < quality
        first = torch.where(within.any(0), within.int().argmax(0), best)
        return [(int(i) + 1) * self.config.rollout_tokens for i in first]

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        return self.reconstruct(codes, tokens.lengths)


def code_probability(prediction: Tensor, indices: Tensor) -> Tensor:
    """Logits (..., K) of codes and indices (...) -> the probability of each."""
    return prediction.softmax(-1).gather(-1, indices[..., None])[..., 0]


class _Blocks(nn.Sequential):
    """Transformer blocks, one after the other: (B, N, C) -> the same, of the `kept` positions alone."""

    def forward(self, x: Tensor, *, kept: slice | None = None) -> Tensor:
        return through(self, x, kept=kept)


class _RecurrentEncoder(nn.Module):
    """Class token, patches, queries; each roll-out appends further queries and runs the same blocks."""

    def __init__(self, config: ALITConfig) -> None:
        super().__init__()
        width, stride, count = config.encoder.width, config.base.stride, config.rollout_tokens
        self.cells = (config.image_size // stride) ** 2
        self.patches = nn.Conv2d(3, width - config.base.dim, stride, stride=stride)
        self.class_token = learned(width)
        self.mask_token = learned(width)
        self.positions = learned(1 + self.cells, width)
        self.queries = learned(count, width)
        self.query_positions = learned(count, width)
        self.rollout_embedding = learned(config.rollouts, count, width)
        self.norm_in = nn.LayerNorm(width)
        self.norm_again = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.blocks = _Blocks(
            *(
                TransformerBlock(width, config.encoder.heads, MLP(width, 4 * width))
                for _ in range(config.encoder.layers)
            )
        )

    def start(self, x: Tensor, base_latent: Tensor) -> Tensor:
        """Images and their base latents (B, h, w, dim) -> (B, 1 + h w, width)."""
        patches = self.patches(x).movedim(1, -1)
        image = F.normalize(torch.cat([base_latent, patches], -1).flatten(1, 2), dim=-1)
        return torch.cat([self.class_token.expand(x.shape[0], 1, -1), image], 1) + self.positions

    def advance(self, state: Tensor, step: int, *, last: bool = False) -> Tensor:
        """The state after roll-out `step`, with its queries at the end; after the last, all queries' states alone."""
        queries = self.queries + self.query_positions + self.rollout_embedding[step]
        state = torch.cat([state, queries.expand(state.shape[0], -1, -1).to(state.dtype)], 1)
        kept = slice(1 + self.cells, None) if last else None
        return self.blocks((self.norm_in if step == 0 else self.norm_again)(state), kept=kept)  # type: ignore[no-any-return]

    def latents(self, state: Tensor) -> Tensor:
        return state[:, 1 + self.cells :]

    def mask(self, state: Tensor, halted: Tensor) -> Tensor:
        """The state with halted patches (B, h, w) put back to a mask token at their positions."""
        head, image, latents = state.split([1, self.cells, state.shape[1] - 1 - self.cells], dim=1)
        masked = (self.mask_token + self.positions[1:]).to(state.dtype)
        return torch.cat([head, torch.where(halted.flatten(1)[..., None], masked, image), latents], 1)


def base_from_original(stated: dict[str, Any]) -> BaseConfig:
    """The base's config, as a fixture or a published listing of ALIT or KARL states it."""
    if stated["class"] == "VQGANWrapper":
        network = stated["ddconfig"]
        return CodebookBaseConfig(
            dim=stated["embed_dim"],
            channels=network["ch"],
            channel_multipliers=tuple(network["ch_mult"]),
            blocks=network["num_res_blocks"],
            norm_groups=stated.get("norm_groups", 32),
            codebook_size=stated["n_embed"],
        )
    multipliers = tuple(stated["ch_mult"])
    resolution, attended = stated.get("resolution", 256), stated.get("attn_resolutions", [16])
    return VariationalBaseConfig(
        dim=stated["embed_dim"],
        channels=stated.get("ch", 128),
        channel_multipliers=multipliers,
        blocks=stated.get("num_res_blocks", 2),
        norm_groups=stated.get("norm_groups", 32),
        attention=tuple(resolution // 2**i in attended for i in range(len(multipliers))),
        scale=stated["scale"],
    )


_LATENT_DEFAULTS: dict[str, Any] = {
    "quantize_latent": True, "vq_codebook_size": 4096, "vq_token_dim": 12, "vq_commitment_cost": 0.25,
    "vq_use_l2_norm": True,
}  # fmt: skip
_ROLLOUT_DEFAULTS: dict[str, Any] = {
    "num_init_latent_tokens": 32, "img_size": 256, "max_rollout_iters": 8, "dynamic_halting": True,
    "dynamic_halting_threshold": 0.55,
}  # fmt: skip


def latents_from_original(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Fields of ALIT's or KARL's config that say how the latents are quantised, and the sizes of the transformers."""
    kwargs = {**_LATENT_DEFAULTS, **kwargs}
    dim, continuous = kwargs["vq_token_dim"], not kwargs["quantize_latent"]
    metric: Any = "cosine" if kwargs["vq_use_l2_norm"] else "euclidean"
    sizes = {
        side: TransformerSizes(*(kwargs[f"{side}_{part}"] for part in ("width", "num_layers", "num_heads")))
        for side in ("encoder", "decoder")
    }
    return {
        **sizes,
        "continuous": continuous,
        "quantizer": DimensionWiseConfig(dim) if continuous else VectorConfig(kwargs["vq_codebook_size"], dim, metric),
    }


def config_from_original(meta: dict[str, Any]) -> ALITConfig:
    """The config of the original's arguments, as a fixture or a published listing states them."""
    kwargs = {**_ROLLOUT_DEFAULTS, **meta["original"]["kwargs"]}
    base = base_from_original(kwargs["base_tokenizer"])
    halts = kwargs["dynamic_halting"] and isinstance(base, CodebookBaseConfig)  # the other halts nothing, by a mistake
    return ALITConfig(
        image_size=kwargs["img_size"],
        rollouts=kwargs["max_rollout_iters"],
        rollout_tokens=kwargs["num_init_latent_tokens"],
        base=base,
        halting=kwargs["dynamic_halting_threshold"] if halts else None,
        **latents_from_original(kwargs),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The sum of the quantizer's losses with the original's weights."""
    if "codebook" not in quantized.losses:
        return {}
    cost = {**_LATENT_DEFAULTS, **meta["original"]["kwargs"]}["vq_commitment_cost"]
    return {"loss.quantizer": cost * quantized.losses["commitment"] + quantized.losses["codebook"]}


KEY_MAP = KeyMap(
    {
        **BASE_KEYS,
        "patch_embed.*": "encoder.patches.*",
        "encoder_class_embedding": "encoder.class_token",
        "encoder_mask_token": "encoder.mask_token",
        "encoder_positional_embedding": "encoder.positions",
        "latent_tokens": "encoder.queries",
        "latent_token_positional_embedding": "encoder.query_positions",
        "timestep_embedding": "encoder.rollout_embedding",
        "encoder_ln_pre.*": "encoder.norm_in.*",
        "encoder_ln_recursive.*": "encoder.norm_again.*",
        "encoder_ln_post.*": "encoder.norm_out.*",
        **blocks_map("encoder.transformer", "encoder.blocks"),
        "pre_quantizer_mlp.*": "to_latent.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "decoder.decoder_embed.*": "decoder.embed.*",
        "decoder_class_embedding": "decoder.class_token",
        "decoder_mask_token": "decoder.mask_token",
        "decoder_positional_embedding": "decoder.positions",
        "decoder.latent_token_positional_embedding": "decoder.query_positions",
        "decoder.ln_pre.*": "decoder.transformer.norm_in.*",
        **blocks_map("decoder.transformer", "decoder.transformer.blocks"),
        "decoder.ln_post.*": "decoder.transformer.norm_out.*",
        "decoder.ffn.{}.*": "to_prediction.{}.*",
        "gan_losses.*": None,  # the discriminators and perceptual networks of the original's training
    },
    transforms={"*.class_token": torch.flatten, "*.mask_token": torch.flatten},
)
