"""SEED: an image as words in causal order, by a Q-Former whose codes stand for what a diffusion model is told of it.

Papers: arXiv 2307.08041, whose codes stand for the states of a prompt, and 2310.01218 (SEED-2), whose codes stand for
CLIP's embedding of the image. Original: AILab-CVC/SEED (Apache-2.0, with parts of LAVIS, BSD-3), on its branches v1 and
main. A diffusion model conditioned on embeddings (unCLIP, arXiv 2204.06125) makes images of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.seed_tokenizer_keys import KEY_MAP as KEY_MAP
from tokenizers_visual.seed_tokenizer_keys import KEY_MAP_OF_PROMPTS as KEY_MAP_OF_PROMPTS
from tokenizers_visual.seed_tokenizer_keys import key_map_from_original as key_map_from_original
from tokenizers_visual.seed_tokenizer_keys import of_prompts
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
class PromptConfig(Config):
    """A second Q-Former, not causal and as wide as the first, which reads states of a prompt from the codes."""

    length: int = 77
    layers: int = 4

    def __post_init__(self) -> None:
        self.require(self.length >= 1, "length >= 1", self.length)
        self.require(self.layers >= 1, "layers >= 1", self.layers)


@dataclass(frozen=True)
class SeedConfig(Config):
    """Sizes of the network; the defaults are those of the published model."""

    image_size: int = 224  # pixels a side; the learned positions allow no other
    num_tokens: int = 32
    vision: VisionConfig = VisionConfig()
    queries: QFormerConfig = QFormerConfig()
    decoder_layers: int = 4
    decoder_heads: int = 12
    prompt: PromptConfig | None = None  # what the codes stand for; None: CLIP's embedding of the image
    embedding_width: int = 1024  # of CLIP's embedding of an image, or of each state of the prompt
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
            self.require(self.prompt is None, "no prompt beside a generator, which reads embeddings", self.prompt)
            given = self.generator.embedding_width
            self.require(given == self.embedding_width, f"a generator that reads {self.embedding_width} numbers", given)


@register("seed_tokenizer")
class SeedTokenizer(Tokenizer):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> tokens (B, num_tokens) in causal order.

    `embeddings` gives what the tokens stand for. Images come from a generator, which the published file does not hold:
    `with_generator` takes it from a pipeline of diffusers. Then `decode` takes `steps`, `guidance_scale`, and `noise`
    (of the generator's latents) or a `seed` (0 if none is given; a list has one for each item). The states of a prompt
    (`config.prompt`) are what Stable Diffusion's pipeline takes as `prompt_embeds`.
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
        self.queries = _QFormer(config.queries, config.vision.width, count, causal=True)
        self.to_latent = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.from_codes = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, width))
        self.code_positions = nn.Parameter(torch.zeros(1, count, width))
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, config.decoder_heads, MLP(width, 4 * width), eps=1e-6)
                for _ in range(config.decoder_layers)
            )
        )
        if config.prompt is None:
            sizes = (width, 256, 128, 32)
            layers = [(nn.Linear(a, b, bias=False), nn.ReLU()) for a, b in pairwise(sizes)]
            self.reduce = nn.Sequential(*[layer for pair in layers for layer in pair][:-1])
            self.to_embedding = nn.Linear(sizes[-1] * count, config.embedding_width)
        else:
            reading = config.queries.replace(layers=config.prompt.layers)
            self.prompt = _QFormer(reading, width, config.prompt.length, causal=False)
            self.to_embedding = nn.Linear(width, config.embedding_width)
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

        With `config.prompt`: the states of a prompt (B, length, embedding_width).

        Raises:
            ValueError: another number of codes.
        """
        if codes.shape[1] != self.config.num_tokens:
            raise ValueError(f"expected {self.config.num_tokens} tokens, got {codes.shape[1]}")
        hidden = self.blocks(self.from_codes(codes) + self.code_positions)
        if self.config.prompt is not None:
            return self.to_embedding(self.prompt(hidden))
        return self.to_embedding(self.reduce(hidden).flatten(1))

    @torch.no_grad()
    def embeddings(self, tokens: Tokens) -> Tensor:
        """CLIP's (ViT-H/14) embeddings of the images as the tokens of this model tell them (B, embedding_width).

        With `config.prompt`: states of prompts (B, length, embedding_width), as CLIP's ViT-L/14 has them of texts.

        Raises:
            ValueError: tokens of another model.
        """
        return self.embedding_of(self.codes(tokens).to(self.dtype))

    def with_generator(self, pipeline: Any) -> SeedTokenizer:
        """This model with copies of the parts of a pipeline, in evaluation mode.

        Args:
            pipeline: diffusers' StableUnCLIPImg2ImgPipeline, that of stabilityai/stable-diffusion-2-1-unclip.

        Raises:
            ConfigError: a model whose tokens stand for the states of a prompt.
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
            way = "a model from with_generator" if self.config.prompt is None else "its embeddings as prompt_embeds"
            raise ValueError(
                f"{self.name} has no generator of images: expected {way}, got one of tokens and embeddings alone"
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
    """Attention among the queries, attention to what they read where `crosses`, MLP; the norms follow the sums."""

    def __init__(self, config: QFormerConfig, read_width: int, *, crosses: bool, causal: bool) -> None:
        super().__init__()
        width = config.width
        self.causal = causal
        self.attention = _Attention(width, width, config.heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.cross_attention = _Attention(width, read_width, config.heads) if crosses else None
        self.norm2 = nn.LayerNorm(width, eps=1e-12) if crosses else nn.Identity()
        self.mlp = MLP(width, config.hidden)
        self.norm3 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, causal=self.causal))
        if self.cross_attention is not None:
            x = self.norm2(x + self.cross_attention(x, read))
        return self.norm3(x + self.mlp(x))


class _QFormer(nn.Module):
    """Features (B, M, read_width), of an image or of codes -> (B, count, width)."""

    def __init__(self, config: QFormerConfig, read_width: int, count: int, *, causal: bool) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, count, config.width) * 0.02)
        self.norm_in = nn.LayerNorm(config.width, eps=1e-12)
        self.layers = nn.ModuleList(
            _QueryLayer(config, read_width, crosses=i % config.cross_every == 0, causal=causal)
            for i in range(config.layers)
        )

    def forward(self, read: Tensor) -> Tensor:
        x = self.norm_in(self.tokens).expand(read.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, read)
        return x


def config_from_original(meta: dict[str, Any]) -> SeedConfig:
    """The config of the original's arguments, as a fixture or a published listing states them."""
    original = meta["original"]
    kwargs, vision, queries = original["kwargs"], original.get("vit"), original.get("qformer")
    if kwargs.get("use_qformer_image"):
        raise ValueError("expected use_qformer_image=False, as published for inference")
    fields: dict[str, Any] = {}
    if of_prompts(meta):
        fields["prompt"] = PromptConfig(kwargs["num_reverse_token"], kwargs["reverse_depth"])
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
        embedding_width=kwargs["text_features_dim" if of_prompts(meta) else "image_features_dim"],
        quantizer=VectorConfig(kwargs["n_embed"], kwargs["codebook_embed_dim"]),
        **fields,
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original weighs the codebook term, not the commitment, by beta = 0.25."""
    losses = quantized.losses
    return {"loss.vq": losses["commitment"] + 0.25 * losses["codebook"]} if "codebook" in losses else {}
