"""Recipes: YAML files in `trainers/configs`, and the task that one describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import lightning.pytorch as lightning

CONFIGS = Path(__file__).resolve().parent / "configs"


def find_recipe(name: str | Path) -> Path:
    """The YAML file of a recipe: a path, or the name of a shipped one.

    Raises:
        ValueError: no such file; names the shipped recipes.
    """
    for path in (Path(name), CONFIGS / f"{name}.yaml", CONFIGS / str(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise ValueError(f"expected a YAML file or one of the shipped recipes ({known}), got {str(name)!r}")


def create_task(model: str, recipe: str = "published", **changes: Any) -> lightning.LightningModule:
    """The LightningModule that trains a registered model.

    Args:
        model: name in the zoo.
        recipe: the family's shipped recipe `<family>_<recipe>.yaml`.
        changes: arguments of the task to set otherwise than the recipe does.

    Raises:
        ValueError: no such recipe for the family of this model.
    """
    from zoo.registry import import_module, registry

    card = registry.card(model)
    section = yaml.safe_load(find_recipe(f"{card.family}_{recipe}").read_text())["model"]
    module, _, name = section["class_path"].rpartition(".")
    arguments = {**section["init_args"], "model": card.full_name, **changes}
    return getattr(import_module(module), name)(**arguments)
