"""LlamaGen's own training code, step by step: from the same weights and photos come the same losses and moves.

`original/llamagen_vq.json` tells how it was run, and holds what came out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_task import loader, trainer

import trainers
from tokenizers_visual.llamagen_vq import KEY_MAP, config_from_original
from trainers.recipes import find_recipe
from zoo import checkpoint

ORIGINAL = Path(__file__).parent / "original"
START = Path(__file__).parents[1] / "parity" / "llamagen_vq__tiny_f8"
RECIPE = yaml.safe_load(find_recipe("llamagen_vq_published").read_text())
SETTINGS = RECIPE["model"]["init_args"]


class Losses(lightning.Callback):
    """The losses of each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.rows.append({key.removeprefix("train/"): float(value) for key, value in trainer.callback_metrics.items()})


def published_task(adaptive: bool, discriminator: Path) -> lightning.LightningModule:
    """The published recipe's task, with the fixture's narrow networks and an early adversary."""
    adversary = {
        **SETTINGS["adversary"],
        "discriminator": {**SETTINGS["adversary"]["discriminator"], "hidden_channels": 4},
        "discriminator_weights": str(discriminator),
        "discriminator_start": 2,
        "adaptive_weight": adaptive,
    }
    module = trainers.create_task(
        "llamagen_vq_f16",
        changes=config_from_original(json.loads((START / "meta.json").read_text())).to_dict(),
        quantizer_weights={**SETTINGS["quantizer_weights"], "entropy": 0.02},
        perceptual=None,
        adversary=adversary,
        learning_rate=1e-3,
    )
    checkpoint.load_into(module.model, KEY_MAP(load_file(START / "weights.safetensors")))
    return module


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.double().clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("run", ["fixed", "adaptive"])
def test_the_published_recipe_trains_as_the_original_does(run: str, tmp_path: Path) -> None:
    expected = json.loads((ORIGINAL / "llamagen_vq.json").read_text())["runs"][run]
    arrays = load_file(ORIGINAL / "llamagen_vq.safetensors")
    images = arrays.pop("images").float() / 255
    save_file(arrays, tmp_path / "discriminator.safetensors")
    module = published_task(run == "adaptive", tmp_path / "discriminator.safetensors")
    players: dict[str, Any] = {"model": module.model, "discriminator": module.loss.discriminator}
    before = {name: state(player) for name, player in players.items()}
    seen = Losses()
    clip = RECIPE["trainer"]["gradient_clip_val"]
    trainer(max_epochs=1, gradient_clip_val=clip, callbacks=[seen]).fit(module, loader(images))

    for name, values in expected["losses"].items():
        found = [row.get(name) for row in seen.rows]
        assert [value is None for value in found] == [value is None for value in values], name
        steps = [(a, b) for a, b in zip(found, values, strict=True) if b is not None]
        assert [a for a, _ in steps] == pytest.approx([b for _, b in steps], rel=1e-4, abs=1e-5), name
    for name, player in players.items():
        moves = {key: value - before[name][key] for key, value in state(player).items()}
        wanted = expected["moves"][name]
        if name == "model":
            wanted = {
                key: float(value) for key, value in KEY_MAP({k: torch.tensor(v) for k, v in wanted.items()}).items()
            }
        for key, length in wanted.items():
            if not key.endswith(".k.bias"):  # softmax cancels it: its gradient is rounding alone
                assert float(moves[key].norm()) == pytest.approx(length, rel=1e-3), key
