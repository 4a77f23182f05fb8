"""SEED: an image as words in causal order, by a Q-Former whose codes stand for CLIP's embedding of the image.

Papers: arXiv 2307.08041, 2310.01218 (SEED-2, whose layout this is). Original: AILab-CVC/SEED (Apache-2.0, with parts of
LAVIS, BSD-3). A diffusion model conditioned on embeddings (unCLIP, arXiv 2204.06125) makes images of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.transformer import MLP, TransformerBlock
from zoo.layers.unclip import UnCLIP, UnCLIPConfig
from zoo.ops.precision import full_precision
from zoo.quantizers import Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens

_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


@dataclass(frozen=True)
class VisionConfig(Config):
    """A vision transformer; the defaults are EVA-CLIP's giant one without its last block."""

    width: int = 1408
    layers: int = 39
    heads: int = 16
    hidden: int = 6144
    patch_size: int = 14

    def __post_init__(self) -> None:
        self.require(self.width % self.heads == 0, "a width that the heads divide", (self.width, self.heads))


@dataclass(frozen=True)
class QFormerConfig(Config):
    """Queries that read an image, each seeing those before it; the defaults are BERT's base sizes."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    cross_every: int = 2  # layers, of which the first reads the image

    def __post_init__(self) -> None:
        self.require(self.width % self.heads == 0, "a width that the heads divide", (self.width, self.heads))
        self.require(self.cross_every >= 1, "cross_every >= 1", self.cross_every)


@dataclass(frozen=True)
class SeedConfig(Config):
    """Sizes of the network; the defaults are those of the published model."""

    image_size: int = 224  # pixels a side; the learned positions allow no other
    num_tokens: int = 32
    vision: VisionConfig = VisionConfig()
    queries: QFormerConfig = QFormerConfig()
    decoder_layers: int = 4
    decoder_heads: int = 12
    embedding_width: int = 1024  # of CLIP's embedding of an image
    generator: UnCLIPConfig | None = (
        None  # what makes images of embeddings; None: the model gives tokens and embeddings
    )
    quantizer: QuantizerConfig = VectorConfig(codebook_size=8192, dim=32)

    def __post_init__(self) -> None:
        patch = self.vision.patch_size
        self.require(self.image_size % patch == 0, f"an image_size that is a multiple of {patch}", self.image_size)
        width = self.queries.width
        self.require(width % self.decoder_heads == 0, "decoder_heads that divide the width", self.decoder_heads)
        self.require(self.num_tokens >= 1, "num_tokens >= 1", self.num_tokens)
        if self.generator is not None:
            given = self.generator.embedding_width
            self.require(given == self.embedding_width, f"a generator that reads {self.embedding_width} numbers", given)


@register("seed_tokenizer")
class SeedTokenizer(Tokenizer):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> tokens (B, num_tokens) in causal order.

    `embeddings` gives what the tokens stand for. Images come from a generator, which the published file does not hold:
    `with_generator` takes it from a pipeline of diffusers. Then `decode` takes `steps`, `guidance_scale`, and `noise`
    (of the generator's latents) or a `seed` (0 if none is given; a list has one for each item).
    """

    layout = "sequence"
    decode_options = frozenset({"steps", "guidance_scale", "seed", "noise"})
    further_parts: ClassVar[Mapping[str, Config]] = {"generator": UnCLIPConfig()}
    config: SeedConfig

    def __init__(self, config: SeedConfig) -> None:
        size = config.image_size
        spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), size=(size, size))
        super().__init__(config, spec, config.quantizer)
        width, dim, count = config.queries.width, config.quantizer.dim, config.num_tokens
        self.vision = _Vision(config.vision, size // config.vision.patch_size)
        self.norm_vision = nn.LayerNorm(config.vision.width)
        self.queries = _QFormer(config.queries, config.vision.width, count)
        self.to_latent = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.from_codes = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, width))
        self.code_positions = nn.Parameter(torch.zeros(1, count, width))
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, config.decoder_heads, MLP(width, 4 * width), eps=1e-6)
                for _ in range(config.decoder_layers)
            )
        )
        sizes = (width, 256, 128, 32)
        layers = [(nn.Linear(a, b, bias=False), nn.ReLU()) for a, b in pairwise(sizes)]
        self.reduce = nn.Sequential(*[layer for pair in layers for layer in pair][:-1])
        self.to_embedding = nn.Linear(sizes[-1] * count, config.embedding_width)
        self.generator = None if config.generator is None else UnCLIP(config.generator)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.num_tokens,)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] -> what each query has read of them (B, num_tokens, width)."""
        mean, deviation = (x.new_tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
        return self.hidden_of_normalized((x - mean) / deviation)

    def hidden_of_normalized(self, x: Tensor) -> Tensor:
        """`hidden` of images from which CLIP's mean was taken, divided by its standard deviation."""
        return self.queries(self.norm_vision(self.vision(x)))

    def embedding_of(self, codes: Tensor) -> Tensor:
        """Code vectors (B, num_tokens, D) -> CLIP's embedding of the image as predicted (B, embedding_width).

        Raises:
            ValueError: another number of codes.
        """
        if codes.shape[1] != self.config.num_tokens:
            raise ValueError(f"expected {self.config.num_tokens} tokens, got {codes.shape[1]}")
        hidden = self.blocks(self.from_codes(codes) + self.code_positions)
        return self.to_embedding(self.reduce(hidden).flatten(1))

    @torch.no_grad()
    def embeddings(self, tokens: Tokens) -> Tensor:
        """CLIP's (ViT-H/14) embeddings of the images as the tokens of this model tell them (B, embedding_width).

        Raises:
            ValueError: tokens of another model.
        """
        return self.embedding_of(self.codes(tokens).to(self.dtype))

    def with_generator(self, pipeline: Any) -> SeedTokenizer:
        """This model with copies of the parts of a pipeline, in evaluation mode.

        Args:
            pipeline: diffusers' StableUnCLIPImg2ImgPipeline, that of stabilityai/stable-diffusion-2-1-unclip.
        """
        generator = UnCLIP.of(pipeline)
        model = SeedTokenizer(self.config.replace(generator=generator.config))
        model.load_state_dict({**self.state_dict(), **generator.state_dict(prefix="generator.")})
        return model.to(next(self.parameters()).device, self.dtype).eval()

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self._generate(codes, steps=1 if self.training else None)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        return self._generate(codes, **options)

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        if self.config.generator is None:
            return super().noise_shape(codes)
        return (codes.shape[0], *self.config.generator.latent_shape)

    def _generate(self, codes: Tensor, **options: Any) -> Tensor:
        embedding = self.embedding_of(codes)
        if self.generator is None:
            raise ValueError(
                f"{self.name} has no generator of images: expected a model from with_generator, got one of tokens and "
                "embeddings alone"
            )
        images = self.generator(embedding, **options)
        size = (self.config.image_size, self.config.image_size)
        with full_precision(images):
            return F.interpolate(images.float(), size, mode="bicubic", antialias=True).to(images.dtype)


class _Vision(nn.Module):
    """Images (B, 3, S, S) -> (B, 1 + patches, width), the class token first; there is no last norm."""

    def __init__(self, config: VisionConfig, grid: int) -> None:
        super().__init__()
        width = config.width
        self.patches = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + grid**2, width) * 0.02)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, config.heads, MLP(width, config.hidden), eps=1e-6) for _ in range(config.layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        head = self.class_token.to(patches.dtype).expand(x.shape[0], -1, -1)
        return self.blocks(torch.cat([head, patches], 1) + self.positions)


class _Attention(nn.Module):
    """Queries (B, N, width) read keys and values made of (B, M, key_width) -> (B, N, width)."""

    def __init__(self, width: int, key_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, read: Tensor, *, causal: bool = False) -> Tensor:
        parts = (self.query(x), self.key(read), self.value(read))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _QueryLayer(nn.Module):
    """Causal attention among the queries, attention to the image where `crosses`, MLP; the norms follow the sums."""

    def __init__(self, config: QFormerConfig, image_width: int, *, crosses: bool) -> None:
        super().__init__()
        width = config.width
        self.attention = _Attention(width, width, config.heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.cross_attention = _Attention(width, image_width, config.heads) if crosses else None
        self.norm2 = nn.LayerNorm(width, eps=1e-12) if crosses else nn.Identity()
        self.mlp = MLP(width, config.hidden)
        self.norm3 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, causal=True))
        if self.cross_attention is not None:
            x = self.norm2(x + self.cross_attention(x, image))
        return self.norm3(x + self.mlp(x))


class _QFormer(nn.Module):
    """Features of an image (B, M, image_width) -> (B, num_tokens, width)."""

    def __init__(self, config: QFormerConfig, image_width: int, count: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, count, config.width) * 0.02)
        self.norm_in = nn.LayerNorm(config.width, eps=1e-12)
        self.layers = nn.ModuleList(
            _QueryLayer(config, image_width, crosses=i % config.cross_every == 0) for i in range(config.layers)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm_in(self.tokens).expand(image.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, image)
        return x


def config_from_original(meta: dict[str, Any]) -> SeedConfig:
    """The config of the original's arguments, as a fixture or a published listing states them."""
    original = meta["original"]
    kwargs, vision, queries = original["kwargs"], original.get("vit"), original.get("qformer")
    if kwargs.get("use_qformer_image"):
        raise ValueError("expected use_qformer_image=False, as published for inference")
    fields: dict[str, Any] = {}
    if vision is not None:
        hidden = int(vision["embed_dim"] * vision["mlp_ratio"])
        fields["vision"] = VisionConfig(
            vision["embed_dim"], vision["depth"], vision["num_heads"], hidden, vision["patch_size"]
        )
    if queries is not None:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "cross_attention_freq")
        fields["queries"] = QFormerConfig(*(queries[name] for name in names))
    return SeedConfig(
        image_size=kwargs["img_size"],
        num_tokens=kwargs["num_query_token"],
        decoder_layers=kwargs["decode_depth"],
        embedding_width=kwargs["image_features_dim"],
        quantizer=VectorConfig(kwargs["n_embed"], kwargs["codebook_embed_dim"]),
        **fields,
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original weighs the codebook term, not the commitment, by beta = 0.25."""
    losses = quantized.losses
    return {"loss.vq": losses["commitment"] + 0.25 * losses["codebook"]} if "codebook" in losses else {}


def _block(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.{{}}.attn.*": f"{own}.{{}}.attention.*",
        f"{published}.{{}}.norm1.*": f"{own}.{{}}.norm1.*",
        f"{published}.{{}}.norm2.*": f"{own}.{{}}.norm2.*",
        f"{published}.{{}}.mlp.*": f"{own}.{{}}.mlp.*",
    }


def _with_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision transformer's biases of queries, keys (zero, and not stored) and values as one."""
    for key in [key for key in state if key.endswith(".q_bias")]:
        place, query = key.removesuffix("q_bias"), state.pop(key)
        state[f"{place}qkv.bias"] = torch.cat([query, torch.zeros_like(query), state.pop(f"{place}v_bias")])
    return state


_LAYER, _OWN = "Qformer.bert.encoder.layer.{}", "queries.layers.{}"

KEY_MAP = KeyMap(
    {
        "visual_encoder.patch_embed.proj.*": "vision.patches.*",
        "visual_encoder.cls_token": "vision.class_token",
        "visual_encoder.pos_embed": "vision.positions",
        **_block("visual_encoder.blocks", "vision.blocks"),
        "ln_vision.*": "norm_vision.*",
        "query_tokens": "queries.tokens",
        "Qformer.bert.embeddings.LayerNorm.*": "queries.norm_in.*",
        "Qformer.bert.embeddings.*": None,  # of text, as are the next three
        f"{_LAYER}.intermediate.*": None,
        f"{_LAYER}.output.*": None,
        "Qformer.cls.*": None,
        **{
            f"{_LAYER}.{theirs}.self.{part}.*": f"{_OWN}.{ours}.{part}.*"
            for theirs, ours in (("attention", "attention"), ("crossattention", "cross_attention"))
            for part in ("query", "key", "value")
        },
        f"{_LAYER}.attention.output.dense.*": f"{_OWN}.attention.proj.*",
        f"{_LAYER}.attention.output.LayerNorm.*": f"{_OWN}.norm1.*",
        f"{_LAYER}.crossattention.output.dense.*": f"{_OWN}.cross_attention.proj.*",
        f"{_LAYER}.crossattention.output.LayerNorm.*": f"{_OWN}.norm2.*",
        f"{_LAYER}.intermediate_query.dense.*": f"{_OWN}.mlp.fc1.*",
        f"{_LAYER}.output_query.dense.*": f"{_OWN}.mlp.fc2.*",
        f"{_LAYER}.output_query.LayerNorm.*": f"{_OWN}.norm3.*",
        "encode_task_layer.*": "to_latent.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "decode_task_layer.*": "from_codes.*",
        "pos_embed_image": "code_positions",
        **_block("blocks_image", "blocks"),
        "image_down.*": "reduce.*",
        "distill_image_proj.*": "to_embedding.*",
        "pos_embed": None,  # of a loss of the original's training, as are the next
        "blocks.*": None,
    },
    finish=_with_biases,
)
