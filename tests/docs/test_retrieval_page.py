"""The commands of docs/retrieval.md are commands: their options, recipes, benchmarks and models exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from tokenizers_visual.inversion.cir_benchmarks import BENCHMARKS, METHODS
from trainers.recipes import find_recipe
from zoo.cli import app
from zoo.registry import registry

TEXT = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text()
COMMANDS = [shlex.split(line) for line in re.findall(r"^\$ zoo (.*)$", TEXT, flags=re.MULTILINE)]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_page_has_commands_of_all_kinds() -> None:
    assert {command[0] for command in COMMANDS} == {"retrieve", "eval-cir", "fit"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] != "fit"], ids=" ".join)
def test_a_command_parses(command: list[str]) -> None:
    verb = VERBS[command[0]]
    context = verb.make_context("zoo", command[1:])
    values = context.params
    if command[0] == "eval-cir":
        assert values["benchmark"] in BENCHMARKS
        assert set(values["methods"].split(",")) <= set(METHODS)
    name = values["projector"]
    assert "/" in name or registry.card(name).layout == "words"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "fit"], ids=" ".join)
def test_a_recipe_exists_and_has_what_is_set(command: list[str]) -> None:
    options = dict(zip(command[1::2], command[2::2]))
    options.pop("--init", None)  # of the verb itself
    recipe = find_recipe(options.pop("--config")).read_text()
    for option in options:
        section, name = option.removeprefix("--").split(".")[0], option.rpartition(".")[2]
        assert f"\n{section}:" in recipe
        assert f"    {name}:" in recipe
