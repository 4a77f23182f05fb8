"""`zoo tokenize`: a whole data set to shards of tokens; what is killed goes on where it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import DEFAULT_MODEL, Device, Json, Model, choose_device, load_model, note, print_json, stderr

if TYPE_CHECKING:
    from zoo.bulk import Summary
    from zoo.bulk.job import Progress


class Form(StrEnum):
    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    IDS = "ids"


class Engine(StrEnum):
    LOCAL = "local"
    RAY = "ray"


class Order(StrEnum):
    FRAME = "frame"
    LEVEL = "level"


def tokenize(
    source: Annotated[str, typer.Argument(help="Folder, glob, WebDataset shards, Parquet, or hf:NAME?split=S.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; one that holds the same job begun goes on.")],
    model: Model = DEFAULT_MODEL,
    form: Annotated[
        Form, typer.Option("--format", help="Tar shards, Parquet, or plain ids for a language model.")
    ] = Form.WEBDATASET,
    size: Annotated[int | None, typer.Option(min=1, help="Crop images to this many pixels a side.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Items of a shard, where the source has none.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Items encoded at a time, where sizes are equal.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode; with Ray, actors with the model.")] = 2,
    bfloat16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    num_tokens: Annotated[int | None, typer.Option(min=1, help="As encode takes it.")] = None,
    num_codebooks: Annotated[int | None, typer.Option(min=1, help="As encode takes it.")] = None,
    order: Annotated[Order, typer.Option(help="Of the ids of several codebooks: by frame or by level.")] = Order.FRAME,
    keep: Annotated[list[str] | None, typer.Option(help="Member suffix or column to carry along. Repeatable.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of Parquet files and Hugging Face data.")] = None,
    engine: Annotated[Engine, typer.Option(help="This machine, or a Ray cluster.")] = Engine.LOCAL,
    json: Json = False,
    device: Device = None,
) -> None:
    """Turn a data set into shards of tokens, each item exactly once; `zoo.bulk` reads them."""
    from zoo.bulk import Job, ray_engine
    from zoo.bulk import tokenize as tokenize_here
    from zoo.media.sources import open_source

    tokenizer = load_model(model, choose_device(device))
    data = open_source(source, column, modality=tokenizer.spec.modality, keep=keep or ())
    job = Job(
        model=model,
        fingerprint=tokenizer.source.fingerprint,
        source=source,
        form=form.value,
        part_size=shard_size,
        batch_size=batch_size,
        size=size,
        bfloat16=bfloat16,
        num_tokens=num_tokens,
        num_codebooks=num_codebooks,
        order=order.value,
        keep=tuple(keep or ()),
    )
    work = ray_engine.tokenize if engine is Engine.RAY else tokenize_here
    with _bar() as on_progress:
        summary = work(tokenizer, data, job, out, workers=workers, on_progress=on_progress)
    _report(summary, out, json)


def _report(summary: Summary, out: Path, json: bool) -> None:
    from zoo.bulk.job import SKIPPED

    rate = summary.made / max(summary.seconds, 1e-9)
    if json:
        print_json({**vars(summary), "out": str(out), "items_per_second": rate})
        return
    typer.echo(f"{summary.items} items in {summary.parts} shards, {summary.ids} ids -> {out}")
    if summary.made:
        waited = summary.waited
        binds = "" if waited is None else f"; {_binding(waited)}: the model waited {waited:.0%} of the time"
        note(f"{summary.made} now, {rate:.1f} a second{binds}")
    if summary.skipped:
        note(f"{summary.skipped} could not be read: see {out / SKIPPED}")


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on stderr with the items a second and who waits for whom, where there is a terminal."""
    from rich import progress

    text = progress.TextColumn("{task.fields[rate]} {task.fields[binds]}")
    columns = (progress.TextColumn("tokenizing"), progress.BarColumn(), progress.MofNCompleteColumn(), text)
    with progress.Progress(
        *columns, progress.TimeRemainingColumn(), console=stderr(), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None, rate="", binds="")

        def on_progress(done: int, total: int | None, waited: float | None) -> None:
            bar.update(task, completed=done, total=total)
            speed = bar.tasks[0].speed
            if speed:
                bar.update(task, rate=f"{speed:.1f} a second")
            if waited is not None:
                bar.update(task, binds=f"({_binding(waited)})")

        yield on_progress


def _binding(waited: float) -> str:
    return "decoding binds" if waited > 0.5 else "the model binds"
