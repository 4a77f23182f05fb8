"""`zoo sweep`: quality over the number of tokens, of one model or several, beside the curves of classical codecs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import Device, choose_device, load_model, strict
from zoo.cli.compare import (
    CURVE,
    PLOTS,
    Originals,
    check_plot,
    chosen_names,
    codec_curve,
    common_size,
    plotted,
)
from zoo.cli.comparison import Entry, mean_row, pixels_of, plain, print_table, protocol_of

if TYPE_CHECKING:
    import numpy as np

    from zoo.tokenizer import Tokenizer

PANELS = 8  # reconstructions in a strip, beside the original


def sweep(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... DATA",
            help="Models, and behind them the images: a folder, a file or a glob pattern.",
        ),
    ],
    tokens: Annotated[
        str | None,
        typer.Option(help="Numbers of tokens, separated by commas; default: the powers of two, and all."),
    ] = None,
    codecs: Annotated[str, typer.Option(help="jpeg, webp, both separated by a comma, or none.")] = "jpeg,webp",
    perceptual: Annotated[str, typer.Option(help="Perceptual distances of zoo.metrics, or none.")] = "lite2_distance",
    size: Annotated[int | None, typer.Option(min=1, help="Crop all images to this many pixels a side.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help=f"File for a plot of quality over bits per pixel: {', '.join(PLOTS)}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for strips: each image from its first token to all of them.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the numbers, those of each image too.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    device: Device = None,
) -> None:
    """Measure models at several numbers of tokens, on equal pixels: rate and distortion."""
    from zoo.cli.measure import CODECS
    from zoo.media.storage import write_atomically
    from zoo.metrics.image import IMAGE_METRICS

    chosen = chosen_names("--codecs", codecs, CODECS)
    distances = chosen_names("--perceptual", perceptual, IMAGE_METRICS)
    check_plot(plot)
    *models, data = arguments
    if not models:
        raise ValueError(f"expected at least one model and the images, got {data} alone")
    originals = Originals(data)
    where = choose_device(device)
    tokenizers = [load_model(name, where) for name in models]
    crop = common_size(tokenizers, size)
    counts = [_counts(tokenizer, originals.paths, crop, tokens) for tokenizer in tokenizers]
    entries: dict[Path, list[Entry]] = {}
    for path, original in originals.read(crop, "sweeping"):
        entries[path] = []
        for tokenizer, numbers in zip(tokenizers, counts):
            results = _entries(original, tokenizer, numbers, distances)
            if out is not None:
                name = path.stem if len(models) == 1 else f"{path.stem}_{tokenizer.name}"
                write_atomically(out / f"{name}_swept.png", _strip(original, results))
            entries[path] += [dataclasses.replace(entry, image=None) for entry in results]
        entries[path] += [point for codec in chosen for point in codec_curve(original, codec, distances, where)]

    rows = [mean_row(list(column)) for column in zip(*entries.values(), strict=True)]
    protocol = {
        **originals.protocol(tokenizers),
        **protocol_of(rows, entries, chosen, f"at the quality settings {', '.join(map(str, CURVE))}"),
    }
    if json_file is not None:
        images = [{"file": str(path), "results": list(map(plain, results))} for path, results in entries.items()]
        content = {"protocol": protocol, "rows": list(map(plain, rows)), "images": images}
        write_atomically(json_file, json.dumps(strict(content), indent=1).encode())
    if plot is not None:
        of_models, left = [], list(rows)
        for tokenizer, numbers in zip(tokenizers, counts):
            of_models.append((tokenizer.name, left[: len(numbers)]))
            left = left[len(numbers) :]
        write_atomically(plot, plotted(of_models, left, originals.title, plot.suffix.lower()[1:]))
    print_table(rows, protocol, markdown=markdown)


def _counts(
    tokenizer: Tokenizer, paths: Sequence[Path], crop: tuple[int, ...] | None, given: str | None
) -> list[int | None]:
    """The numbers of tokens to measure, of which None stands for all; of a model that takes none that alone.

    Raises:
        ValueError: a number that some image cannot have.
    """
    if "num_tokens" not in tokenizer.encode_options:
        return [None]
    allowed: set[int] | None = None
    for size in {crop} if crop is not None else {pixels_of(path, None).shape[:2] for path in paths}:
        numbers = set(tokenizer.numbers_of_tokens(size)[:-1])
        allowed = numbers if allowed is None else allowed & numbers
    fewer = sorted(allowed or ())
    if given is None:
        return [number for number in fewer if number & (number - 1) == 0] + [None]
    numbers_given: list[int | None] = []
    for text in given.split(","):
        if text == "all":
            numbers_given.append(None)
        elif text.isdecimal() and int(text) in fewer:
            numbers_given.append(int(text))
        else:
            between = f"{fewer[0]} to {fewer[-1]}" if fewer else "no smaller number"
            raise ValueError(
                f"--tokens: expected all, or numbers that {tokenizer.name} takes for these images ({between}), got "
                f"{text!r}"
            )
    return numbers_given


def _entries(
    original: np.ndarray, tokenizer: Tokenizer, counts: Sequence[int | None], distances: Sequence[str]
) -> list[Entry]:
    """One image through a model at each number of tokens."""
    from zoo.cli.measure import reconstruct

    entries = []
    for count in counts:
        result = reconstruct(tokenizer, original, further=distances, num_tokens=count)
        words = "all tokens" if count is None else f"{count} token{'s' if count > 1 else ''}"
        entries.append(
            Entry(f"{tokenizer.name}, {words}", result.image, result.file_bytes, result.bits_per_pixel, result.quality)
        )
    return entries


def _strip(original: np.ndarray, entries: Sequence[Entry]) -> bytes:
    """The original, and some of the reconstructions from the fewest tokens to the most."""
    from zoo.cli.measure import number, png
    from zoo.media.image import side_by_side

    last = len(entries) - 1
    places = sorted({round(i * last / (PANELS - 1)) for i in range(PANELS)})
    shown = [entries[place] for place in places]
    labels = [
        f"{entry.row.rpartition(', ')[2]}\n{entry.file_bytes:,} bytes, {number('psnr', entry.quality['psnr'])}"
        for entry in shown
    ]
    images = [entry.image for entry in shown if entry.image is not None]
    return png(side_by_side([original, *images], ["original", *labels]))
