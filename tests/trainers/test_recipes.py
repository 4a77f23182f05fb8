"""Every shipped recipe is parsed and runs two steps, small; its settings are those of the task."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import trainers
from trainers.recipes import CONFIGS
from zoo.cli.training import run

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
# smaller networks of the families with published sizes
NARROW = {"channels": 32, "channel_multipliers": [1, 1, 1], "blocks": 1}
CHANGES: dict[str, dict[str, Any]] = {
    "llamagen_vq": {**NARROW, "decoder_channel_multipliers": [1, 1, 1], "latent_channels": 32},
    "maskbit": {**NARROW, "quantizer": {"kind": "binary", "bits": 8}},
    "open_magvit2": {**NARROW, "quantizer": {"kind": "binary", "bits": 8}},
    "taming_vqgan": {**NARROW, "latent_channels": 32, "attention_resolutions": []},
    "compact": {"fine_channels": 16, "channels": 16, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(generator.integers(0, 255, (48, 56, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_runs_two_steps(name: str, folder: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    settings = recipe["model"]["init_args"]
    family = next(family for family in CHANGES if name.startswith(family))
    adversary = settings.get("adversary")
    if adversary is not None:
        small = {"hidden_channels": 32, **({"num_stages": 1} if adversary["discriminator"]["kind"] == "blur" else {})}
        adversary = {**adversary, "discriminator_start": 1, "discriminator": {**adversary["discriminator"], **small}}
    run(
        "fit",
        [
            f"--config={name}", f"--data.init_args.train={folder}", f"--data.init_args.val={folder}",
            "--data.init_args.size=32", "--data.init_args.batch_size=2", "--data.init_args.workers=0",
            f"--model.init_args.changes={json.dumps(CHANGES[family])}", "--model.init_args.perceptual=null",
            f"--model.init_args.adversary={json.dumps(adversary)}", "--trainer.max_steps=2",
            "--trainer.accelerator=cpu",
            "--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", f"--out={tmp_path}",
        ],
    )  # fmt: skip
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/total")]
    assert len(rows) == 2
    saved = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert len(saved["optimizer_states"]) == (1 if adversary is None else 2)
    if adversary is not None:
        assert float(rows[1]["train/discriminator"]) > 0
        assert not rows[0]["train/discriminator"]  # before its start it does not run
    assert any(key.startswith("ema.module.") for key in saved["state_dict"]) == ("ema_decay" in settings)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_makes_the_task_of_its_model(name: str) -> None:
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]
    family = next(family for family in CHANGES if name.startswith(family))
    task = trainers.create_task(
        settings["model"], name.removeprefix(f"{family}_"), perceptual=None, changes=CHANGES[family]
    )
    assert task.learning_rate == settings["learning_rate"]
    assert (task.adversary is None) == ("adversary" not in settings)
