"""LinCIR: a projector learned from captions alone, which rebuilds a caption whose keywords are masked by its own word.

Paper: arXiv 2312.01998. Original: navervision/lincir (CC BY-NC 4.0).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.clip import PLACEHOLDER
from tokenizers_visual.inversion.phi import PhiConfig, projection_mlp
from tokenizers_visual.inversion.projector import Projector
from zoo.checkpoint import KeyMap
from zoo.registry import register

KEYWORD_TAGS = frozenset({"NOUN", "PROPN", "ADJ", "DET"})  # universal part-of-speech tags
FALLBACK = f"a photo of {PLACEHOLDER}"


@dataclass(frozen=True)
class LinCIRConfig(PhiConfig):
    """Sizes of phi; the defaults are those of the published ViT-L/14 model."""

    normalize: bool = False  # the features are put on the unit sphere first


@register("lincir")
class LinCIR(Projector):
    """Image features (B, E), not normalised -> one word each (B, 1, D). Training gives it noised text features."""

    config: LinCIRConfig

    def __init__(self, config: LinCIRConfig) -> None:
        super().__init__(config)
        self.layers = projection_mlp(config.image_dim, config.hidden_dim, config.word_dim, config.dropout)

    def forward(self, image_features: Tensor) -> Tensor:
        return self.layers(self.prepare(image_features))[:, None]

    def prepare(self, features: Tensor) -> Tensor:
        """What the network takes of features (B, E)."""
        return F.normalize(features, dim=-1) if self.config.normalize else features


# -- training ------------------------------------------------------------------------------------------------------


def noised(text_features: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Text features (B, E) that spread as those of images do.

    Args:
        scale: (B,), uniform in [0, 1).
        noise: (B, E), standard normal.
    """
    return text_features + scale[:, None] * noise


def ema_decay(step: int, decay: float = 0.9999) -> float:
    """Decay of the running average of the weights at a step, counted from 1: small at the start."""
    return min(decay, (1 + step) / (10 + step))


def clean_caption(caption: str | None) -> str:
    """A caption in lower case, without "$" and with its stand-in for names spelled out."""
    return (caption or "").replace("<PERSON>", "person").lower().replace(PLACEHOLDER, "").strip()


def keywords(tagged: Iterable[tuple[str, str]]) -> list[str]:
    """The longest runs of nouns, names, adjectives and determiners, in order.

    Args:
        tagged: the words of a cleaned caption with their universal part-of-speech tags.
    """
    runs: list[list[str]] = [[]]
    for word, tag in tagged:
        if tag in KEYWORD_TAGS:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def mask_keywords(caption: str, found: Sequence[str], rng: random.Random, *, placeholder: str = PLACEHOLDER) -> str:
    """A caption with a placeholder for each keyword, wherever its letters stand.

    Where a keyword is no part of the caption, as when it spans a hyphen, a random word is masked and the rest is left;
    so it is where there is no keyword at all. An empty caption becomes the placeholder.

    Args:
        caption: cleaned.
        found: its keywords.
        rng: chooses the random word.

    Returns:
        The masked caption, or "a photo of $" where nothing was masked.
    """
    masked = caption
    for keyword in found or [""]:
        if keyword and keyword in caption:
            masked = masked.replace(keyword, placeholder)
            continue
        word = rng.choice(caption.split(" "))
        if word or not caption:
            masked = masked.replace(word, placeholder)
        break
    return masked if placeholder in masked else FALLBACK.replace(PLACEHOLDER, placeholder)


def self_masking_loss(rebuilt: Tensor, text_features: Tensor) -> Tensor:
    """Mean squared error in float32 of features (B, E): of masked captions with their words, and of the captions."""
    return F.mse_loss(rebuilt.float(), text_features.float())


config_from_original = LinCIRConfig.from_original

KEY_MAP = KeyMap({"layers.{}.*": "layers.{}.*"})
