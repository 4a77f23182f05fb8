"""The trained model as a file of the zoo, written when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as lightning

from zoo.registry import save_model


class ExportModel(lightning.Callback):
    """Writes `<log folder>/model/` (safetensors, config and card) when `fit` ends; `local-dir:` loads it.

    The weights are the running average where the task keeps one.
    """

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero and trainer.log_dir is not None:
            save_model(module.averaged, Path(trainer.log_dir) / "model")
