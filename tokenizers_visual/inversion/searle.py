"""SEARLE: a network phi that maps an image to one word, distilled from words found by optimisation (OTI).

Paper: arXiv 2303.15247. Original: miccunifi/SEARLE (CC BY-NC 4.0). iSEARLE (arXiv 2405.02951) adds noise to the text
features of OTI; its code is not public, so that is after the paper, unchecked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.phi import PhiConfig, projection_mlp
from tokenizers_visual.inversion.projector import Projector
from tokenizers_visual.inversion.words import PseudoWords
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.registry import register


@dataclass(frozen=True)
class SearleConfig(PhiConfig):
    """Sizes of phi; the defaults are those of the published SEARLE-XL."""


@register("searle")
class Searle(Projector):
    """Image features (B, E), not normalised -> one word each (B, 1, D)."""

    def __init__(self, config: SearleConfig) -> None:
        super().__init__(config)
        self.layers = projection_mlp(config.image_dim, config.hidden_dim, config.word_dim, config.dropout)

    def forward(self, image_features: Tensor) -> Tensor:
        return self.layers(image_features)[:, None]


# -- losses --------------------------------------------------------------------------------------------------------


def distillation_loss(target: Tensor, estimate: Tensor, temperature: float = 0.25) -> Tensor:
    """Symmetric contrastive loss between the words found by optimisation and those of phi.

    Each of the 2 B words should be near to its partner and far from all others, those of its own side included.

    Args:
        target, estimate: words (B, D).
        temperature: of the cosines.

    Returns:
        The mean over the 2 B words.
    """
    joined = F.normalize(torch.cat([target, estimate]), dim=-1)
    logits = joined @ joined.T / temperature
    logits = logits.masked_fill(torch.eye(len(joined), dtype=torch.bool, device=joined.device), -torch.inf)
    partners = torch.arange(len(joined), device=joined.device).roll(len(target))
    return F.cross_entropy(logits, partners)


def cosine_loss(features: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of rows (B, E), mean over the batch."""
    return (1 - F.cosine_similarity(features, target)).mean()


# -- optimisation-based textual inversion --------------------------------------------------------------------------


@dataclass(frozen=True)
class InversionConfig(Config):
    """How words are found by optimisation; the defaults are the published ones."""

    learning_rate: float = 0.02
    weight_decay: float = 0.01
    deviation: float = 0.02  # standard deviation of the words at the start
    cosine_weight: float = 1.0  # of the likeness to the image
    phrase_weight: float = 0.5  # of the regularisation by phrases
    ema_decay: float = 0.99
    feature_noise: float = 0.0  # deviation of normal noise on the text features that are likened to the image (iSEARLE)

    def __post_init__(self) -> None:
        self.require(self.learning_rate > 0, "a positive learning_rate", self.learning_rate)
        self.require(self.cosine_weight + self.phrase_weight > 0, "a positive sum of weights", self.to_dict())
        self.require(0 <= self.ema_decay < 1, "ema_decay in [0, 1)", self.ema_decay)
        self.require(self.feature_noise >= 0, "feature_noise of 0 or more", self.feature_noise)


@dataclass(frozen=True)
class Sentences:
    """The texts of one step, one for each image, as texts or ids (B, L).

    Attributes:
        templates: general sentences with "$", such as "a good photo of $".
        phrases: sentences about one of the image's concepts, with "$" in its place.
        plain: the same sentences with the concept itself.
    """

    templates: Sequence[str] | Tensor
    phrases: Sequence[str] | Tensor
    plain: Sequence[str] | Tensor


class Inversion:
    """Words of images, found step by step: text features with the word approach those of the image.

    Args:
        pair: the CLIP.
        image_features: (B, E) of the images.
        initial: words (B, D) to start from; None: drawn from a normal distribution.
        seed: of the draw, and of noise on the features.
    """

    def __init__(
        self,
        pair: ClipPair,
        image_features: Tensor,
        config: InversionConfig | None = None,
        *,
        initial: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.pair, self.config = pair, config or InversionConfig()
        self.image_features = image_features.detach()
        self.generator = torch.Generator().manual_seed(seed)
        if initial is None:
            width = pair.token_embeddings(torch.zeros(1, 1, dtype=torch.int64, device=image_features.device)).shape[-1]
            noise = torch.randn(len(image_features), width, generator=self.generator)
            initial = (noise * self.config.deviation).to(image_features.device)
        if len(initial) != len(image_features):
            raise ValueError(f"expected {len(image_features)} words to start from, got {len(initial)}")
        self.current = initial.detach().clone().requires_grad_()
        self.average = initial.detach().clone()
        self.optimizer = torch.optim.AdamW(
            [self.current], self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    @property
    def words(self) -> PseudoWords:
        """The running average of the words, which is the result."""
        return PseudoWords(self.average[:, None], self.pair.backbone)

    def step(self, sentences: Sentences) -> dict[str, Tensor]:
        """One step; the losses before it: `cosine`, `phrase` and their weighted mean `total`."""
        words = PseudoWords(self.current[:, None], self.pair.backbone)
        with torch.no_grad():
            plain = self.pair.text_features(sentences.plain)
        of_templates = self.pair.compose(sentences.templates, words, fill="first")
        if self.config.feature_noise:
            noise = torch.randn(of_templates.shape, generator=self.generator).to(of_templates)
            of_templates = of_templates + self.config.feature_noise * noise
        of_phrases = self.pair.compose(sentences.phrases, words, fill="first")
        cosine, phrase = cosine_loss(of_templates, self.image_features), cosine_loss(of_phrases, plain)
        weights = self.config.cosine_weight, self.config.phrase_weight
        total = (weights[0] * cosine + weights[1] * phrase) / sum(weights)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.average.lerp_(self.current.detach(), 1 - self.config.ema_decay)
        return {"cosine": cosine.detach(), "phrase": phrase.detach(), "total": total.detach()}


def invert(
    pair: ClipPair,
    image_features: Tensor,
    sentences: Iterable[Sentences],
    config: InversionConfig | None = None,
    *,
    seed: int = 0,
) -> PseudoWords:
    """Words (B, 1, D) of image features (B, E), after one step for each of `sentences` (350 as published)."""
    inversion = Inversion(pair, image_features, config, seed=seed)
    for given in sentences:
        inversion.step(given)
    return inversion.words


config_from_original = SearleConfig.from_original

KEY_MAP = KeyMap({"layers.{}.*": "layers.{}.*"})
