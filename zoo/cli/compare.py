"""`zoo compare`: models and classical codecs on the same images, in one table with its protocol, and in one plot."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import (
    DEFAULT_MODEL,
    DEFAULT_SPEECH_MODEL,
    Device,
    Refine,
    choose_device,
    default_model,
    load_model,
    progress,
    strict,
)
from zoo.cli.comparison import AT_LEAST, Entry, Row, mean_row, measured, pixels_of, plain, print_table, protocol_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from zoo.tokenizer import Tokenizer

CURVE = (0, 2, 5, 10, 20, 35, 50, 65, 80, 90, 95)  # quality settings of the codecs' curves in the plot
PLOTS = (".pdf", ".png", ".svg")


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL]... DATA",
            help=f"Models (default: {DEFAULT_MODEL}, of recordings {DEFAULT_SPEECH_MODEL}), or patterns such as '*', "
            "each for one model of every family whose weights come with the zoo; and behind them the images or "
            "recordings: a folder, a file or a glob pattern.",
        ),
    ],
    codecs: Annotated[
        str | None,
        typer.Option(help="jpeg, webp, both separated by a comma (default), or none; of recordings opus, codec2."),
    ] = None,
    bitrates: Annotated[
        str | None, typer.Option(help="Bits per second, separated by commas: a row for each, of recordings.")
    ] = None,
    perceptual: Annotated[str, typer.Option(help="Perceptual distances of zoo.metrics, or none.")] = "lite2_distance",
    size: Annotated[int | None, typer.Option(min=1, help="Crop all images to this many pixels a side.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help=f"File for a plot of quality over bits per pixel: {', '.join(PLOTS)}.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures of all results side by side.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the numbers, those of each image too.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Of images: names and patterns of any models, untrained.")
    ] = False,
    refine: Refine = 0,
    device: Device = None,
) -> None:
    """Compare models with each other, and with JPEG and WebP, or Opus, at no fewer bits than each model's tokens."""
    from zoo.cli.compare_families import compare_families, is_pattern
    from zoo.cli.compare_sounds import compare_sounds
    from zoo.cli.measure import CODECS
    from zoo.cli.sounds import SOUND_CODECS
    from zoo.media.storage import write_atomically
    from zoo.metrics.image import IMAGE_METRICS
    from zoo.refinement import DISTANCE

    *models, data = arguments
    where = choose_device(device)
    if random_weights or any(map(is_pattern, models)):
        if plot is not None or out is not None or bitrates is not None or refine:
            raise ValueError("expected no --plot, --out, --bitrates or --refine with patterns or random weights")
        compare_families(
            models or ["*"],
            data,
            random_weights=random_weights,
            size=size,
            codecs=chosen_names("--codecs", "jpeg,webp" if codecs is None else codecs, CODECS),
            distances=chosen_names("--perceptual", perceptual, IMAGE_METRICS),
            json_file=json_file,
            markdown=markdown,
            device=where,
        )
        return
    tokenizers = [load_model(name, where) for name in models or [default_model([data])]]
    if all(tokenizer.spec.modality == "audio" for tokenizer in tokenizers):
        if plot is not None or out is not None or size is not None or refine:
            raise ValueError("expected no --plot, --out, --size or --refine with models of recordings")
        compare_sounds(
            tokenizers,
            data,
            bitrates=[float(rate) for rate in bitrates.split(",")] if bitrates else [],
            codecs=chosen_names("--codecs", "opus" if codecs is None else codecs, SOUND_CODECS),
            json_file=json_file,
            markdown=markdown,
        )
        return
    if bitrates is not None:
        raise ValueError("--bitrates: expected models of recordings, got one of images")
    chosen = chosen_names("--codecs", "jpeg,webp" if codecs is None else codecs, CODECS)
    distances = chosen_names("--perceptual", perceptual, IMAGE_METRICS)
    check_plot(plot)
    originals, crop = Originals(data), common_size(tokenizers, size)
    entries: dict[Path, list[Entry]] = {}
    curves: dict[Path, list[Entry]] = {}  # of the plot: each codec at each setting
    for path, original in originals.read(crop, "comparing"):
        results = measured(original, tokenizers, chosen, distances, refine)
        if out is not None:
            write_atomically(out / f"{path.stem}_compared.png", _picture(original, results))
        entries[path] = [dataclasses.replace(entry, image=None) for entry in results]
        if plot is not None:
            curves[path] = [point for codec in chosen for point in codec_curve(original, codec, distances, where)]

    rows = [mean_row(list(column)) for column in zip(*entries.values(), strict=True)]
    points = [mean_row(list(column)) for column in zip(*curves.values(), strict=True)]
    protocol = {**originals.protocol(tokenizers), **protocol_of(rows, entries, chosen, AT_LEAST)}
    if refine:
        terms = ", ".join(f"{weight:g} {name}" for name, weight in DISTANCE.items())
        protocol["refined"] = f"zoo.refine, {refine} steps towards less of {terms}"
    if json_file is not None:
        images = [{"file": str(path), "results": list(map(plain, results))} for path, results in entries.items()]
        content = {"protocol": protocol, "rows": list(map(plain, rows)), "images": images}
        if points:
            content["curves"] = list(map(plain, points))
        write_atomically(json_file, json.dumps(strict(content), indent=1).encode())
    if plot is not None:
        of_models = [(row.name, [row]) for row in rows[:: 1 + len(chosen)]]
        write_atomically(plot, plotted(of_models, points, originals.title, plot.suffix.lower()[1:]))
    print_table(rows, protocol, markdown=markdown)


class Originals:
    """The images of a folder one after the other, and what the protocol says of those that were read.

    Raises:
        MediaError: there are none.
    """

    def __init__(self, data: str) -> None:
        from zoo.media.image import files

        self.data, self.paths = data, files(data)
        self._sizes: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    def read(self, crop: tuple[int, ...] | None, label: str) -> Iterator[tuple[Path, np.ndarray]]:
        """Path and pixels (H, W, 3) uint8, cropped where a size is wanted, with a progress bar."""
        with progress(self.paths, label) as steps:
            for path in steps:
                self._digest.update(path.read_bytes())
                original = pixels_of(path, crop)
                self._sizes[f"{original.shape[1]} x {original.shape[0]}"] += 1
                yield path, original

    @property
    def sizes(self) -> str:
        return ", ".join(f"{name} ({count})" for name, count in self._sizes.most_common())

    @property
    def title(self) -> str:
        return f"{len(self.paths)} images, {self.sizes}; means, 8-bit RGB"

    def protocol(self, tokenizers: Sequence[Tokenizer]) -> dict[str, str]:
        digest = self._digest.hexdigest()
        return {
            "data": f"{self.data}, {len(self.paths)} images, sha256 of all files one after the other {digest}",
            "sizes": self.sizes,
            "models": ", ".join(f"{one.name} (weights {one.source.fingerprint})" for one in tokenizers),
        }


def chosen_names(option: str, text: str, known: Container[str]) -> list[str]:
    names = [] if text == "none" else text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option}: expected none or some of {', '.join(known)}, got {', '.join(unknown)}")  # type: ignore[arg-type]
    return names


def common_size(tokenizers: Sequence[Tokenizer], size: int | None) -> tuple[int, ...] | None:
    """The size to which all images are cropped, so that every row is of the same pixels; None: as they are."""
    wanted = {tokenizer.name: tokenizer.spec.size for tokenizer in tokenizers if tokenizer.spec.size is not None}
    if size is not None:
        wanted["--size"] = (size, size)
    if len(set(wanted.values())) > 1:
        raise ValueError(f"expected models of one input size, got {wanted}")
    return next(iter(wanted.values()), None)


def codec_curve(original: np.ndarray, codec: str, distances: Sequence[str], device: torch.device) -> list[Entry]:
    """One image through a codec at each setting of `CURVE`."""
    from zoo.cli.measure import CODECS, bits_per_pixel, encode_with, quality

    entries = []
    for setting in CURVE:
        coded = encode_with(original, codec, setting)
        entries.append(
            Entry(
                row=CODECS[codec][0],
                image=None,
                file_bytes=coded.file_bytes,
                bits_per_pixel=bits_per_pixel(coded.file_bytes, original),
                quality=quality(coded.image, original, further=distances, device=device),
                setting=setting,
            )
        )
    return entries


def check_plot(plot: Path | None) -> None:
    """Raise a ValueError for a plot of another kind than `PLOTS`."""
    if plot is not None and plot.suffix.lower() not in PLOTS:
        raise ValueError(f"--plot: expected a file that ends in {', '.join(PLOTS)}, got {plot}")


def plotted(models: Sequence[tuple[str, Sequence[Row]]], points: Sequence[Row], title: str, kind: str) -> bytes:
    """Each metric over bits per pixel, on the same images: of every model a mark or a line of marks, of every codec a
    curve.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{error}; --plot needs matplotlib: pip install matplotlib") from error
    from zoo.cli.measure import label
    from zoo.metrics.image import IMAGE_METRICS

    metrics = list(models[0][1][0].quality)
    figure = Figure(figsize=(5.2 * len(metrics), 4.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        for codec in dict.fromkeys(point.name for point in points):
            curve = [point for point in points if point.name == codec]
            rates = [point.bits_per_pixel for point in curve]
            axes.plot(rates, [point.quality[metric] for point in curve], ".-", linewidth=1, label=codec)
        for (name, rows), marker in zip(models, itertools.cycle("os^Dv*PX")):
            rates, size = [row.bits_per_pixel for row in rows], 9 if len(rows) == 1 else 5
            axes.plot(rates, [row.quality[metric] for row in rows], f"{marker}-", markersize=size, label=name)
        unit = IMAGE_METRICS[metric][0].unit
        axes.set(xscale="log", xlabel="bits per pixel", ylabel=label(metric) + (f" ({unit})" if unit else ""))
        axes.set_title(
            "higher is better" if IMAGE_METRICS[metric][0].better == "higher" else "lower is better", fontsize=9
        )
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(buffer := io.BytesIO(), format=kind, dpi=150)
    return buffer.getvalue()


def _picture(original: np.ndarray, entries: Sequence[Entry]) -> bytes:
    from zoo.cli.measure import number, png
    from zoo.media.image import side_by_side

    labels = [
        f"{entry.row.partition(',')[0]}\n{entry.file_bytes:,} bytes, {number('psnr', entry.quality['psnr'])}"
        for entry in entries
    ]
    images = [entry.image for entry in entries if entry.image is not None]
    return png(side_by_side([original, *images], ["original", *labels]))
