"""RTD: fine-tunes the text encoder beside a frozen projector, so that composed prompts land on the captions they mean.

Paper: arXiv 2406.09188. Original: jaeseokbyun/RTD (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.lincir import noised
from tokenizers_visual.inversion.projector import Projector
from tokenizers_visual.inversion.searle import distillation_loss
from tokenizers_visual.inversion.words import PseudoWords
from zoo import checkpoint

PLAIN_PROMPT = "a photo of $"
TEMPERATURE = 0.07
NOISE_FACTOR = 0.5


@dataclass(frozen=True)
class Triplets:
    """Captions of B pairs of images and what leads from one to the other, as texts or ids (B, L).

    Attributes:
        references, targets: captions of the image asked with, and of the one asked for.
        composed: prompts with "$" for the reference: "a photo of $ that ...".
        plain: `PLAIN_PROMPT`, for each item or once.
    """

    references: Sequence[str] | Tensor
    targets: Sequence[str] | Tensor
    composed: Sequence[str] | Tensor
    plain: str | Sequence[str] | Tensor = PLAIN_PROMPT


@dataclass(frozen=True)
class Step:
    """What one step computes: words; anchors (2 B, E) of the frozen encoder; queries (2 B, E) of the trained one."""

    words: PseudoWords
    anchors: Tensor
    queries: Tensor

    def loss(self, temperature: float = TEMPERATURE) -> Tensor:
        """Symmetric contrastive loss: composed prompts to targets, plain prompts to references."""
        return distillation_loss(self.anchors, self.queries, temperature)


def step(
    frozen: ClipPair, trained: ClipPair, projector: Projector, triplets: Triplets, scale: Tensor, noise: Tensor
) -> Step:
    """The features of one training step; only those of `trained` have gradients.

    Args:
        frozen: the CLIP.
        trained: a copy whose text encoder is to be trained (`trained.model.requires_grad_(True)`).
        projector: of the CLIP, for any of its features.
        triplets: the texts.
        scale: (B,), uniform in [0, `NOISE_FACTOR`).
        noise: (B, E), standard normal.

    Raises:
        ValueError: a projector of another CLIP.
    """
    projector.check_backbone(frozen)
    with torch.no_grad():
        references = frozen.text_features(triplets.references)
        words = projector.project(noised(references, scale, noise))
        anchors = torch.cat([frozen.text_features(triplets.targets), references])
    queries = torch.cat([trained.compose(triplets.composed, words), trained.compose(triplets.plain, words)])
    return Step(words, anchors, queries)


# -- the trained text encoder as a file ------------------------------------------------------------------------------

_OF_IMAGES = ("visual.", "vision_model.", "visual_projection.", "image.", "logit_scale")


def text_encoder_state(pair: ClipPair) -> dict[str, Tensor]:
    """The weights of a pair's text encoder, by the names of its library."""
    return {name: value for name, value in pair.model.state_dict().items() if not name.startswith(_OF_IMAGES)}


def save_text_encoder(pair: ClipPair, file: str | Path) -> None:
    """Write the text encoder of a trained pair; the file tells the CLIP as well."""
    checkpoint.save(Path(file), text_encoder_state(pair), {"backbone": pair.backbone, "format": "pt"})


def load_text_encoder(pair: ClipPair, file: str | Path) -> None:
    """Put a text encoder that `save_text_encoder` wrote into a pair of the same CLIP.

    Raises:
        ValueError: that of another CLIP, or another file.
    """
    backbone, state = checkpoint.metadata(Path(file)).get("backbone"), checkpoint.read(Path(file))
    expected = text_encoder_state(pair)
    if backbone != pair.backbone or {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in expected.items()}:
        raise ValueError(f"{file}: expected a text encoder of the CLIP {pair.backbone}, got one of {backbone}")
    pair.model.load_state_dict(state, strict=False)
