"""Measurements as people and programs read them, and the bar while they are made."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zoo.cli.common import stderr, stdout

if TYPE_CHECKING:
    from zoo.metrics.evaluation import Measurement


def records(measurements: Sequence[Measurement], protocol: dict[str, str]) -> list[dict[str, Any]]:
    """The numbers, each with the metric's and the run's protocol, for JSON."""
    return [
        {
            "name": one.name,
            "value": one.value,
            "unit": one.metric.unit,
            "better": one.metric.better,
            "protocol": {
                "metric": one.metric.protocol,
                "weights": one.weights or None,
                "count": one.count,
                **protocol,
            },
        }
        for one in measurements
    ]


def print_measurements(measurements: Sequence[Measurement], protocol: dict[str, str], items: str = "images") -> None:
    """A table of the numbers, and the run's protocol below it."""
    from rich.table import Table

    table = Table(header_style="bold")
    for column in ("metric", "value", items, "protocol"):
        table.add_column(column, justify="right" if column in ("value", items) else "left")
    for one in measurements:
        arrow = "↑" if one.metric.better == "higher" else "↓"
        unit = f" {one.metric.unit}" if one.metric.unit else ""
        text = one.metric.protocol + (f"; {one.weights}" if one.weights else "")
        table.add_row(f"{one.name} {arrow}", f"{one.value:.4f}{unit}", str(one.count), text)
    console = stdout()
    console.print(table)
    for name, text in protocol.items():
        console.print(f"{name}: {text}", style="dim", markup=False, highlight=False)


@contextmanager
def counted(total: int | None) -> Iterator[Any]:
    """A bar on stderr where that is a terminal; gives the function that advances it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("evaluating", total=total)
        yield lambda count: bar.advance(task, count)
