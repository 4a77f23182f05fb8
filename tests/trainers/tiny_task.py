"""A reconstruction task and a run that take a fraction of a second, for the tests of training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trainers.tasks import ReconstructionTask

NETWORK = {"patch_size": 2, "fine_channels": 8, "channels": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
VECTOR = {"quantizer": "vector", "codebook_size": 30, "dim": 6}
WEIGHTS = {"codebook": 1.0, "commitment": 0.25}
ADVERSARY = {
    "discriminator": {"kind": "patchgan", "hidden_channels": 4, "num_layers": 1},
    "discriminator_start": 0,
    "discriminator_weight": 0.5,
}


def task(changes: dict[str, Any] | None = None, seed: int = 0, **settings: Any) -> ReconstructionTask:
    torch.manual_seed(seed)
    changes = VECTOR if changes is None else changes
    weights = {"quantizer_weights": WEIGHTS} if changes is VECTOR else {}
    return ReconstructionTask("compact_f8", {**NETWORK, **changes}, **{**weights, "learning_rate": 1e-3, **settings})


def batches(count: int, size: int = 4, seed: int = 0) -> Tensor:
    """Random images in [0, 1], smooth enough to be learnt."""
    images = torch.rand(count * size, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(images, (16, 16), mode="bilinear").unflatten(0, (count, size))


def loader(images: Any) -> DataLoader:
    return DataLoader(images, batch_size=None)


def trainer(**settings: Any) -> lightning.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return lightning.Trainer(**{"accelerator": "cpu", "log_every_n_steps": 1, **quiet, **settings})


def fit(module: ReconstructionTask, images: Any, validation: Tensor | None = None, **settings: Any) -> Any:
    run = trainer(**{"max_epochs": 1, **settings})
    run.fit(module, loader(images), None if validation is None else loader(validation))
    return run
