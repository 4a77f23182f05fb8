"""Pic2Word: a small network that maps an image to one word, learned from images alone by a contrastive loss.

Paper: arXiv 2302.03084. Original: google-research/composed_image_retrieval (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.projector import BACKBONE_OF_WIDTH, Projector, ProjectorConfig
from zoo.checkpoint import KeyMap
from zoo.registry import register

TRAINING_PROMPT = "a photo of $"


@dataclass(frozen=True)
class Pic2WordConfig(ProjectorConfig):
    """Sizes of the network; the defaults are those of the published one."""

    hidden_dim: int = 512
    layers: int = 2  # hidden layers
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.hidden_dim > 0, "a positive hidden_dim", self.hidden_dim)
        self.require(self.layers > 0, "at least one layer", self.layers)
        self.require(0 <= self.dropout < 1, "dropout in [0, 1)", self.dropout)


@register("pic2word")
class Pic2Word(Projector):
    """Image features (B, E), not normalised -> one word each (B, 1, D)."""

    def __init__(self, config: Pic2WordConfig) -> None:
        super().__init__(config)
        widths = [config.image_dim, *[config.hidden_dim] * config.layers]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.Dropout(config.dropout), nn.ReLU())
            for before, after in pairwise(widths)
        )
        self.out = nn.Linear(config.hidden_dim, config.word_dim)

    def forward(self, image_features: Tensor) -> Tensor:
        for layer in self.layers:
            image_features = layer(image_features)
        return self.out(image_features)[:, None]


def contrastive_losses(
    image_features: Tensor, text_features: Tensor, scale: Tensor | float, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """The loss of Pic2Word's training is the mean of the two, each a mean over the batch.

    Args:
        image_features, text_features: (B, E), of the images, and of `TRAINING_PROMPT` with their words.
        scale: what cosines are multiplied by, the CLIP's own.
        smoothing: of the labels; none in Pic2Word.

    Returns:
        `image`: cross entropy of finding each image's own text; `text`: of finding each text's own image.
    """
    logits = image_text_logits(image_features, text_features, scale)
    own = torch.arange(len(logits), device=logits.device)
    sides = {"image": logits, "text": logits.T}
    return {side: F.cross_entropy(each, own, label_smoothing=smoothing) for side, each in sides.items()}


def image_text_logits(image_features: Tensor, text_features: Tensor, scale: Tensor | float) -> Tensor:
    """Scaled cosines (images, texts)."""
    return scale * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T


_ORIGINAL_DEFAULTS = {"embed_dim": 512, "middle_dim": 512, "output_dim": 512, "n_layer": 2, "dropout": 0.1}


def config_from_original(meta: dict[str, Any]) -> Pic2WordConfig:
    """The config of the original's constructor arguments."""
    kwargs: dict[str, Any] = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    return Pic2WordConfig(
        backbone=meta.get("clip") or BACKBONE_OF_WIDTH[kwargs["embed_dim"]],
        image_dim=kwargs["embed_dim"],
        word_dim=kwargs["output_dim"],
        hidden_dim=kwargs["middle_dim"],
        layers=kwargs["n_layer"],
        dropout=kwargs["dropout"],
    )


KEY_MAP = KeyMap({"layers.{}.0.*": "layers.{}.0.*", "fc_out.*": "out.*"}, prefix="module.")
