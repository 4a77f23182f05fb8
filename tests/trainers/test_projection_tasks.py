"""Projectors and dictionaries learn by their recipes; all that does not learn stays as it is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from word_recipes import Tiny

import zoo
from trainers.recipes import CONFIGS
from zoo.cli.training import run

TASKS = ("DictionaryTask", "ISATask", "ProjectionTask", "ClassTokenTask")
RECIPES = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if any(f"tasks.{task}\n" in path.read_text() for task in TASKS)
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


def totals(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/total", "train/total_step") if row.get(name)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_two_steps(recipe: str, tiny: Tiny, tmp_path: Path) -> None:
    run("fit", tiny.arguments(recipe, tmp_path))
    folder = tmp_path / "version_0"
    assert len(totals(folder)) == 2
    assert np.isfinite(totals(folder)).all()
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    model = zoo.create_model(f"local-dir:{folder / 'model'}")
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][f"model.{name}"])
