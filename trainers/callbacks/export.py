"""The trained model as a file of the zoo, written with every checkpoint."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
from torch.distributed.tensor import DTensor

from trainers.callbacks.folder import log_folder
from zoo.model import Model
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
        model = _gathered(module.averaged)
        if trainer.is_global_zero:
            save_model(model, log_folder(trainer) / "model")


def _gathered(model: Model) -> Model:
    """The model, or a copy of it with whole weights where they are sharded; all processes call this together."""
    state = model.state_dict()
    if not any(isinstance(value, DTensor) for value in state.values()):
        return model
    copy: Model = type(model)(model.config)
    copy.name, copy.card = model.name, model.card
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    copy.load_state_dict(whole)
    return copy
