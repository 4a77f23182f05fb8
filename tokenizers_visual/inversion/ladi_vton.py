"""LaDI-VTON's inversion adapter: the hidden states of CLIP's image encoder to several words, for try-on of garments.

Paper: arXiv 2305.13501. Original: miccunifi/ladi-vton (CC BY-NC 4.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.phi import projection_mlp
from tokenizers_visual.inversion.projector import Projector, ProjectorConfig
from zoo.checkpoint import KeyMap
from zoo.layers.transformer import MLP, TransformerBlock
from zoo.registry import register

CATEGORIES = {"dresses": "a dress", "upper_body": "an upper body garment", "lower_body": "a lower body garment"}


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


@dataclass(frozen=True)
class LadiVtonConfig(ProjectorConfig):
    """Sizes of the adapter; the defaults are the published ones. `image_dim` is the width of the hidden states."""

    backbone: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    image_dim: int = 1280
    word_dim: int = 1024
    words: int = 16  # of each image
    blocks: int = 1  # transformer blocks over the hidden states
    heads: int = 16
    mlp_dim: int = 5120  # of the blocks
    activation: Literal["gelu", "quick_gelu"] = "gelu"  # of the blocks
    hidden_dim: int = 5120  # of the projection
    dropout: float = 0.5
    eps: float = 1e-5  # of the layer norms

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.words > 0, "at least one word", self.words)
        self.require(self.blocks >= 0, "blocks of 0 or more", self.blocks)
        self.require(
            self.heads > 0 and self.image_dim % self.heads == 0, f"heads that divide {self.image_dim}", self.heads
        )
        self.require(self.mlp_dim > 0 and self.hidden_dim > 0, "positive widths", (self.mlp_dim, self.hidden_dim))
        self.require(0 <= self.dropout < 1, "dropout in [0, 1)", self.dropout)


@register("ladi_vton")
class LadiVton(Projector):
    """Hidden states (B, N, W), class token first, before the encoder's last norm -> n words each (B, n, D)."""

    config: LadiVtonConfig
    features = "tokens"

    def __init__(self, config: LadiVtonConfig) -> None:
        super().__init__(config)
        width = config.image_dim
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.heads,
                MLP(width, config.mlp_dim, _ACTIVATIONS[config.activation]),
                eps=config.eps,
            )
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.layers = projection_mlp(width, config.hidden_dim, config.words * config.word_dim, config.dropout)

    def forward(self, image_features: Tensor) -> Tensor:
        for block in self.blocks:
            image_features = block(image_features)
        return self.layers(self.norm(image_features[:, 0])).unflatten(-1, (self.config.words, -1))


def try_on_prompt(category: str) -> str:
    """The published prompt of a garment's category; its "$" stands for all the words."""
    if category not in CATEGORIES:
        raise ValueError(f"category: expected one of {', '.join(CATEGORIES)}, got {category!r}")
    return f"a photo of a model wearing {CATEGORIES[category]} $"


def config_from_original(meta: dict[str, Any]) -> LadiVtonConfig:
    """The config of the original's constructor arguments, with the image encoder's among them."""
    kwargs = meta["original"]["kwargs"]
    encoder = kwargs["config"] if isinstance(kwargs["config"], dict) else kwargs["config_values"]
    return LadiVtonConfig(
        backbone=meta.get("clip") or LadiVtonConfig.backbone,
        image_dim=kwargs["input_dim"],
        word_dim=kwargs["output_dim"] // kwargs["num_vstar"],
        words=kwargs["num_vstar"],
        blocks=kwargs.get("num_encoder_layers", 1),
        heads=encoder["num_attention_heads"],
        mlp_dim=encoder["intermediate_size"],
        activation=encoder["hidden_act"],
        hidden_dim=kwargs["hidden_dim"],
        dropout=kwargs.get("dropout", 0.5),
        eps=encoder["layer_norm_eps"],
    )


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one."""
    joined = {}
    for name, value in state.items():
        if ".attention.q." in name:
            rest = [state[name.replace(".q.", f".{part}.")] for part in "kv"]
            joined[name.replace(".q.", ".qkv.")] = torch.cat([value, *rest])
        elif ".attention.k." not in name and ".attention.v." not in name:
            joined[name] = value
    return joined


KEY_MAP = KeyMap(
    {
        "encoder_layers.{}.layer_norm1.*": "blocks.{}.norm1.*",
        "encoder_layers.{}.self_attn.q_proj.*": "blocks.{}.attention.q.*",
        "encoder_layers.{}.self_attn.k_proj.*": "blocks.{}.attention.k.*",
        "encoder_layers.{}.self_attn.v_proj.*": "blocks.{}.attention.v.*",
        "encoder_layers.{}.self_attn.out_proj.*": "blocks.{}.attention.proj.*",
        "encoder_layers.{}.layer_norm2.*": "blocks.{}.norm2.*",
        "encoder_layers.{}.mlp.*": "blocks.{}.mlp.*",
        "post_layernorm.*": "norm.*",
        "layers.{}.*": "layers.{}.*",
    },
    finish=_joined,
)
