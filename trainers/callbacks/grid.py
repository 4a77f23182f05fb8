"""Pictures of reconstructions, of sounds their spectrograms, while a model trains."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

import zoo
from trainers.callbacks.folder import log_folder


class ReconstructionGrid(lightning.Callback):
    """Writes originals above their reconstructions, from the first validation batch of each validation.

    The picture goes to `<log folder>/reconstructions/step_<n>.png`, and to TensorBoard where that logs.

    Args:
        count: pictures in a row.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Tensor,
        batch_index: int,
        dataloader_index: int = 0,
    ) -> None:
        if batch_index > 0 or not trainer.is_global_zero or not isinstance(outputs, zoo.Output):
            return
        from torchvision.utils import make_grid, save_image

        signals = (module.model_range(batch[: self.count]), outputs.reconstruction[: self.count])
        pairs = torch.cat([module.pictures(signal.to(torch.float32)) for signal in signals])
        grid = make_grid(pairs.clamp(0, 1), nrow=min(self.count, len(batch)), padding=2)
        folder = log_folder(trainer) / "reconstructions"
        folder.mkdir(parents=True, exist_ok=True)
        save_image(grid, folder / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("reconstructions", grid, trainer.global_step)
