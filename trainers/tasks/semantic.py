"""Codes that also tell what an image shows: reconstruction, and a loss on a frozen teacher's features.

RobustTok and XQ-GAN, arXiv 2503.08354 and 2412.01762, by a contrast; MingTok, arXiv 2510.06590, by giving them back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from trainers.tasks.reconstruction import ReconstructionTask
from zoo.losses.frozen import Frozen
from zoo.registry import registry


class SemanticTask(ReconstructionTask):
    """Trains a tokenizer whose family has a `semantic_teacher` and a `semantic_loss`, which comes on top in training.

    Args:
        model: name of the model in the zoo.
        semantic_weight: of that loss.
        teacher_weights: a local file of the teacher's weights; None resolves the published ones.
        settings: arguments of `ReconstructionTask`.

    Raises:
        ValueError: a model without a teacher, or a setting that cannot work.
        zoo.hub.HubError: weights of the teacher that cannot be had.
    """

    def __init__(
        self, model: str, semantic_weight: float = 0.1, teacher_weights: str | None = None, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        if teacher_weights is not None and not Path(teacher_weights).is_file():
            raise ValueError(f"teacher_weights: expected a file, got {teacher_weights}")
        family = registry.family_of(self.model).module
        if not hasattr(family, "semantic_teacher"):
            raise ValueError(f"model: expected one with a semantic teacher, such as robust_tok.main, got {model}")
        self.semantic_weight = semantic_weight
        self.semantic_loss = family.semantic_loss
        file = None if teacher_weights is None else Path(teacher_weights)
        self.teacher = Frozen(family.semantic_teacher(self.model.config, file))

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise ValueError("strategy: expected one that keeps weights whole, such as ddp, with a semantic loss")
        super().configure_model()

    def generator_loss(self, images: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """As in `ReconstructionTask`, in training with `semantic` beside it."""
        total, losses = super().generator_loss(images, output, step)
        if not self.training:
            return total, losses
        with torch.no_grad():
            features = self.teacher(images)
        semantic = self.semantic_loss(self.model, features, output.quantized.codes)
        total = total + self.semantic_weight * semantic
        return total, {**losses, "total": total.detach(), "semantic": semantic.detach()}
