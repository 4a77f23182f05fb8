"""`zoo parity`: fixtures of the original implementations against the families of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Json, print_json, progress, stdout


def parity(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Fixtures, or folders that hold some.")],
    as_json: Json = False,
) -> None:
    """Run parity fixtures; the exit status is 0 only if every check of every one passes."""
    from zoo.parity import fixtures, print_table, run_fixture, to_json

    with progress(fixtures(folders), "parity") as steps:
        results = [run_fixture(folder) for folder in steps]
    if as_json:
        print_json(to_json(results), indent=1)
    else:
        print_table(results, stdout())
    if not results or not all(result.passed for result in results):
        raise typer.Exit(1)
