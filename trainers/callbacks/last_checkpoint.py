"""A checkpoint at the end of training, wherever between two validations it comes."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which saves at validations, and `last.ckpt` once more when the last step is done."""

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.dirpath is not None and self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(self.dirpath) / f"last{self.FILE_EXTENSION}")
