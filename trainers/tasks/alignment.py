"""Features of a diffusion decoder that follow those of a frozen DINOv2.

REPA, arXiv 2410.06940; Semanticist, arXiv 2503.08685.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from trainers.tasks.adaptive import AdaptiveTask
from zoo.layers.query_transformer import TransformerSizes
from zoo.losses.frozen import Frozen
from zoo.registry import registry

VIT_B = TransformerSizes(width=768, layers=12, heads=12)


class AlignmentTask(AdaptiveTask):
    """Trains a tokenizer whose family has an `alignment_teacher`: see `AdaptiveTask` for the rest.

    On top of the generator's loss comes `alignment_weight` times the mean of 1 - cosine between the teacher's features
    of the image's patches and what a projector makes of the decoder's, resized to as many. The projector learns with
    the model; the running average leaves it out, and so does validation. Parameters of one axis do not decay.

    Args:
        model: name of the model in the zoo.
        alignment_weight: of that loss.
        layer: block of the decoder, counted from 1, whose output follows.
        projector_width: of the two hidden layers of the projector.
        teacher: fields of `TransformerSizes`; the default is those of DINOv2 ViT-B/14.
        teacher_weights: a local file of its weights; None resolves the published ones.
        settings: arguments of `AdaptiveTask`.

    Raises:
        ValueError: a model without a teacher, or a setting that cannot work.
        zoo.hub.HubError: weights of the teacher that cannot be had.
    """

    decays_biases = False

    def __init__(
        self,
        model: str,
        alignment_weight: float = 1.0,
        layer: int = 8,
        projector_width: int = 2048,
        teacher: dict[str, Any] | None = None,
        teacher_weights: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        family = registry.family_of(self.model).module
        if not hasattr(family, "alignment_teacher"):
            raise ValueError(f"model: expected one with an alignment teacher, such as semanticist_l, got {model}")
        if teacher_weights is not None and not Path(teacher_weights).is_file():
            raise ValueError(f"teacher_weights: expected a file, got {teacher_weights}")
        decoder: Any = self.model.decoder
        if not 1 <= layer <= len(decoder.blocks):
            raise ValueError(f"layer: expected 1 to {len(decoder.blocks)}, got {layer}")
        self.alignment_weight = alignment_weight
        self.side: int = decoder.side  # patches of the decoder
        sizes = VIT_B if teacher is None else TransformerSizes.from_dict(teacher)
        file = None if teacher_weights is None else Path(teacher_weights)
        self.teacher = Frozen(family.alignment_teacher(sizes, file))
        self.projector = nn.Sequential(
            nn.Linear(decoder.to_noise.in_features, projector_width),
            nn.SiLU(),
            nn.Linear(projector_width, projector_width),
            nn.SiLU(),
            nn.Linear(projector_width, sizes.width),
        )
        self._features: Tensor | None = None  # of the last pass, until the loss takes them
        decoder.blocks[layer - 1].register_forward_hook(self._keep)
        self.leave_loss_to_task()

    def _keep(self, block: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        if self.training:
            self._features = output[:, : self.side**2]  # behind the patches lie the tokens

    def generator_loss(self, images: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """As in `ReconstructionTask`, in training with `alignment` beside it."""
        total, losses = super().generator_loss(images, output, step)
        if not self.training or self._features is None:
            return total, losses
        projected, self._features = self.projector(self._features), None
        alignment = self.alignment_loss(projected.mT.unflatten(2, (self.side, self.side)), images)
        total = total + self.alignment_weight * alignment
        return total, {**losses, "total": total.detach(), "alignment": alignment.detach()}

    def alignment_loss(self, projected: Tensor, images: Tensor) -> Tensor:
        """Of projected features (B, width, s, s) and images (B, 3, S, S)."""
        with torch.no_grad():
            wanted = self.teacher(images).movedim(-1, 1).float()
        projected = projected.float()
        if projected.shape[2:] != wanted.shape[2:]:
            projected = F.interpolate(projected, wanted.shape[2:], mode="bicubic")
        return (1 - F.cosine_similarity(projected, wanted, dim=1)).mean()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise ValueError("strategy: expected one that keeps weights whole, such as ddp, with an alignment")
        super().configure_model()

    def generator_parameters(self) -> list[nn.Parameter]:
        return [*super().generator_parameters(), *self.projector.parameters()]
