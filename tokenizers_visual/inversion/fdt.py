"""FDT: finite discrete tokens, one dictionary whose few entries stand for an image's patches and for a text's words.

Paper: arXiv 2303.14865. Original: yuxiaochen1103/FDT (Apache-2.0). The model takes words as given; the text encoder
that is trained beside it is `FDTTextEncoder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.hooks import outputs_of
from tokenizers_visual.inversion.pic2word import contrastive_losses, image_text_logits
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.model import Model
from zoo.ops.precision import full_precision
from zoo.ops.sparsemax import sparsemax
from zoo.registry import register

LARGEST_SCALE = 100.0  # of cosines in the loss
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of its images, those of ImageNet


@dataclass(frozen=True)
class FDTConfig(Config):
    """Sizes of the image encoder, the dictionary and the queries; the defaults are the published ones."""

    image_size: int = 224
    patch_size: int = 32
    width: int = 768  # of the patches
    layers: int = 12
    heads: int = 12
    joint_dim: int = 512  # of the class token's projection, which the dictionary does without
    text_dim: int = 512  # of the words
    codebook_size: int = 16384
    dim: int = 512  # of the dictionary's entries
    weighting: Literal["sparsemax", "softmax", "sigmoid"] = "sparsemax"  # of pooled scores
    pooling: Literal["max", "mean", "sum"] = "max"  # of scores over patches or words
    temperature: float = 1000.0  # of the scores

    def __post_init__(self) -> None:
        sizes = (self.image_size, self.patch_size, self.width, self.layers, self.heads, self.joint_dim, self.text_dim)
        self.require(min(*sizes, self.codebook_size, self.dim) > 0, "positive sizes", self.to_dict())
        self.require(self.image_size % self.patch_size == 0, "a patch_size that divides image_size", self.patch_size)
        self.require(self.width % self.heads == 0, f"heads that divide {self.width}", self.heads)
        self.require(self.temperature > 0, "a positive temperature", self.temperature)


@dataclass(frozen=True)
class Grounding:
    """What the dictionary says of B sets of N features.

    Attributes:
        scores: (B, N, K) of each patch or word with each entry, over the root of the entries' width; 0 at padding.
        weights: (B, K) of the entries for the whole set; non-negative.
        features: (B, D), the entries' weighted sum.
    """

    scores: Tensor
    weights: Tensor
    features: Tensor

    def entries(self) -> list[Tensor]:
        """The discrete tokens: ids of the entries that have a weight, the heaviest first, of each item."""
        order = self.weights.argsort(dim=-1, descending=True, stable=True)
        return [ids[: int((row > 0).sum())] for ids, row in zip(order, self.weights)]


@register("fdt")
class FDT(Model):
    """Images (B, 3, S, S), normalised by `MEAN` and `STD`, and words (B, N, text_dim) -> weights of the entries."""

    config: FDTConfig  # type: ignore[assignment]

    def __init__(self, config: FDTConfig) -> None:
        from open_clip.transformer import QuickGELU, VisionTransformer

        super().__init__(config)
        self.visual = VisionTransformer(
            config.image_size, config.patch_size, config.width, config.layers, config.heads,
            mlp_ratio=4.0, output_dim=config.joint_dim, act_layer=QuickGELU,
        )  # fmt: skip
        self.visual.conv1.requires_grad_(False)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.dim))
        self.image_query = _query(config.width, config.dim)
        self.text_query = _query(config.text_dim, config.dim)
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def described(self) -> dict[str, Any]:
        return {"modality": "image", "layout": "words", "quantizer": "none", "config": self.config.to_dict()}

    def image_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> patches (B, N, width) as the last block gives them, and the projected class token (B, joint_dim).

        Raises:
            ValueError: images of another shape.
        """
        side = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(f"expected images (B, 3, {side}, {side}), got {tuple(images.shape)}")
        with outputs_of(self.visual.transformer) as outputs:
            projected = self.visual(images)
        return outputs[0][:, 1:], projected

    def ground(self, features: Tensor, modality: Literal["image", "text"], padding: Tensor | None = None) -> Grounding:
        """What the dictionary says of patches or words, in float32.

        Args:
            features: (B, N, width) of patches, (B, N, text_dim) of words.
            modality: whose they are.
            padding: bool (B, N), True where a word is none: it scores 0 with each entry, which max pooling then takes
                for the best of entries that no word likes.

        Raises:
            ValueError: features of another width, or padding of another shape.
        """
        expected = self.config.width if modality == "image" else self.config.text_dim
        if features.ndim != 3 or features.shape[-1] != expected:
            raise ValueError(f"expected features (B, N, {expected}), got {tuple(features.shape)}")
        if padding is not None and padding.shape != features.shape[:2]:
            raise ValueError(f"expected padding {tuple(features.shape[:2])}, got {tuple(padding.shape)}")
        queries = (self.image_query if modality == "image" else self.text_query)(features)
        with full_precision(features):
            codebook = self.codebook.float()
            scores = queries.float() @ codebook.T / self.config.dim**0.5
            if padding is not None:
                scores = scores.masked_fill(padding.bool()[..., None], 0)
            weights = self._weights(scores / self.config.temperature)
            total = weights.sum(-1, keepdim=True) if self.config.weighting == "sigmoid" else 1.0
            return Grounding(scores, weights, weights @ codebook / total)

    def _weights(self, scores: Tensor) -> Tensor:
        """Of the entries (B, K), from the scores (B, N, K) of each feature."""
        pooled = scores.amax(1) if self.config.pooling == "max" else getattr(scores, self.config.pooling)(dim=1)
        if self.config.weighting == "sparsemax":
            return sparsemax(pooled)
        return pooled.softmax(-1) if self.config.weighting == "softmax" else pooled.sigmoid()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Grounding:
        """The dictionary's weights of images, in evaluation mode and without gradients."""
        with self._evaluating():
            return self.ground(self.image_features(images)[0], "image")

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosines (images, texts) of grounded features (B, D)."""
        return image_text_logits(image_features, text_features, self.scale)

    def losses(self, image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
        """`image` and `text` of grounded features (B, D), whose mean is the loss; see `contrastive_losses`."""
        return contrastive_losses(image_features, text_features, self.scale)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by; it stays at 100 or below, though its gradient does not end there."""
        scale = self.logit_scale.exp()
        return scale + (scale.clamp(max=LARGEST_SCALE) - scale).detach()


def _query(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim))


class FDTTextEncoder(nn.Module):
    """Texts -> words (B, L, width) behind the last norm, start and end among them, and their padding.

    CLIP's byte pairs; the ids of start and end are one larger than CLIP's, for one of a mask stands before them. Texts
    that are too long lose their end.
    """

    def __init__(self, width: int = 512, layers: int = 12, heads: int = 8, context_length: int = 77) -> None:
        import open_clip
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__()
        self._tokenizer = open_clip.SimpleTokenizer()
        size = self._tokenizer.vocab_size + 1
        self.start_id, self.end_id, self.context_length = size - 2, size - 1, context_length
        self.transformer = TextTransformer(
            context_length, size, width, heads, layers, proj_type="none", act_layer=QuickGELU, output_tokens=True
        )

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L), 0 behind the end, and bool (B, L), True there."""
        rows = [self._tokenizer.encode(text)[: self.context_length - 2] for text in texts]
        ids = torch.zeros(len(rows), self.context_length, dtype=torch.int64)
        padding = torch.ones_like(ids, dtype=torch.bool)
        for row, own in enumerate(rows):
            ids[row, : len(own) + 2] = torch.tensor([self.start_id, *own, self.end_id])
            padding[row, : len(own) + 2] = False
        return ids, padding

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, padding = (part.to(self.transformer.positional_embedding.device) for part in self.tokenize(texts))
        return self.transformer(ids)[1], padding


def temperature(step: int, *, start: float = 1000.0, decay: float = 1.0, interval: int = 2700) -> float:
    """The temperature of training at a step: it is multiplied by `decay` each `interval` steps, down to 0.01."""
    return max(start * decay ** (step / interval), 0.01)


def config_from_original(meta: dict[str, Any]) -> FDTConfig:
    """The config of the original's constructor arguments, or of the settings that a listing states."""
    kwargs = meta["original"]["kwargs"]
    dictionary = kwargs.get("fdt", kwargs)
    visual = kwargs.get("visual", {})
    joint_dim = visual.get("embed_dim") or kwargs["image_encode"]["embed_dim"]
    return FDTConfig(
        image_size=visual.get("input_resolution", FDTConfig.image_size),
        patch_size=visual.get("patch_size", FDTConfig.patch_size),
        width=dictionary["raw_img_ft_dim"],
        layers=visual.get("layers", FDTConfig.layers),
        heads=visual.get("heads", FDTConfig.heads),
        joint_dim=joint_dim,
        text_dim=dictionary["raw_txt_ft_dim"],
        codebook_size=dictionary["sd_num"],
        dim=dictionary["sd_dim"],
        weighting=dictionary["att_func_type"],
        pooling=dictionary["pool_type"],
        temperature=float(dictionary["sd_temperature"]),
    )


KEY_MAP = KeyMap(
    {
        "space_dict": "codebook",
        "logit_scale": "logit_scale",
        "logit_scale_sd": None,  # unused
        "img_query_model.q_map.*": "image_query.*",
        "txt_query_model.q_map.*": "text_query.*",
        "visual.*": "visual.*",
        "encode_text.*": None,  # the text encoder
    },
    prefix="module.",
)
