"""Stops a run at the first gradient that is NaN or infinite, before it reaches the weights, and keeps the batch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from torch.nn.utils import get_total_norm

from trainers.callbacks.folder import log_folder


class StopOnNonFinite(lightning.Callback):
    """Looks at the generator's gradients after each backward pass.

    The batch goes to `<log folder>/non_finite/step_<n>_rank_<r>.pt` (`torch.load`: batch, step, parameters).

    Raises:
        FloatingPointError: on a gradient that is not finite; the weights are still those of the step before.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_index: int
    ) -> None:
        self._batch = batch

    def on_after_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        gradients = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
        if not gradients or get_total_norm(list(gradients.values())).isfinite():
            return
        wrong = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        folder = log_folder(trainer) / "non_finite"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"step_{trainer.global_step:07d}_rank_{trainer.global_rank}.pt"
        torch.save({"batch": self._batch, "step": trainer.global_step, "parameters": wrong}, file)
        raise FloatingPointError(
            f"step {trainer.global_step}: gradients that are not finite in {len(wrong)} of {len(gradients)} parameters "
            f"({', '.join(wrong[:3])} ...); the batch is in {file}. Usual causes: a learning rate too high, no "
            "gradient clipping, a discriminator that wins"
        )
