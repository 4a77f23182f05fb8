"""Adaptive length: a tokenizer learns to give back its images from any number of its first tokens.

Nested dropout (arXiv 1402.0915), as tail-token drop in One-D-Piece (arXiv 2501.10064) and FlexTok (arXiv 2502.13967).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import zoo
from trainers.tasks.reconstruction import ReconstructionTask
from zoo.config import Config
from zoo.metrics.image import psnr


@dataclass(frozen=True)
class TailDropConfig(Config):
    """How many of N tokens the reconstruction of an item sees in training; the others are dropped from the end.

    Attributes:
        distribution: of the number: "uniform" from 1 to N, "log_uniform" (as often between 1 and 2 as between N / 2 and
            N), "powers" (1, 2, 4 ... N, each as often), or "geometric" (each further token with probability
            `survival`).
        survival: of "geometric".
        full: share of the items that keep all their tokens.
        each_item: whether a number is drawn for each item; else one for the batch.
        start: steps before which nothing is dropped.
        blank: share of the items that see no token at all before that, of models with guidance (Semanticist).
    """

    distribution: Literal["uniform", "log_uniform", "powers", "geometric"] = "uniform"
    survival: float = 0.98
    full: float = 0.0
    each_item: bool = True
    start: int = 0
    blank: float = 0.0

    def __post_init__(self) -> None:
        self.require(0 < self.survival < 1, "a survival in (0, 1)", self.survival)
        self.require(0 <= self.full <= 1, "a full in [0, 1]", self.full)
        self.require(self.start >= 0, "a start >= 0", self.start)
        self.require(0 <= self.blank <= 1, "a blank in [0, 1]", self.blank)

    def draw(self, items: int, most: int, step: int) -> Tensor:
        """(items,) int64 from 1 to `most`, or 0; takes two random numbers an item, whatever the step.

        Args:
            items: size of the batch.
            most: N.
            step: updates made so far.
        """
        place, kept = torch.rand(2, items if self.each_item else 1, dtype=torch.float64)
        if self.distribution == "uniform":
            counts = 1 + place * most
        elif self.distribution == "log_uniform":
            counts = (most + 1) ** place
        elif self.distribution == "powers":
            exponents = torch.tensor([2**i for i in range(most.bit_length()) if 2**i < most] + [most])
            counts = exponents[(place * len(exponents)).long()]
        else:
            counts = 1 + (1 - place).log() / torch.tensor(self.survival, dtype=torch.float64).log()
        counts = counts.long().clamp(1, most)
        counts = torch.where(kept < self.full, most, counts)
        if step < self.start:
            counts = torch.where(kept < self.blank, 0, most)
        return counts.expand(items).clone()


class AdaptiveTask(ReconstructionTask):
    """Trains a tokenizer whose prefixes decode (`prefix` "positions"): see `ReconstructionTask` for the losses.

    Args:
        model: name of the model in the zoo.
        tail_drop: fields of `TailDropConfig`.
        reported: shares of the tokens of which validation reports the PSNR, `val/psnr_<share>`.
        settings: arguments of `ReconstructionTask`.

    Raises:
        ValueError: a model whose prefixes do not decode, or a setting that cannot work.
    """

    def __init__(
        self,
        model: str,
        tail_drop: dict[str, Any] | None = None,
        reported: tuple[float, ...] = (0.0625, 0.25),
        **settings: Any,
    ) -> None:
        super().__init__(model=model, **settings)
        if self.model.prefix != "positions":
            raise ValueError(f"model: expected one whose first tokens decode alone, got {model}")
        self.tail_drop = TailDropConfig.from_dict(tail_drop or {})
        if self.tail_drop.blank > 0 and "guidance_scale" not in self.model.decode_options:
            raise ValueError(f"blank: expected 0 with a model without guidance, such as {model}, got {self.tail_drop}")
        self.reported = reported

    def reconstructed(self, signal: Tensor) -> zoo.Output:
        counts = self.tail_drop.draw(len(signal), self.most_tokens(signal), self.global_step)
        return self.model(signal, counts.to(signal.device))

    def most_tokens(self, images: Tensor) -> int:
        """Tokens of an item of all of these images (B, C, H, W)."""
        size = tuple(images.shape[2:])
        padded = tuple(side + grow for side, grow in zip(size, self.model.spec.padding(size)))
        return self.model.token_shapes(padded)[0][0]

    def validation_step(self, images: Tensor, batch_index: int) -> zoo.Output:
        output = super().validation_step(images, batch_index)
        signal = self.model_range(images)
        for share in self.reported:
            count = max(1, round(share * self.most_tokens(signal)))
            lengths = torch.full((len(images),), count, device=images.device)
            reconstruction = self.unit(self.averaged(signal, lengths).reconstruction).clamp(0, 1)
            quality = psnr(reconstruction, images.float()).mean()
            self.log_validation({f"psnr_{share:g}": quality}, len(images))
        return output
