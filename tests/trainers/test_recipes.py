"""Every shipped recipe is parsed and runs two steps, small; its settings are those of the task."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import trainers
import zoo.registry
from trainers.recipes import CONFIGS
from trainers.tasks.reconstruction import AdversaryTrainingConfig
from zoo.cli.training import run

TASK, SEMANTIC_TASK, LATENT_TASK = (f"trainers.tasks.{kind}Task" for kind in ("Reconstruction", "Semantic", "Latent"))
TASKS = (TASK, SEMANTIC_TASK, LATENT_TASK)  # others have their own tests
SETTINGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
RECIPES = [name for name, settings in SETTINGS.items() if settings["model"]["class_path"] in TASKS]
NARROW: dict[str, dict[str, Any]] = {  # networks of the photo recipes that are still too large for two quick steps
    "compact": {"fine_channels": 16, "channels": 16, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]},
}


def sibling(name: str) -> str:
    """The small recipe beside a published or described one."""
    found = [re.sub("_(published|described)$", ending, name) for ending in ("_photos", "_videos")]
    return found[-1] if found[-1] in SETTINGS else found[0]


def small(name: str) -> tuple[dict[str, Any], dict[str, Any] | None, int]:
    """Changes of the model, adversary and pixels a side: a published recipe takes the sizes of its photo sibling."""
    own = SETTINGS[name]["model"]["init_args"]
    beside = SETTINGS[sibling(name)]
    sizes = beside["model"]["init_args"]
    family = name.partition("_")[0]
    changes = {**(own.get("changes") or {}), **(sizes.get("changes") or {}), **NARROW.get(family, {})}
    adversary = own.get("adversary")
    if adversary is not None:
        adversary = {**adversary, "discriminator": sizes["adversary"]["discriminator"], "discriminator_start": 1}
    return changes, adversary, min(64, beside["data"]["init_args"]["size"])


def own_arguments(name: str, dinov2: Path) -> dict[str, Any]:
    """What the task of a recipe needs beside the arguments of `ReconstructionTask`."""
    if SETTINGS[name]["model"]["class_path"] == LATENT_TASK:
        return {"autoencoder": SETTINGS[sibling(name)]["model"]["init_args"]["autoencoder"]}  # a dict reads as YAML
    return {"teacher_weights": str(dinov2)} if SETTINGS[name]["model"]["class_path"] == SEMANTIC_TASK else {}


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_runs_two_steps(name: str, noise_photos: Path, small_dinov2: Path, tmp_path: Path) -> None:
    settings = SETTINGS[name]["model"]["init_args"]
    changes, adversary, size = small(name)
    run(
        "fit",
        [
            f"--config={name}", f"--data.init_args.train={noise_photos}", f"--data.init_args.val={noise_photos}",
            *([f"--data.init_args.targets={noise_photos}"] if "targets" in SETTINGS[name]["data"]["init_args"] else []),
            f"--data.init_args.size={size}", "--data.init_args.batch_size=2", "--data.init_args.workers=0",
            f"--model.init_args.changes={json.dumps(changes)}", "--model.init_args.perceptual=null",
            f"--model.init_args.adversary={json.dumps(adversary)}", "--trainer.max_steps=2",
            *(f"--model.init_args.{key}={value}" for key, value in own_arguments(name, small_dinov2).items()),
            "--trainer.accelerator=cpu", "--trainer.val_check_interval=null",
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
def test_a_shipped_recipe_makes_the_task_of_its_model(name: str, small_dinov2: Path) -> None:
    settings = SETTINGS[name]["model"]["init_args"]
    family = zoo.registry.registry.card(settings["model"]).family
    changes, adversary, _ = small(name)
    changed = {"perceptual": None, "changes": changes, "adversary": adversary, **own_arguments(name, small_dinov2)}
    task = trainers.create_task(settings["model"], name.removeprefix(f"{family}_"), **changed)
    assert task.learning_rate == settings["learning_rate"]
    assert (task.adversary is None) == ("adversary" not in settings)


@pytest.mark.parametrize("name", [name for name in RECIPES if "adversary" in SETTINGS[name]["model"]["init_args"]])
def test_the_adversary_of_a_shipped_recipe_is_valid(name: str) -> None:
    settings = SETTINGS[name]["model"]["init_args"]["adversary"]
    assert AdversaryTrainingConfig.from_dict(settings).discriminator.kind == settings["discriminator"]["kind"]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith(("_published", "_described"))])
def test_a_published_recipe_has_a_small_sibling(name: str) -> None:
    assert sibling(name) in RECIPES
