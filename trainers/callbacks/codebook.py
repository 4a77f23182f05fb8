"""Codebook usage, perplexity and entropy over a whole epoch and all processes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from zoo.metrics.image import codebook_statistics


class CodebookUsage(lightning.Callback):
    """Counts every index of the validation epoch and logs the statistics of each level at its end.

    Logged: `val/usage`, `val/perplexity`, `val/entropy_bits`, `val/dead`; with several levels each with its number.
    Codebooks above `maximum` codes are left out.
    """

    def __init__(self, maximum: int = 1 << 20) -> None:
        self.maximum = maximum
        self._counts: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._counts = []

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, *args: Any
    ) -> None:
        sizes = [size for size in module.model.vocab_sizes if size <= self.maximum]
        if not self._counts:
            self._counts = [torch.zeros(size, dtype=torch.int64, device=module.device) for size in sizes]
        for counts, indices in zip(self._counts, outputs.quantized.levels):
            counts += torch.bincount(indices.flatten(), minlength=len(counts))

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        for level, counts in enumerate(self._counts):
            total = trainer.strategy.reduce(counts.float(), reduce_op="sum")
            suffix = f"_{level}" if len(self._counts) > 1 else ""
            for name, value in codebook_statistics(total).items():
                module.log(f"val/{name}{suffix}", float(value), prog_bar=name == "usage" and not suffix)
