"""`zoo bench`: ours against the libraries that do the same, on equal results."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.bench import CASES
from zoo.cli.common import stderr, stdout, strict

if TYPE_CHECKING:
    from zoo.bench.report import Record


def bench(
    case: Annotated[str | None, typer.Argument(metavar="CASE", help="What to measure; without it: the list.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="File for the records, one JSON line per setting.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: each that there is.")] = None,
    original: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Compare with an original's own code instead, of the checkout at PATH; once or more.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, two rounds, no memory: to see that everything works.")
    ] = False,
) -> None:
    """Measure a case: results are compared first, then times; the exit status is 0 only if all results are right."""
    if case is None:
        for name, entry in CASES.items():
            typer.echo(f"{name:<12}{entry.about}")
        return
    if case not in CASES:
        near = difflib.get_close_matches(case, CASES, n=3, cutoff=0.4) or list(CASES)
        raise ValueError(f"unknown case {case!r}; nearest names: {', '.join(near)}")
    devices = _devices(device)
    from zoo.media.storage import write_atomically

    records = _measure(case, devices, _originals(original or []), quick=quick)
    for record in records:
        _print(record)
    if json_file is not None:
        lines = [json.dumps(strict(record), allow_nan=False) for record in records]
        write_atomically(json_file, "".join(f"{line}\n" for line in lines).encode())
    wrong = [
        f"{record['problem']} ({record['device']}): {result['contender']} {result['gate']}"
        for record in records
        for result in record["results"]
        if not result["passed"]
    ]
    if wrong:
        raise ValueError("no times where results differ\n  " + "\n  ".join(wrong))


def _devices(name: str | None) -> list[str]:
    import torch

    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if name is None:
        return there
    if name not in there:
        raise ValueError(f"--device: expected {' or '.join(there)}, got {name!r}")
    return [name]


def _originals(texts: list[str]) -> dict[str, Path]:
    """Name -> checkout."""
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--original: expected NAME=PATH, got {text!r}")
        found[name] = Path(path).expanduser()
    return found


def _measure(case: str, devices: list[str], originals: dict[str, Path], *, quick: bool) -> list[dict[str, Any]]:
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from zoo.bench import harness, memory
    from zoo.bench.problem import problems

    records = []
    columns = TextColumn(case), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    quiet = not sys.stderr.isatty()
    # no refreshing thread, which would run beside what is timed
    with Progress(*columns, console=stderr(), transient=True, auto_refresh=False, disable=quiet) as bar:
        settings = [
            (device, problem)
            for device in devices
            for problem in problems(case, device, quick=quick, originals=originals)
        ]
        task = bar.add_task("", total=len(settings))

        def tell(text: str) -> None:
            bar.update(task, description=text, refresh=True)

        peaks = {}
        if "cpu" in devices and not quick and not originals:  # which would build every model anew for each contender
            peaks = memory.measure(case, torch.get_num_threads(), quick=quick, progress=tell)
        for device, problem in settings:
            found = peaks.get(problem.name, {}) if device == "cpu" else {}
            records.append(harness.run(case, problem, quick=quick, peaks=found, progress=tell))
            bar.advance(task)
    return records


def _print(record: Record) -> None:
    from rich.table import Table

    from zoo.bench import report

    table = Table(title=f"{record['case']}: {record['problem']} ({record['device']})", title_justify="left")
    for i, column in enumerate(report.HEAD):
        table.add_column(column, justify="left" if i in (0, len(report.HEAD) - 1) else "right")
    for line in report.rows(record):
        table.add_row(*line)
    console = stdout()
    console.print(table)
    for note in [*report.notes(record), report.protocol(record)]:
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print()
