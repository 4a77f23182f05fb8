"""UniTok: one tokenizer for generation and understanding, a hybrid transformer (ViTamin) with several small codebooks.

Paper: arXiv 2502.20321; ViTamin: arXiv 2404.02132. Original: FoundationVision/UniTok (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.resnet import Upsample
from zoo.layers.transformer import TransformerBlock
from zoo.quantizers import GroupedConfig, Quantized, QuantizerConfig, SoftEntropyConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class UniTokConfig(Config):
    """Sizes of the network; the defaults are those of the published model."""

    stem_width: int = 160
    stage_widths: tuple[int, int] = (160, 320)  # of the convolutional stages, finest first
    stage_blocks: tuple[int, int] = (2, 4)  # of the encoder
    decoder_stage_blocks: tuple[int, int] = (4, 2)  # coarsest first
    width: int = 1024  # of the transformers
    layers: int = 31  # of each transformer
    heads: int = 16
    mlp_ratio: float = 2.0
    projection_heads: int | None = 16  # of the attention before and after the quantizer; None: linear maps
    embedding_width: int = 768  # of CLIP's space
    quantizer: QuantizerConfig = GroupedConfig(
        group=VectorConfig(codebook_size=4096, dim=8, metric="cosine"), num_groups=8
    )

    def __post_init__(self) -> None:
        for heads in (self.heads, self.projection_heads or 1):
            self.require(self.width % heads == 0, "a width that the heads divide", (self.width, heads))


@register("unitok")
class UniTok(Tokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of 16 -> a grid of tokens for each of the codebooks."""

    def __init__(self, config: UniTokConfig) -> None:
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=16)
        super().__init__(config, spec, config.quantizer)
        width, dim = config.width, config.quantizer.dim
        self.encoder = _Encoder(config)
        self.to_latent, self.from_codes = (
            nn.Linear(*sides) if config.projection_heads is None else _Projection(*sides, config.projection_heads)
            for sides in ((width, dim), (dim, width))
        )
        self.decoder = _Decoder(config)
        # the image side of CLIP: it rests but for training with texts (`trainers.tasks.ContrastiveTask`)
        self.feature_norm = nn.LayerNorm(width, eps=1e-6).requires_grad_(False)
        self.to_embedding = nn.Linear(width, config.embedding_width).requires_grad_(False)

    def latent(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        return self.to_latent(features.flatten(1, 2)).unflatten(1, features.shape[1:3])

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.features(codes))

    def features(self, codes: Tensor) -> Tensor:
        """Code vectors (B, h, w, D) -> what the decoder and CLIP's head take, (B, h, w, width)."""
        return self.from_codes(codes.flatten(1, 2)).unflatten(1, codes.shape[1:3])

    @property
    def embedding_head(self) -> nn.ModuleList:
        """What `image_embedding` has of its own."""
        return nn.ModuleList([self.feature_norm, self.to_embedding])

    def image_embedding(self, codes: Tensor) -> Tensor:
        """Code vectors (B, h, w, D) -> the images' embeddings in CLIP's space (B, embedding_width), of unit length."""
        return F.normalize(self.to_embedding(self.feature_norm(self.features(codes).mean((1, 2)))), dim=-1)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class _InvertedBlock(nn.Module):
    """norm, 1x1 to four times the width, GELU, depthwise 3x3, GELU, 1x1; plus the input. `scale` halves or doubles."""

    def __init__(self, in_channels: int, out_channels: int, scale: Literal["halve", "keep", "double"] = "keep") -> None:
        super().__init__()
        hidden, stride = _divisible_by_8(4 * out_channels), 2 if scale == "halve" else 1
        self.norm = _ChannelNorm(in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, hidden, 1)
        self.enlarge = Upsample(hidden, hidden) if scale == "double" else nn.Identity()
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1)
        self.pool = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False) if scale == "halve" else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if scale == "double":
            self.shortcut = Upsample(in_channels, out_channels)
        elif in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enlarge(F.gelu(self.conv1(self.norm(x))))
        return self.conv3(F.gelu(self.conv2(h))) + self.shortcut(self.pool(x))


def _divisible_by_8(width: int) -> int:
    """The nearest multiple of 8, at least 8, and never less than nine tenths of the width."""
    rounded = max(8, (width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


class _GatedMLP(nn.Module):
    """norm, then a linear map of gelu(linear(x)) * linear(x), GELU in its tanh form."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, hidden)
        self.value = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.out(F.gelu(self.gate(x), approximate="tanh") * self.value(x))


def _blocks(config: UniTokConfig) -> nn.Sequential:
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    return nn.Sequential(
        *(TransformerBlock(width, config.heads, _GatedMLP(width, hidden), eps=1e-6) for _ in range(config.layers))
    )


class _Encoder(nn.Module):
    """Images (B, 3, H, W) -> (B, H / 16, W / 16, width): convolutional stages, then a transformer."""

    offset: Tensor

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        stem, widths = config.stem_width, config.stage_widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1),
            _ChannelNorm(stem, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(stem, stem, 3, padding=1),
        )
        self.stages = nn.Sequential()
        for before, width, blocks in zip((stem, *widths), widths, config.stage_blocks):
            stage = [_InvertedBlock(before, width, "halve")] + [_InvertedBlock(width, width) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
        self.pool = nn.Sequential(
            _ChannelNorm(widths[-1], eps=1e-6), nn.Conv2d(widths[-1], config.width, 3, stride=2, padding=1)
        )
        self.register_buffer("offset", torch.zeros(config.width))  # stands for positions, of which there are none
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pool(self.stages(self.stem(x))).movedim(1, -1)
        return self.norm(self.blocks(hidden.flatten(1, 2) + self.offset)).unflatten(1, hidden.shape[1:3])


class _Decoder(nn.Module):
    """(B, h, w, width) -> images (B, 3, 16 h, 16 w): a transformer, then convolutional stages."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        fine, coarse = config.stage_widths
        self.up = Upsample(config.width, coarse)
        self.stages = nn.Sequential()
        for before, width, blocks in zip((coarse, coarse), (coarse, fine), config.decoder_stage_blocks):
            stage = [_InvertedBlock(before, width, "double")] + [
                _InvertedBlock(width, width) for _ in range(blocks - 1)
            ]
            self.stages.append(nn.Sequential(*stage))
        self.stem = nn.Sequential(
            Upsample(fine, config.stem_width),
            _ChannelNorm(config.stem_width, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(config.stem_width, 3, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.norm(self.blocks(features.flatten(1, 2))).unflatten(1, features.shape[1:3]).movedim(-1, 1)
        return self.stem(self.stages(self.up(hidden)))


class _Projection(nn.Module):
    """A transformer block that changes the width of (B, N, C); where it shrinks, the heads are averaged."""

    def __init__(self, in_width: int, out_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.averages = in_width > out_width
        inner = in_width if self.averages else out_width
        self.norm1 = nn.LayerNorm(in_width)
        self.qkv = nn.Linear(in_width, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.out = nn.Linear(out_width, out_width)
        self.norm3 = nn.LayerNorm(in_width)
        self.shortcut = nn.Linear(in_width, out_width)
        self.norm2 = nn.LayerNorm(out_width)
        self.mlp = _GatedMLP(out_width, 2 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(self.norm3(x)) + self._attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        parts = (q + self.q_bias, k, v + self.v_bias)
        mixed = F.scaled_dot_product_attention(
            *(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        )
        if not self.averages:
            return self.out(mixed.transpose(1, 2).flatten(2))
        mixed = mixed.mean(1)
        if mixed.shape[-1] != self.out.in_features:
            mixed = F.adaptive_avg_pool1d(mixed, self.out.in_features)
        return self.out(mixed)


def config_from_original(meta: dict[str, Any]) -> UniTokConfig:
    """The config of the original's arguments; the sizes behind its model name, a fixture states beside them."""
    kwargs, sizes = meta["original"]["kwargs"], meta["original"].get("vitamin", {})
    kind, queries = kwargs["quant_proj"], kwargs["num_query"]
    if kind not in ("attn", "linear") or queries:
        raise ValueError(f"expected quant_proj attn or linear and no queries, got {kind}, {queries}")
    groups = kwargs["num_codebooks"]
    entropy = SoftEntropyConfig(temperature=kwargs["e_temp"], shift=1e-7) if kwargs["le"] > 0 else None
    group = VectorConfig(
        codebook_size=kwargs["vocab_size"] // groups,
        dim=kwargs["vocab_width"] // groups,
        metric="cosine",
        entropy=entropy,
    )
    fine, coarse, width = sizes.get("embed_dim", (160, 320, 1024))
    return UniTokConfig(
        stem_width=sizes.get("stem_width", 160),
        stage_widths=(fine, coarse),
        stage_blocks=tuple(sizes.get("depths", (2, 4))),
        decoder_stage_blocks=tuple(sizes.get("decoder_depths", (4, 2))),
        width=width,
        layers=sizes.get("transformer_depth", 31),
        heads=sizes.get("num_heads", 16),
        mlp_ratio=float(sizes.get("mlp_ratio", 2.0)),
        projection_heads=width // kwargs["vocab_width"] if kind == "attn" else None,
        embedding_width=kwargs["embed_dim"],
        quantizer=GroupedConfig(group=group, num_groups=groups),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names; the entropy term is unweighted."""
    losses = quantized.losses
    named = {"loss.vq": losses["codebook"] + meta["original"]["kwargs"]["vq_beta"] * losses["commitment"]}
    if "entropy" in losses:
        named["loss.entropy"] = losses["entropy"]
    return named


def _inverted(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.pre_norm.*": f"{own}.norm.*",
        f"{published}.conv1_1x1.*": f"{own}.conv1.*",
        f"{published}.up.*": f"{own}.enlarge.*",
        f"{published}.conv2_kxk.*": f"{own}.conv2.*",
        f"{published}.conv3_1x1.*": f"{own}.conv3.*",
        f"{published}.shortcut.expand.*": f"{own}.shortcut.*",
        f"{published}.shortcut.conv.*": f"{own}.shortcut.conv.*",
    }


def _gated(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.mlp.norm.*": f"{own}.mlp.norm.*",
        f"{published}.mlp.w0.*": f"{own}.mlp.gate.*",
        f"{published}.mlp.w1.*": f"{own}.mlp.value.*",
        f"{published}.mlp.w2.*": f"{own}.mlp.out.*",
    }


def _projection(published: str, own: str) -> dict[str, str | None]:
    return {
        **{f"{published}.{part}": f"{own}.{part}" for part in ("weight", "bias")},  # of a linear map
        f"{published}.norm{{}}.*": f"{own}.norm{{}}.*",
        f"{published}.attn.qkv.*": f"{own}.qkv.*",
        f"{published}.attn.q_bias": f"{own}.q_bias",
        f"{published}.attn.v_bias": f"{own}.v_bias",
        f"{published}.attn.zero_k_bias": None,
        f"{published}.attn.proj.*": f"{own}.out.*",
        f"{published}.proj.*": f"{own}.shortcut.*",
        **_gated(published, own),
    }


def _transformer(side: str) -> dict[str, str | None]:
    return {
        f"{side}.blocks.{{}}.norm{{}}.*": f"{side}.blocks.{{}}.norm{{}}.*",
        f"{side}.blocks.{{}}.attn.*": f"{side}.blocks.{{}}.attention.*",
        **_gated(f"{side}.blocks.{{}}", f"{side}.blocks.{{}}"),
        f"{side}.norm.*": f"{side}.norm.*",
    }


_CONVOLUTIONS = "encoder.patch_embed.backbone"

KEY_MAP = KeyMap(
    {
        f"{_CONVOLUTIONS}.stem.conv1.*": "encoder.stem.0.*",
        f"{_CONVOLUTIONS}.stem.norm1.*": "encoder.stem.1.*",
        f"{_CONVOLUTIONS}.stem.conv2.*": "encoder.stem.3.*",
        **_inverted(f"{_CONVOLUTIONS}.stages.{{}}.{{}}", "encoder.stages.{}.{}"),
        f"{_CONVOLUTIONS}.pool.norm.*": "encoder.pool.0.*",
        f"{_CONVOLUTIONS}.pool.proj.*": "encoder.pool.1.*",
        "encoder.pos_embed": "encoder.offset",
        **_transformer("encoder"),
        **_projection("quant_proj", "to_latent"),
        "quantizer.codebooks.{}.codebook.weight": "quantizer.groups.{}.codebook.weight",
        "quantizer.codebooks.{}.vocab_usage": None,  # how often the original's training used each code
        **_projection("post_quant_proj", "from_codes"),
        **_transformer("decoder"),
        "decoder.up_conv1.*": "decoder.up.*",
        **_inverted("decoder.up_conv2.{}", "decoder.stages.0.{}"),
        **_inverted("decoder.up_conv3.{}", "decoder.stages.1.{}"),
        "decoder.up_conv4.conv1.*": "decoder.stem.0.*",
        "decoder.up_conv4.norm1.*": "decoder.stem.1.*",
        "decoder.up_conv4.conv2.*": "decoder.stem.3.*",
        "fc_norm.*": "feature_norm.*",
        "projection.*": "to_embedding.*",
        "logit_scale": None,  # of CLIP's training, as is the text tower
        "text_encoder.*": None,
    },
    transforms={"encoder.offset": lambda offset: offset.flatten()},
)
