"""Every recipe that trains words, or what makes them, goes on bit for bit after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_inversion_tasks
import test_personalisation
import test_projection_tasks
import torch
import yaml
from test_resume import assert_equal
from word_recipes import Tiny

from trainers.recipes import CONFIGS
from zoo.cli.training import run

STOP, END = 2, 4


def _is_large(recipe: str) -> bool:
    return recipe.endswith(("_published", "_described"))


AVERAGED = ("--model.init_args.ema_decay=0.9",)
# a small sibling is run only where there is no published or described recipe
PROJECTIONS = {name.rpartition("_")[0]: name for name in sorted(test_projection_tasks.RECIPES, key=_is_large)}
RECIPES = (*test_inversion_tasks.RECIPES, *test_personalisation.RECIPES, *PROJECTIONS.values())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """With the files of the other tests beside its own."""
    made = Tiny(tmp_path_factory.mktemp("tiny"))
    for name in ("retrieval", "photos"):
        (made.folder / name).mkdir()
    test_inversion_tasks.write_files(made.folder / "retrieval")
    test_personalisation.write_photos(made.folder / "photos")
    return made


def arguments(recipe: str, tiny: Tiny, out: Path) -> list[str]:
    if recipe in test_inversion_tasks.RECIPES:
        given = test_inversion_tasks.arguments(recipe, tiny.clip, tiny.folder / "retrieval", out)
        return [one for one in given if "warmup" not in one]
    if recipe in test_personalisation.RECIPES:
        return test_personalisation.arguments(recipe, str(tiny.folder / "pipeline"), tiny.folder / "photos", out)
    return tiny.arguments(recipe, out)


def fit(recipe: str, tiny: Tiny, out: Path, *more: str) -> dict[str, Any]:
    """Trains to step `END`, unless it is stopped, saving every step; gives the state of the last step."""
    saving = {"dirpath": str(out), "filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving}
    run(
        "fit",
        [
            *arguments(recipe, tiny, out), f"--trainer.max_steps={END}", "--trainer.max_epochs=-1",
            f"--trainer.callbacks+={yaml.safe_dump(callback)}", *more,
        ],
    )  # fmt: skip
    return torch.load(out / f"step={END}.ckpt", weights_only=True)


# LinCIR also with a running average
@pytest.mark.parametrize(("recipe", "more"), [*((name, ()) for name in RECIPES), ("lincir_published", AVERAGED)])
def test_a_resumed_run_ends_in_the_same_state(recipe: str, more: tuple[str, ...], tiny: Tiny, tmp_path: Path) -> None:
    whole = fit(recipe, tiny, tmp_path / "whole", *more)
    interrupt = "{class_path: test_resume.Interrupt, init_args: {step: " + str(STOP) + "}}"
    with pytest.raises(InterruptedError):
        fit(recipe, tiny, tmp_path / "first", *more, f"--trainer.callbacks+={interrupt}")
    (tmp_path / "second").mkdir()
    for kept in (tmp_path / "first").glob("*.sqlite"):  # what is computed once, before training
        kept.rename(tmp_path / "second" / kept.name)
    stopped = tmp_path / "first" / f"step={STOP}.ckpt"
    resumed = fit(recipe, tiny, tmp_path / "second", *more, f"--ckpt_path={stopped}", "--seed_everything=99")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step", "epoch"):
        assert_equal(resumed[key], whole[key], key)
    start = torch.load(stopped, weights_only=True)["state_dict"]
    assert any(not torch.equal(value, start[name]) for name, value in whole["state_dict"].items())


def test_every_model_with_a_recipe_that_trains_words_is_here() -> None:
    tasks = [*test_projection_tasks.TASKS, "PersonalisationTask"]
    tasks += ["LinCIRTask", "Pic2WordTask", "DistillationTask", "RTDTask"]
    named = {
        path.stem for path in CONFIGS.glob("*.yaml") if any(f"tasks.{task}\n" in path.read_text() for task in tasks)
    }
    assert {name.rpartition("_")[0] for name in named} == {name.rpartition("_")[0] for name in RECIPES}
    assert {name for name in named if _is_large(name)} <= set(RECIPES)
