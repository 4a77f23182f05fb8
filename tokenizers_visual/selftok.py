"""Selftok: queries that read an image, and a diffusion transformer, or a renderer of one step, that reads them.

Paper: arXiv 2505.07538. Original: selftok-team/SelftokTokenizer (MIT). Signals are latents of the autoencoder of Stable
Diffusion 3, which diffusers holds: `with_autoencoder` puts it into a model, which then takes and gives images, and
`autoencoder_latents` and `autoencoder_images` go there and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.selftok_autoencoder import STABLE_DIFFUSION_3, taken_over
from tokenizers_visual.selftok_autoencoder import autoencoder_images as autoencoder_images
from tokenizers_visual.selftok_autoencoder import autoencoder_latents as autoencoder_latents
from tokenizers_visual.selftok_autoencoder import signal_autoencoder as signal_autoencoder
from tokenizers_visual.selftok_decoders import Flow as Flow
from tokenizers_visual.selftok_decoders import FlowConfig as FlowConfig
from tokenizers_visual.selftok_decoders import Renderer as Renderer
from tokenizers_visual.selftok_decoders import RendererConfig as RendererConfig
from tokenizers_visual.selftok_keys import KEY_MAP as KEY_MAP
from tokenizers_visual.selftok_keys import KEY_MAP_RENDERER as KEY_MAP_RENDERER
from tokenizers_visual.selftok_keys import key_map_from_original as key_map_from_original
from zoo.config import Config, require_arguments
from zoo.layers.base_autoencoder import VariationalBase, VariationalBaseConfig
from zoo.layers.ddim import item_noise
from zoo.layers.diffusion_transformer import GridPatches, Modulation, PlainNorm, WaveEmbedding, modulate
from zoo.layers.mmdit import heads_of, tanh_mlp, token_places
from zoo.ops.attention import attend
from zoo.quantizers import EmaCodebookConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.quantizers.position_diversity import PositionDiversityConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Tokens

_EPS = 1e-6


@dataclass(frozen=True)
class SelftokConfig(Config):
    """Sizes of the network; the defaults are those of the published model of 512 tokens. All patches are 2 x 2."""

    channels: int = 16
    latent_size: int = 32  # side of the signals
    positions: int = 64  # side of the encoder's stored grid, of which smaller ones take the middle
    num_tokens: int = 512
    width: int = 64
    heads: int = 4
    query_width: int = 512
    query_heads: int = 8
    layers: int = 16
    autoencoder: VariationalBaseConfig | None = None  # between images and latents; None: the signals are latents
    decoder: FlowConfig | RendererConfig | None = FlowConfig()  # None: the model gives tokens, and does not decode them
    quantizer: QuantizerConfig = PositionDiversityConfig()

    def __post_init__(self) -> None:
        fits = self.width % self.heads == 0 and self.query_width % self.query_heads == 0
        self.require(fits, "widths that are multiples of the heads", (self.width, self.query_width))
        self.require(self.latent_size % 2 == 0, "an even latent_size", self.latent_size)
        counts = (self.num_tokens, self.layers)
        self.require(min(counts) >= 1, "num_tokens and layers >= 1", counts)
        flow = self.decoder if isinstance(self.decoder, FlowConfig) else None
        grids = [self.positions] if flow is None else [self.positions, flow.positions]
        least = self.latent_size // 2
        self.require(min(grids) >= least, f"stored grids of at least {least}", grids)
        if self.autoencoder is not None:
            given = self.autoencoder.dim
            self.require(given == self.channels, f"an autoencoder of {self.channels} channels", given)
        staged = self.num_tokens if flow is None else sum(flow.stage_tokens)
        self.require(staged == self.num_tokens, f"stages of {self.num_tokens} tokens in all", staged)


@register("selftok")
class Selftok(Tokenizer):
    """Latents of an autoencoder (B, 16, S, S) of the configured size -> tokens (B, num_tokens).

    With an autoencoder of its own (`with_autoencoder`) it takes images (B, 3, 8 S, 8 S) in [-1, 1] and gives such; the
    autoencoder is frozen, and the tokens are the same.

    Decoding is a flow from noise: `decode` takes `noise` (of the latents' shape) or a `seed` (0 if none is given; a
    list has one for each item), and the number of `steps`. In training a pass gives the loss `flow`, the squared
    distance of velocities at times drawn evenly, and the signal that a single step from its time leads to. A model
    with a renderer decodes in one step, without noise, and takes no such options.
    """

    layout = "sequence"
    decode_options = frozenset({"steps", "seed", "noise"})
    own_losses = frozenset({"flow"})
    further_parts: ClassVar[Mapping[str, Config]] = {"autoencoder": STABLE_DIFFUSION_3}
    config: SelftokConfig

    def __init__(self, config: SelftokConfig) -> None:
        size, base = config.latent_size, config.autoencoder
        spec = InputSpec("image", channels=config.channels, value_range=(-100.0, 100.0), size=(size, size))
        if base is not None:
            spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), size=(size * base.stride,) * 2)
        super().__init__(config, spec, config.quantizer)
        self.autoencoder = None if base is None else VariationalBase(base).requires_grad_(False)
        self.encoder = _Encoder(config)
        self.to_latent = nn.Linear(config.query_width, config.quantizer.dim)
        self.norm_codes = nn.LayerNorm(config.quantizer.dim, eps=_EPS)
        self.decoder: Flow | Renderer | None = None
        sizes = (config.channels, config.quantizer.dim, config.num_tokens)
        if isinstance(config.decoder, RendererConfig):
            self.decoder = Renderer(config.decoder, *sizes, size)
            self.decode_options, self.own_losses = frozenset(), frozenset()
        elif config.decoder is not None:
            self.decoder = Flow(config.decoder, *sizes)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.num_tokens,)

    def with_autoencoder(self, autoencoder: Any) -> Selftok:
        """This model with a copy of an autoencoder, in evaluation mode: it takes and gives images.

        Args:
            autoencoder: diffusers' AutoencoderKL of Stable Diffusion 3 (folder `vae` of its published models).

        Raises:
            ValueError: an autoencoder of other latents than this model's signals.
        """
        base, weights = taken_over(autoencoder, self.config.channels)
        model = Selftok(self.config.replace(autoencoder=base))
        own = {key: part for key, part in self.state_dict().items() if not key.startswith("autoencoder.")}
        model.load_state_dict({**own, **{f"autoencoder.{key}": part for key, part in weights.items()}})
        return model.to(next(self.parameters()).device, self.dtype).eval()

    def signals(self, x: Tensor) -> Tensor:
        """What the model takes -> what its encoder reads and its flow leads to: latents (B, 16, S, S)."""
        return x if self.autoencoder is None else self.autoencoder.latent(x).movedim(-1, 1)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(self.signals(x)))

    def condition(self, codes: Tensor) -> Tensor:
        """Code vectors (B, num_tokens, D) -> what the decoder reads, of the same shape.

        Raises:
            ValueError: another number of codes.
        """
        if codes.shape[1] != self.config.num_tokens:
            raise ValueError(f"expected {self.config.num_tokens} tokens, got {codes.shape[1]}")
        return self.norm_codes(codes)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self._draw(codes)

    def forward(self, x: Tensor) -> Output:
        if not isinstance(self.decoder, Flow) or not self.training:
            return super().forward(x)
        self.spec.check_shape(x)
        x = self.signals(x)
        latent = self.to_latent(self.encoder(x))
        quantized = self.quantizer(latent)
        context = self.condition(quantized.codes.to(latent.dtype))
        noise, times = torch.randn_like(x), torch.rand(len(x), device=x.device)
        told = torch.rand(len(x), device=x.device) >= self.decoder.config.null_probability
        noised, velocity = self.decoder.flow(x, noise, times, context, self.decoder.seen(times) & told[:, None])
        quantized.losses["flow"] = F.mse_loss(velocity.float(), (noise - x).float())
        return Output(self._given(noised - times.view(-1, 1, 1, 1).to(noised) * velocity), latent, quantized)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        return self._draw(codes, **options)

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        if isinstance(self.decoder, Renderer):
            return super().noise_shape(codes)
        return (codes.shape[0], self.config.channels, *(self.config.latent_size,) * 2)

    def _draw(
        self,
        codes: Tensor,
        steps: int | None = None,
        seed: int | list[int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        context = self.condition(codes)
        if self.decoder is None:
            raise ValueError(f"{self.name} gives tokens alone: expected a config with a decoder, got None")
        if isinstance(self.decoder, Renderer):
            return self._given(self.decoder(context))
        noise = item_noise(self.noise_shape(codes), seed, noise)
        return self._given(self.decoder.sample(noise.to(codes), context, steps))

    def _given(self, signals: Tensor) -> Tensor:
        """Latents -> what the model gives."""
        if self.autoencoder is None or self.config.autoencoder is None:
            return signals
        base = self.config.autoencoder
        return self.autoencoder.decode(signals.movedim(1, -1) / base.scale + base.shift)


class _DualBlock(nn.Module):
    """The image attends to itself, the queries to image and queries; the queries' norms depend on their places."""

    def __init__(self, config: SelftokConfig, *, last: bool) -> None:
        super().__init__()
        width, queries = config.width, config.query_width
        self.heads, self.query_heads = config.heads, config.query_heads
        self.norm, self.query_norm = PlainNorm(width, _EPS), PlainNorm(queries, _EPS)
        self.to_query_kv = nn.Linear(width, 2 * queries)
        self.query_qkv = nn.Linear(queries, 3 * queries)
        self.query_proj = nn.Linear(queries, queries)
        self.query_mlp = tanh_mlp(queries)
        self.place = WaveEmbedding(queries)
        self.modulation = Modulation(queries, 6)
        self.last = last  # nothing reads its image
        if not last:
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)
            self.mlp = tanh_mlp(width)

    def forward(self, x: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        places = token_places(queries.shape[1], x.device)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(self.place(places)).unbind(1)
        seen = self.norm(x)
        q, k, v = heads_of(self.query_qkv(modulate(self.query_norm(queries), shift1, scale1)), 3, self.query_heads)
        image_k, image_v = heads_of(self.to_query_kv(seen), 2, self.query_heads)
        mixed = attend(q, torch.cat([image_k, k], 2), torch.cat([image_v, v], 2))
        queries = queries + gate1 * self.query_proj(mixed)
        queries = queries + gate2 * self.query_mlp(modulate(self.query_norm(queries), shift2, scale2))
        if not self.last:
            x = x + self.proj(attend(*heads_of(self.qkv(seen), 3, self.heads)))
            x = x + self.mlp(self.norm(x))
        return x, queries


class _Encoder(nn.Module):
    """Signals (B, C, S, S) -> (B, num_tokens, query_width)."""

    def __init__(self, config: SelftokConfig) -> None:
        super().__init__()
        self.patches = GridPatches(config.channels, config.width, 2, config.positions)
        self.queries = nn.Parameter(torch.randn(1, config.num_tokens, config.query_width) * 0.02)
        self.blocks = nn.ModuleList(_DualBlock(config, last=i == config.layers - 1) for i in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        queries = self.queries.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            x, queries = block(x, queries)
        return queries


_PUBLISHED = {  # arguments of the encoder that the published models share
    "patch_size": 2, "bidirectional": False, "qformer_mode": "dual", "pre_norm": False, "post_norm": True,
    "time_adaln": True, "qk_norm": False, "attn_mask": False,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> SelftokConfig:
    """The config of the original's arguments, as a fixture of the encoder or a published listing states them.

    Raises:
        ValueError: another kind of encoder than the published models have.
    """
    kwargs = meta["original"]["kwargs"]
    if "model" in kwargs:  # a listing, whose names stand for sizes
        names = (kwargs["enc"], kwargs["model"])
        if names[0] != "Enc-Qformer-Uni-XL/2" or names[1] not in ("MMDiT_XL", "MMDiT_XL_Renderer"):
            raise ValueError(f"expected Enc-Qformer-Uni-XL/2 and MMDiT_XL(_Renderer), got {' and '.join(names)}")
        decoder: FlowConfig | RendererConfig
        if names[1] == "MMDiT_XL_Renderer":
            decoder = RendererConfig(shared_mask_token=kwargs["decoder_config"]["repeat"])
        else:
            ends, counts = (tuple(map(int, kwargs[name].split(","))) for name in ("stages", "k_per_stage"))
            decoder = FlowConfig(stage_ends=ends, stage_tokens=counts, context_sees_image=kwargs["context_see_xt"])
        quantizer = _quantizer(kwargs["quantizer_config"], kwargs["k"])
        size, count = kwargs["image_size"] // 8, kwargs["k"]
        return SelftokConfig(kwargs["in_channels"], size, 2 * size, count, decoder=decoder, quantizer=quantizer)
    require_arguments(kwargs, _PUBLISHED, "Selftok's encoder")
    return SelftokConfig(
        channels=kwargs["in_channels"],
        latent_size=kwargs["input_size"],
        positions=kwargs["pos_embed_max_size"],
        num_tokens=kwargs["K"],
        width=kwargs["hidden_size"],
        heads=kwargs["num_heads"],
        query_width=kwargs["query_dim"],
        query_heads=kwargs["query_heads"],
        layers=kwargs["depth"],
        decoder=_renderer(kwargs["renderer"]) if "renderer" in kwargs else None,
        quantizer=_quantizer(kwargs["quantizer_config"], kwargs["K"]),
    )


def flow_from_original(meta: dict[str, Any]) -> FlowConfig:
    """The decoder's config, as a fixture of the decoder states it."""
    kwargs = meta["original"]["kwargs"]
    ends, counts = (tuple(map(int, kwargs[name].split(","))) for name in ("stages", "kps"))
    return FlowConfig(kwargs["head"], kwargs["depth"], kwargs["pm"], True, ends, counts, kwargs["steps"])


def _renderer(stated: dict[str, Any]) -> RendererConfig:
    return RendererConfig(stated["head"], stated["depth"], stated["repeat"])


def _quantizer(stated: dict[str, Any], positions: int) -> PositionDiversityConfig:
    codebook = EmaCodebookConfig(decay=stated["decay"])
    return PositionDiversityConfig(
        positions,
        VectorConfig(stated["codebook_size"], stated["code_dim"], metric="cosine", codebook=codebook),
        running_share=stated["ema_entropy_ratio"],
        decay=stated["decay"],
        full_below=stated["reg"][0],
        none_above=stated["reg"][1],
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The commitment, and the sum with the diversity, each with its weight."""
    stated, losses = meta["original"]["kwargs"]["quantizer_config"], quantized.losses
    found = {"loss.commit": losses["commitment"]}
    if "diversity" in losses:
        found["loss.total"] = stated["w_commit"] * losses["commitment"] + stated["w_diversity"] * losses["diversity"]
    return found
