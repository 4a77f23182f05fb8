"""The trained model as a file of the zoo, written with every checkpoint, or where a validation was the best."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as lightning
from torch.distributed.tensor import DTensor

from trainers.callbacks.folder import log_folder
from zoo.model import Model
from zoo.registry import save_model


class ExportModel(lightning.Callback):
    """Keeps `<log folder>/model/` (safetensors, config and card), which `local-dir:` loads, beside every checkpoint.

    It is written when a checkpoint is saved, and when `fit` ends. The weights are the running average where the task
    keeps one. What a task has beside its model it writes itself, by `export_beside(folder)`.
    """

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        _write(trainer, pl_module, "model")

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        _write(trainer, pl_module, "model")


class ExportBest(lightning.Callback):
    """Keeps `<log folder>/best/`, as `ExportModel` keeps the last one: the model of the best validation so far.

    Args:
        monitor: name of a value of the validation, such as "val/R@1".
        mode: whether the largest value ("max") or the smallest is the best.

    Raises:
        ValueError: a value that the validation does not give; tells those that it does.
    """

    def __init__(self, monitor: str, mode: Literal["max", "min"] = "max") -> None:
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ValueError(f"monitor: expected a value of the validation ({known}), got {self.monitor!r}")
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or (value > self.best if self.mode == "max" else value < self.best):
            self.best = value
            _write(trainer, pl_module, "best")


def _write(trainer: lightning.Trainer, module: lightning.LightningModule, name: str) -> None:
    model = _gathered(module.averaged)
    if trainer.is_global_zero:
        folder = log_folder(trainer) / name
        save_model(model, folder)
        if hasattr(module, "export_beside"):
            module.export_beside(folder)


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
