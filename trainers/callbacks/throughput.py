"""How fast a run goes: images or seconds of sound per second and, where the peak of the device is known, its share."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as lightning
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils.flop_counter import FlopCounterMode


class Throughput(lightning.Callback):
    """Logs `train/images_per_second` over all processes, without the time that validation takes.

    Of a model of sounds it is `train/audio_seconds_per_second`, of other signals `train/items_per_second`.

    Also logs `train/mfu`, model FLOPs utilisation, on GPUs whose peak Lightning knows: the FLOPs of one batch (counted
    in the first: both players and the perceptual network) per second, over the peak for the type that is computed in.
    A compiled model is not counted.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._done = 0.0  # images, seconds of sound or items
        self._batches = 0
        self._counter: FlopCounterMode | None = None
        self._flops = 0  # of a batch
        self._peak: int | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        import torch

        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        device = trainer.strategy.root_device
        self._peak = get_available_flops(device, dtype) if device.type == "cuda" else None
        if self._peak and not getattr(module, "compile_model", False):
            self._counter = FlopCounterMode(display=False)
        self._restart()

    def on_train_batch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        if self._counter is not None and not self._flops:
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self._counter is not None and not self._flops:
            self._counter.__exit__(None, None, None)
            self._flops = self._counter.get_total_flops()
            self._restart()
            return
        unit, amount = amount_of(batch, module)
        self._done += amount
        self._batches += 1
        elapsed = time.perf_counter() - self._start
        module.log(f"train/{unit}_per_second", self._done * trainer.world_size / elapsed)
        if self._peak and self._flops:
            module.log("train/mfu", self._flops * self._batches / elapsed / self._peak)
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._restart()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start, self._done, self._batches = time.perf_counter(), 0.0, 0


def amount_of(batch: Any, module: lightning.LightningModule) -> tuple[str, float]:
    """What is counted of the signals that the task's model takes, and how much of it a batch holds."""
    spec = getattr(getattr(module, "model", None), "spec", None)
    modality = getattr(spec, "modality", None)
    if modality == "audio":
        return "audio_seconds", len(batch) * batch.shape[-1] / spec.sample_rate  # type: ignore[union-attr]
    return "images" if modality == "image" else "items", float(len(batch))
