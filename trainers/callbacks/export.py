"""The trained model as a file of the zoo, written with every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning

from zoo.registry import save_model


class ExportModel(lightning.Callback):
    """Keeps `<log folder>/model/` (safetensors, config and card), which `local-dir:` loads, beside every checkpoint.

    It is written when a checkpoint is saved, and when `fit` ends. The weights are the running average where the task
    keeps one.
    """

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._export(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._export(trainer, pl_module)

    def _export(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero and trainer.log_dir is not None:
            save_model(module.averaged, Path(trainer.log_dir) / "model")
