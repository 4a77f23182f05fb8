"""Projector: the contract of models that turn an image into pseudo-words, vectors among a CLIP's token embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tokenizers_visual.inversion.words import PseudoWords
from zoo.config import Config
from zoo.model import Model

if TYPE_CHECKING:
    from tokenizers_visual.inversion.pair import ClipPair

# The published projectors name their CLIP by its sizes alone: width of the joint space -> hub repository.
BACKBONE_OF_WIDTH = {
    512: "openai/clip-vit-base-patch32",
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    1280: "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}


@dataclass(frozen=True)
class WordsConfig(Config):
    """What every maker of words states that takes no image features of a CLIP: whose token space it writes into."""

    backbone: str = "openai/clip-vit-large-patch14"
    word_dim: int = 768  # width of the token embeddings

    def __post_init__(self) -> None:
        self.require(bool(self.backbone), "the name of a CLIP", self.backbone)
        self.require(self.word_dim > 0, "a positive word_dim", self.word_dim)


@dataclass(frozen=True)
class ProjectorConfig(Config):
    """What every projector states: the CLIP it belongs to, and the widths that it joins."""

    backbone: str = "openai/clip-vit-large-patch14"
    image_dim: int = 768  # width of the image features
    word_dim: int = 768  # width of the token embeddings

    def __post_init__(self) -> None:
        self.require(bool(self.backbone), "the name of a CLIP", self.backbone)
        self.require(self.image_dim > 0, "a positive image_dim", self.image_dim)
        self.require(self.word_dim > 0, "a positive word_dim", self.word_dim)


class WordModel(Model):
    """A model that makes words for one text encoder, or chooses them; its config names that in `backbone`."""

    config: Any

    def described(self) -> dict[str, Any]:
        return {"modality": "image", "layout": "words", "quantizer": "none", "config": self.config.to_dict()}

    def check_backbone(self, pair: ClipPair) -> None:
        """Raise a ValueError unless `pair` is the CLIP that this model belongs to."""
        if pair.backbone != self.config.backbone:
            raise ValueError(f"{self.name}: expected the CLIP {self.config.backbone}, got {pair.backbone}")


class Projector(WordModel):
    """Image features of a CLIP to pseudo-words of its text encoder.

    A family writes `forward`, image features -> words (B, n, D), which training calls; `project` is for use. The
    features are those of the joint space (B, E), or with `features = "tokens"` the hidden states (B, N, W).
    """

    config: ProjectorConfig
    features: Literal["pooled", "tokens"] = "pooled"  # what of the image encoder it takes

    @property
    def token_space(self) -> str:
        """The text encoder that its words are for: the CLIP's own."""
        return self.config.backbone

    @torch.no_grad()
    def project(self, image_features: Tensor) -> PseudoWords:
        """The words of image features, in evaluation mode and without gradients.

        Args:
            image_features: (B, E), or (B, N, W), as the CLIP's image encoder gives them, not normalised.

        Raises:
            ValueError: features of another shape or type, or not finite.
        """
        axes = 2 if self.features == "pooled" else 3
        expected = f"(batch, {self.config.image_dim})" if axes == 2 else f"(batch, tokens, {self.config.image_dim})"
        if not isinstance(image_features, Tensor):
            raise ValueError(f"expected image features {expected}, got {type(image_features).__name__}")
        if image_features.layout != torch.strided or image_features.is_meta:
            where = f"layout {image_features.layout} on {image_features.device}"
            raise ValueError(f"expected dense image features {expected}, got {where}")
        if not image_features.is_floating_point() or image_features.itemsize == 1:
            wanted = "floating point image features of 16 bits or more"
            raise ValueError(f"expected {wanted}, {expected}, got {image_features.dtype}")
        if (
            image_features.ndim != axes
            or image_features.shape[-1] != self.config.image_dim
            or 0 in image_features.shape
        ):
            raise ValueError(f"expected image features {expected}, got {tuple(image_features.shape)}")
        if not image_features.isfinite().all():
            raise ValueError("expected finite image features, got NaN or infinity")
        with self._evaluating():
            return PseudoWords(self(image_features.to(self.dtype)), self.token_space)

    def project_images(self, images: Tensor, pair: ClipPair) -> PseudoWords:
        """The words of images (B, 3, H, W), normalised as the CLIP takes them.

        Raises:
            ValueError: another CLIP than that of the config.
        """
        self.check_backbone(pair)
        return self.project(pair.image_features(images) if self.features == "pooled" else pair.image_tokens(images))
