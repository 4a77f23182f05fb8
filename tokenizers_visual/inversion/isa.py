"""ISA: a sentence of pseudo-words from the feature map of a light encoder, for queries against a large CLIP's gallery.

Paper: "Image2Sentence based Asymmetric Zero-shot Composed Image Retrieval", arXiv 2403.01431. Neither code nor weights
are public; this follows the paper's description, and sizes and the form of the local loss are chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.pic2word import contrastive_losses
from tokenizers_visual.inversion.projector import Projector, ProjectorConfig
from tokenizers_visual.inversion.words import PseudoWords
from zoo.losses.efficientnet_lite import EFFICIENTNET_LITE_WEIGHTS, efficientnet_lite
from zoo.registry import register


@dataclass(frozen=True)
class ISAConfig(ProjectorConfig):
    """Sizes of the token learner. `image_dim` is the width of the feature map that it reads."""

    image_dim: int = 1280
    words: int = 6  # of a sentence
    hidden_dim: int = 512
    encoder: str = "efficientnet_b0"  # of queries, by its name in timm; empty: the CLIP's own, as of the gallery

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.words > 0, "at least one word", self.words)
        self.require(self.hidden_dim > 0, "a positive hidden_dim", self.hidden_dim)


@register("isa")
class ISA(Projector):
    """Feature maps (B, P, C) -> a sentence of n words (B, n, D): each word looks at the places that its map selects."""

    config: ISAConfig
    features = "tokens"

    def __init__(self, config: ISAConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.image_dim)
        self.selectors = nn.Sequential(
            nn.Linear(config.image_dim, config.hidden_dim), nn.GELU(), nn.Linear(config.hidden_dim, config.words)
        )
        self.out = nn.Sequential(
            nn.Linear(config.image_dim, config.hidden_dim), nn.GELU(), nn.Linear(config.hidden_dim, config.word_dim)
        )

    def attention(self, features: Tensor) -> Tensor:
        """Where each word looks: (B, n, P), which adds up to 1 over the places."""
        return self.selectors(self.norm(features)).softmax(dim=1).transpose(1, 2)

    def forward(self, image_features: Tensor) -> Tensor:
        return self.out(self.attention(image_features) @ self.norm(image_features))

    def project_images(self, images: Tensor, pair: ClipPair) -> PseudoWords:
        """The words of images, read by the CLIP itself.

        Raises:
            ValueError: another CLIP, or a light encoder in the config, whose maps go to `project`.
        """
        if self.config.encoder:
            raise ValueError(
                f"{self.name}: expected project(feature_map({self.config.encoder}, images)), got images for the CLIP"
            )
        return super().project_images(images, pair)


def light_encoder(config: ISAConfig, *, pretrained: bool = True) -> nn.Module:
    """The query's encoder, of timm, frozen or to be trained as the caller likes.

    The weights of "tf_efficientnet_lite0" and "tf_efficientnet_lite2" come in Python packages, those of others from the
    hub.

    Raises:
        ValueError: none in the config, or one whose map has another width.
    """
    import timm

    if not config.encoder:
        raise ValueError("expected the name of an encoder in the config, got none: the CLIP reads the queries itself")
    variant: Any = config.encoder.removeprefix("tf_efficientnet_")
    if pretrained and variant in EFFICIENTNET_LITE_WEIGHTS:
        model: Any = efficientnet_lite(variant)
        model.reset_classifier(0)
    else:
        model = timm.create_model(config.encoder, pretrained=pretrained, num_classes=0)
    if model.num_features != config.image_dim:
        raise ValueError(f"{config.encoder}: expected maps of {config.image_dim} channels, got {model.num_features}")
    return model


def encoder_input(encoder: Any, size: int) -> ImageInput:
    """How images of some pixels a side go into a light encoder: normalised as timm says of it."""
    about = encoder.pretrained_cfg
    return ImageInput(size=size, mean=tuple(about["mean"]), std=tuple(about["std"]))


def feature_map(encoder: Any, images: Tensor) -> Tensor:
    """Images (B, 3, H, W), normalised as the encoder takes them -> its last map (B, P, C), place by place."""
    features = encoder.forward_features(images)
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def sentence_prompt(words: int, text: str = "") -> str:
    """A prompt in which each of n words has a "$" of its own, before the text that changes the image."""
    return " ".join(["$"] * words + [text]).strip()


# -- training, with the large CLIP frozen --------------------------------------------------------------------------


def global_distillation_loss(sentence_features: Tensor, image_features: Tensor, scale: Tensor | float) -> Tensor:
    """Contrastive loss of sentences' text features with the large model's features of the same images, both (B, E)."""
    losses = contrastive_losses(image_features.detach(), sentence_features, scale)
    return (losses["image"] + losses["text"]) / 2


def local_alignment_loss(word_states: Tensor, patches: Tensor, temperature: float = 0.07) -> Tensor:
    """One minus the cosine of each word's state and the patches it attends to, mean over words.

    Args:
        word_states: (B, n, E), of the sentence's words, in the space of the patches.
        patches: (B, P, E) of the large image encoder; no gradient goes there.
        temperature: of the attention, whose scores are cosines.
    """
    words, places = F.normalize(word_states, dim=-1), F.normalize(patches.detach(), dim=-1)
    attended = torch.softmax(words @ places.transpose(1, 2) / temperature, dim=-1) @ places
    return (1 - F.cosine_similarity(words, attended, dim=-1)).mean()
