"""Codes that find the captions of their images: reconstruction, and CLIP's loss beside it.

UniTok, arXiv 2502.20321; CLIP, arXiv 2103.00020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tokenizers_visual.inversion.pic2word import contrastive_losses
from trainers.data.rows import CaptionedImages
from trainers.tasks.reconstruction import ReconstructionTask
from zoo.config import Config
from zoo.ops.collective import joined_over_ranks
from zoo.ops.precision import full_precision

FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # of the cosines, as in CLIP


@dataclass(frozen=True)
class TextTowerConfig(Config):
    """Sizes of the text encoder; the defaults are UniTok's."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    context_length: int = 77

    def __post_init__(self) -> None:
        self.require(self.width % self.heads == 0, f"a width that {self.heads} heads divide", self.width)


class TextTower(nn.Module):
    """Texts -> embeddings (B, dim): open_clip's text transformer with CLIP's byte pairs, from scratch."""

    def __init__(self, config: TextTowerConfig, dim: int) -> None:
        import open_clip
        from open_clip.transformer import TextTransformer

        super().__init__()
        self._tokenizer = open_clip.SimpleTokenizer(context_length=config.context_length)
        self.transformer = TextTransformer(
            config.context_length, self._tokenizer.vocab_size, config.width, config.heads, config.layers, output_dim=dim
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        return self.transformer(self._tokenizer(list(texts)).to(self.transformer.positional_embedding.device))


def caption_contrast(images: Tensor, captions: Tensor, scale: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """CLIP's loss over the batches of all processes.

    Args:
        images: (B, dim), embeddings.
        captions: (B, dim), those of the images' captions.
        scale: logarithm of what cosines are multiplied by.
        smoothing: of the labels.
    """
    images, captions = (joined_over_ranks(part.float()) for part in (images, captions))
    with full_precision(images):
        losses = contrastive_losses(images, captions, scale.exp(), smoothing)
    return (losses["image"] + losses["text"]) / 2


class ContrastiveTask(ReconstructionTask):
    """Trains a tokenizer that has an embedding of what its codes show (`image_embedding`) on `CaptionedImages`.

    On top of the generator's loss comes `contrastive_weight` times CLIP's: the cross entropy of finding, by cosines,
    each image's own caption and each caption's own image among those of all processes. Text encoder and scale of the
    cosines, which stays at 100 at the most, learn with the model; the running average leaves them out, and so does
    validation, which takes images alone. Parameters of one axis do not decay.

    Args:
        model: name of the model in the zoo.
        contrastive_weight: of that loss.
        text: fields of `TextTowerConfig`.
        settings: arguments of `ReconstructionTask`.

    Raises:
        ValueError: a model without such an embedding, or a setting that cannot work.
    """

    decays_biases = False

    def __init__(
        self, model: str, contrastive_weight: float = 1.0, text: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        if not hasattr(self.model, "image_embedding"):
            raise ValueError(f"model: expected one with an embedding of its images, such as unitok_large, got {model}")
        if self.tokens_stay:
            raise ValueError("trainable: expected all, since captions teach the codes, got decoder")
        self.contrastive_weight = contrastive_weight
        head: Any = self.model.embedding_head
        head.requires_grad_(True)
        self.text_tower = TextTower(
            TextTowerConfig.from_dict(text or {}),
            self.model.config.embedding_width,  # type: ignore[attr-defined]
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self._texts: tuple[str, ...] = ()
        self.leave_loss_to_task()

    def training_step(self, batch: CaptionedImages, batch_index: int) -> Tensor:  # type: ignore[override]
        if not isinstance(batch, CaptionedImages):
            raise ValueError("expected batches of images with captions, as ImageData gives them with `captions`")
        self._texts = batch.texts
        return super().training_step(batch.images, batch_index)

    def generator_loss(self, images: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """As in `ReconstructionTask`, in training with `contrastive` beside it."""
        total, losses = super().generator_loss(images, output, step)
        if not self.training:
            return total, losses
        contrastive = self.contrastive_loss(output.quantized.codes, self._texts)
        total = total + self.contrastive_weight * contrastive
        return total, {**losses, "total": total.detach(), "contrastive": contrastive.detach()}

    def contrastive_loss(self, codes: Tensor, texts: Sequence[str]) -> Tensor:
        """CLIP's loss of code vectors (B, *positions, D) and their B texts, over the batches of all processes."""
        images: Tensor = self.model.image_embedding(codes)  # type: ignore[operator]
        return caption_contrast(images, self.text_tower(texts), self.logit_scale)

    def update_generator(self) -> None:
        super().update_generator()
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(LARGEST_SCALE))

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise ValueError("strategy: expected one that keeps weights whole, such as ddp, with a contrastive loss")
        super().configure_model()

    def generator_parameters(self) -> list[nn.Parameter]:
        return [*super().generator_parameters(), *self.text_tower.parameters(), self.logit_scale]
