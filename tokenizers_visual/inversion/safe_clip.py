"""Safe-CLIP: a CLIP fine-tuned so that unsafe texts and images land where safe ones do; one more CLIP to use.

Paper: arXiv 2311.16254. Original: aimagelab/safe-clip (no licence found). Its weights load as any of transformers'
(`TransformersPair.load(REPOSITORIES[0])`); in open_clip its ViT-L/14 needs `ViT-L-14-quickgelu`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenizers_visual.inversion.pic2word import contrastive_losses
from tokenizers_visual.inversion.searle import cosine_loss

REPOSITORIES = (
    "aimagelab/safeclip_vit-l_14",
    "aimagelab/safeclip_vit-l_14_336",
    "aimagelab/safeclip_vit-h_14",
    "aimagelab/safeclip_sd_20",
)
SCALE = 100.0  # of cosines; fixed
# redirecting losses take what is unsafe to what is safe, preserving ones keep the rest where it was
WEIGHTS = {
    "text_safe": 0.1,
    "text_unsafe": 0.1,
    "image_safe": 0.1,
    "image_unsafe": 0.2,
    "safe_text_to_image": 0.25,
    "unsafe_text_to_image": 0.25,
    "safe_image_to_text": 0.25,
    "unsafe_image_to_text": 0.5,
}


@dataclass(frozen=True)
class Quadruplets:
    """Features (B, E) by one CLIP: of safe and unsafe texts, and of the safe and unsafe images that they describe."""

    safe_texts: Tensor
    unsafe_texts: Tensor
    safe_images: Tensor
    unsafe_images: Tensor


def safe_clip_losses(trained: Quadruplets, reference: Quadruplets) -> dict[str, Tensor]:
    """The eight losses of training, unweighted, under the names of `WEIGHTS`.

    Args:
        trained: of the CLIP that is fine-tuned.
        reference: of the CLIP as it was; only its safe texts and images are used, as constants.
    """
    texts, images = reference.safe_texts.detach(), reference.safe_images.detach()
    return {
        "text_safe": cosine_loss(trained.safe_texts, texts),
        "text_unsafe": cosine_loss(trained.unsafe_texts, texts),
        "image_safe": cosine_loss(trained.safe_images, images),
        "image_unsafe": cosine_loss(trained.unsafe_images, images),
        "safe_text_to_image": _contrastive(trained.safe_texts, images),
        "unsafe_text_to_image": _contrastive(trained.unsafe_texts, images),
        "safe_image_to_text": _contrastive(texts, trained.safe_images),
        "unsafe_image_to_text": _contrastive(texts, trained.unsafe_images),
    }


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    """The losses' weighted sum over their number, as the original has it."""
    return sum(weight * losses[name] for name, weight in WEIGHTS.items()) / len(WEIGHTS)  # type: ignore[return-value]


def _contrastive(texts: Tensor, images: Tensor) -> Tensor:
    losses = contrastive_losses(images, texts, SCALE)
    return (losses["image"] + losses["text"]) / 2
