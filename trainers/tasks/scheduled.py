"""What the tasks of projectors share: losses by name, AdamW with a warm-up and a schedule, and runs that resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from trainers.random_state import random_state, set_random_state

Schedule = Literal["constant", "cosine"]


def initial_weights(init: str) -> dict[str, Any]:
    """The arguments of `zoo.create_model` for weights: "random", "pretrained" (the published ones), or a file.

    Raises:
        ValueError: no such file.
    """
    if init in ("random", "pretrained"):
        return {"pretrained": init == "pretrained"}
    if not Path(init).is_file():
        raise ValueError(f"init: expected random, pretrained or a file, got {init!r}")
    return {"checkpoint": init}


class ScheduledTask(lightning.LightningModule):
    """Base of tasks with one optimizer: a subclass writes `losses`, and sets `model`, which export takes.

    The Trainer's precision, clipping, accumulation and strategies work as usual.

    Args:
        learning_rate: at the end of the warm-up.
        betas, eps, weight_decay: of AdamW.
        decay_biases: whether biases and other parameters of one axis decay too.
        warmup_steps: linear rise of the learning rate.
        schedule: of the learning rate after the warm-up: "constant", or "cosine" to `final_rate` at the last step.
        final_rate: share of the learning rate at the end of "cosine".

    Raises:
        ValueError: a setting that cannot work; tells what was expected.
    """

    model: Any

    def __init__(
        self,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        decay_biases: bool = True,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        final_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self._require(schedule in ("constant", "cosine"), "schedule", "constant or cosine", schedule)
        self.learning_rate, self.betas, self.eps = learning_rate, tuple(betas), eps
        self.weight_decay, self.decay_biases = weight_decay, decay_biases
        self.warmup_steps, self.schedule, self.final_rate = warmup_steps, schedule, final_rate

    @property
    def averaged(self) -> Any:
        """The model that export takes."""
        return self.model

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch by name; `total` is the one that is minimised."""
        raise NotImplementedError

    def trained(self) -> nn.Module:
        """What the optimizer changes."""
        return self.model

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        losses = self.losses(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, batch_size=len(batch))
        self.log("loss", losses["total"].detach(), prog_bar=True, logger=False, batch_size=len(batch))
        return losses["total"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer; one with a learning rate of its own names it as `lr`."""
        parameters = [parameter for parameter in self.trained().parameters() if parameter.requires_grad]
        plain = [] if self.decay_biases else [p for p in parameters if p.ndim < 2]
        decayed = [p for p in parameters if self.decay_biases or p.ndim >= 2]
        return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}] if plain else [{"params": decayed}]

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:
        optimizer = torch.optim.AdamW(
            self.parameter_groups(),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        last = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: self.rate(step, last))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def after_step(self) -> None:
        """What follows an update of the weights; callbacks that save a checkpoint find it done."""

    def rate(self, step: int, last: int) -> float:
        """Share of the learning rate in a step, of `last` steps in all."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, last - self.warmup_steps)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = random_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.training and "random_state" in checkpoint:
            set_random_state(checkpoint["random_state"], self.trainer.strategy.root_device)

    @staticmethod
    def _require(holds: bool, name: str, expected: str, got: object) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {got!r}")
