"""`zoo eval-cir`: composed retrieval by the protocols of CIRR, FashionIQ, CIRCO, GeneCIS and domain conversion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Device, Json, note, print_json, stdout
from zoo.cli.inversion import (
    BatchSize,
    Setup,
    TextEncoder,
    Vocabulary,
    prepare,
    progress_bar,
    store_file,
    vocabulary_of,
    words_of,
)

if TYPE_CHECKING:
    from tokenizers_visual.inversion.cir_base import Benchmark

BENCHMARKS = "cirr, fashioniq, circo, genecis or domains"


def evaluate(
    benchmark: Annotated[str, typer.Argument(help=f"{BENCHMARKS}.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of the benchmark's annotation files.")],
    images: Annotated[Path, typer.Option(help="Folder of its images; of no use once all features are kept.")],
    projector: Annotated[str | None, typer.Option(help="Name in the zoo, or a saved model; not for baselines.")] = None,
    split: Annotated[str, typer.Option(help="val, test1 (CIRR), test (CIRCO); of domains the set's name.")] = "val",
    methods: Annotated[
        str,
        typer.Option(help="composed, freedom, and the baselines image, text and sum, separated by commas."),
    ] = "composed",
    prompt: Annotated[
        str | None, typer.Option(help="Prompt with $ and {caption}, or {domain}; default: the projector's own.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="The CLIP, where no projector tells it.")] = None,
    text_encoder: TextEncoder = None,
    vocabulary: Vocabulary = None,
    features: Annotated[Path | None, typer.Option(help="File that keeps the images' features.")] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Folder for the files that a hidden split's server takes.")
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a projector on a benchmark's own annotation files, or write the submission of a hidden split."""
    from tokenizers_visual.inversion.cir_benchmarks import METHODS, read_benchmark
    from zoo import create_model
    from zoo.media.storage import write_atomically

    chosen = methods.split(",")
    if wrong := [method for method in chosen if method not in METHODS]:
        raise ValueError(f"--methods: expected some of {', '.join(METHODS)}, got {', '.join(wrong)}")
    if "composed" in chosen and projector is None:
        raise ValueError(
            "--projector: expected the name of a projector for composed queries (`zoo list --layout words`)"
        )
    setup = prepare(projector, clip, text_encoder, device)
    by_votes = {"freedom", *(["composed"] if setup.freedom is not None else [])}
    words = None
    if by_votes & set(chosen):
        setup = replace(setup, freedom=setup.freedom or create_model("freedom_vit_l14", backbone=setup.pair.backbone))
        words = vocabulary_of(setup, vocabulary)
    parts = read_benchmark(benchmark, annotations, images, split, family=setup.family, prompt=prompt)
    store = _features(setup, parts, store_file(features, images, setup.pair.backbone), batch_size)
    results: dict[str, dict[str, dict[str, float] | None]] = {method: {} for method in chosen}
    for part in parts:
        for method in chosen:
            values, files = _measure(setup, part, store, method, batch_size, words if method in by_votes else None)
            results[method][part.part] = values
            if values is None and submission is None:
                raise ValueError(
                    f"{part.part}: the ground truth is hidden; expected --submission FOLDER for the server's files"
                )
            if submission is not None and method == chosen[0]:
                for name, content in files.items():
                    write_atomically(submission / name, json.dumps(content).encode())
                    note(f"wrote {submission / name}")
    about: dict[str, Any] = {"projector": projector, "clip": setup.pair.backbone, "split": split}
    if parts[0].queries:
        first = parts[0].queries[0]
        about["prompt"] = f"WORD {first.text}" if set(chosen) <= by_votes else first.prompts[0]
    if words is not None:
        about["vocabulary"] = str(vocabulary)
    _print(results, parts, about, as_json)


def _features(setup: Setup, parts: Sequence[Benchmark], file: Path, batch_size: int) -> Any:
    """The store, with the features of all pictures in it."""
    from tokenizers_visual.inversion.cir_benchmarks import encode_pictures
    from tokenizers_visual.inversion.retrieval import FeatureStore

    store = FeatureStore(file, setup.pair.backbone, setup.preprocess)
    with progress_bar(len({picture.name for part in parts for picture in part.pictures})) as advance:
        encode_pictures(parts, store, setup.pair, setup.preprocess, batch_size=batch_size, advance=advance)
    return store


def _measure(
    setup: Setup, part: Benchmark, store: Any, method: Any, batch_size: int, vocabulary: Any
) -> tuple[dict[str, float] | None, dict[str, Any]]:
    """Metrics, and the files of the submission."""
    from tokenizers_visual.inversion.cir_benchmarks import freedom_features, query_features

    features = store.read([picture.name for picture in part.pictures])
    if vocabulary is not None:
        queries = freedom_features(part, setup.pair, features, setup.freedom, vocabulary)  # type: ignore[arg-type]
        return part.metrics(queries, features), part.submission(queries, features)
    words = None
    if method == "composed":
        references = [query.reference for query in part.queries]
        words = words_of(setup, features[references], [part.pictures[place] for place in references], batch_size)
    queries = query_features(part, setup.text_pair, features, words, method)
    return part.metrics(queries, features), part.submission(queries, features)


def _print(results: dict[str, Any], parts: Sequence[Benchmark], about: dict[str, Any], as_json: bool) -> None:
    from rich.table import Table

    from tokenizers_visual.inversion.cir_benchmarks import mean_of_parts

    for method, values in results.items():
        if len(values) > 1:
            results[method] = {**values, "mean": mean_of_parts(list(values.values()))}
    protocol = {**about, "queries": {part.part: len(part.queries) for part in parts}, "protocol": parts[0].protocol}
    if as_json:
        print_json({"metrics": results, **protocol}, indent=1)
        return
    shown = [name for values in results.values() for part in values.values() for name in part or ()]
    names = list(dict.fromkeys(shown))
    if names:
        table = Table(header_style="bold")
        for column in ("method", "part", *names):
            table.add_column(column, justify="left" if column in ("method", "part") else "right")
        for method, values in results.items():
            for part, numbers in values.items():
                if numbers is not None:
                    row = [f"{numbers[name]:.2f}" if name in numbers else "" for name in names]
                    table.add_row(method, part, *row, end_section=part == list(values)[-1])
        stdout().print(table)
    for name, text in protocol.items():
        stdout().print(f"{name}: {text}", style="dim", markup=False, highlight=False)
