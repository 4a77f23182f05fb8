"""Originals' own training code, step by step: from the same weights and photos come the same losses and moves.

The JSON files in `original` tell how it was run, and hold what came out.
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
from tokenizers_visual import llamagen_vq, titok
from trainers.recipes import find_recipe
from zoo import checkpoint

ORIGINAL = Path(__file__).parent / "original"
PARITY = Path(__file__).parents[1] / "parity"
NO_GRADIENT = (".k.bias", ".qkv.bias")  # softmax cancels the biases of keys: their gradient is rounding alone


class Losses(lightning.Callback):
    """The losses of each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.rows.append({key.removeprefix("train/"): float(value) for key, value in trainer.callback_metrics.items()})


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.double().clone() for name, value in module.state_dict().items()}


def check_training(
    original: str,
    run: str,
    definitions: Any,
    start: Path,
    model: str,
    recipe: str,
    folder: Path,
    *,
    adversary: dict[str, Any],
    **settings: Any,
) -> None:
    """Train by a published recipe, changed as the original's run was, and compare."""
    published = yaml.safe_load(find_recipe(f"{definitions.__name__.rpartition('.')[2]}_{recipe}").read_text())
    expected = json.loads((ORIGINAL / f"{original}.json").read_text())["runs"][run]
    arrays = load_file(ORIGINAL / f"{original}.safetensors")
    images = arrays.pop("images").float() / 255
    save_file(arrays, folder / "discriminator.safetensors")
    given = published["model"]["init_args"]["adversary"]
    discriminator = {**given["discriminator"], **adversary.pop("discriminator")}
    weights = {"discriminator_weights": str(folder / "discriminator.safetensors"), "discriminator_start": 2}
    module: Any = trainers.create_task(
        model,
        recipe,
        changes=definitions.config_from_original(json.loads((start / "meta.json").read_text())).to_dict(),
        perceptual=None,
        adversary={**given, "discriminator": discriminator, **weights, **adversary},
        learning_rate=1e-3,
        **settings,
    )
    checkpoint.load_into(module.model, definitions.KEY_MAP(load_file(start / "weights.safetensors")))
    players = {"model": module.model, "discriminator": module.loss.discriminator, "average": module.ema.module}
    before = {name: state(player) for name, player in players.items()} | {"average": state(module.model)}
    seen = Losses()
    clip = published["trainer"]["gradient_clip_val"]
    trainer(max_epochs=1, gradient_clip_val=clip, callbacks=[seen]).fit(module, loader(images))

    for name, values in expected["losses"].items():
        found = [row.get(name) for row in seen.rows]
        assert [value is None for value in found] == [value is None for value in values], name
        steps = [(a, b) for a, b in zip(found, values, strict=True) if b is not None]
        assert [a for a, _ in steps] == pytest.approx([b for _, b in steps], rel=1e-4, abs=1e-5), name
    for name, lengths in expected["moves"].items():
        moves = {key: float((value - before[name][key]).norm()) for key, value in state(players[name]).items()}
        wanted = {key: torch.tensor(length) for key, length in lengths.items()}
        wanted = wanted if name == "discriminator" else definitions.KEY_MAP(wanted)
        for key, length in wanted.items():
            if not key.endswith(NO_GRADIENT):
                assert moves[key] == pytest.approx(float(length), rel=1e-3), key


@pytest.mark.parametrize("run", ["fixed", "adaptive"])
def test_llamagen_trains_as_the_original_does(run: str, tmp_path: Path) -> None:
    check_training(
        "llamagen_vq", run, llamagen_vq, PARITY / "llamagen_vq__tiny_f8", "llamagen_vq_f16", "published", tmp_path,
        adversary={"discriminator": {"hidden_channels": 4}, "adaptive_weight": run == "adaptive"},
        quantizer_weights={"codebook": 1.0, "commitment": 0.25, "entropy": 0.02},
    )  # fmt: skip


def test_titok_trains_its_decoder_as_the_original_does(tmp_path: Path) -> None:
    check_training(
        "titok", "second stage", titok, PARITY / "titok", "titok_l32", "decoder_published", tmp_path,
        adversary={
            "discriminator": {"hidden_channels": 32, "num_stages": 1}, "discriminator_weight": 0.5, "lecam_weight": 0.05
        },
        warmup_steps=0,
    )  # fmt: skip
