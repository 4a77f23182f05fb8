"""How fast a run goes: images per second and, where the device's peak is known, the share of it that is used."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as lightning
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils.flop_counter import FlopCounterMode


class Throughput(lightning.Callback):
    """Logs `train/images_per_second` over all processes, without the time that validation takes.

    Also logs `train/mfu`, model FLOPs utilisation, on GPUs whose peak Lightning knows: the FLOPs of one batch (counted
    in the first: both players and the perceptual network) per second, over the peak for the type that is computed in.
    A compiled model is not counted.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._images = self._batches = 0
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
        self._images += len(batch)
        self._batches += 1
        elapsed = time.perf_counter() - self._start
        module.log("train/images_per_second", self._images * trainer.world_size / elapsed)
        if self._peak and self._flops:
            module.log("train/mfu", self._flops * self._batches / elapsed / self._peak)
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._restart()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start, self._images, self._batches = time.perf_counter(), 0, 0
