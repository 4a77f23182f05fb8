"""What comparisons of models and codecs consist of: entries, rows of means, what they mean, and tables of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import typer

from zoo.cli.common import stdout

if TYPE_CHECKING:
    import numpy as np

    from zoo.tokenizer import Tokenizer

AT_LEAST = "for each image the smallest quality whose file has no fewer bytes than the model's packed tokens"


@dataclass(frozen=True)
class Entry:
    """One image through one model or codec."""

    row: str
    image: np.ndarray | None  # uint8 (H, W, 3); None: no longer needed
    file_bytes: int
    bits_per_pixel: float
    quality: dict[str, float]
    setting: int | None = None  # the codec's quality setting
    short: bool = False  # even the codec's largest file has fewer bytes than the model's


@dataclass(frozen=True)
class Row:
    """A model or codec over all images; every number is the mean over them."""

    name: str
    file_bytes: float
    bits_per_pixel: float
    quality: dict[str, float]  # of the metrics that every image allows
    setting: float | None
    short: int  # images of which `Entry.short` holds


def pixels_of(path: Path, size: tuple[int, ...] | None) -> np.ndarray:
    """The image as uint8 (H, W, 3), cropped where a size is wanted."""
    from zoo import media
    from zoo.media.image import to_uint8
    from zoo.tokenizer import InputSpec

    spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), size=size)
    return to_uint8(media.load(path, spec), spec)[0]


def measured(
    original: np.ndarray,
    tokenizers: Sequence[Tokenizer],
    codecs: Sequence[str],
    distances: Sequence[str],
    refine: int = 0,
    steps: int | None = None,
) -> list[Entry]:
    """Each model, its tokens refined by `refine` steps and decoded in `steps`, and after it each codec at no fewer
    bytes.
    """
    from zoo.cli.measure import CODECS, bits_per_pixel, encode_at_least, quality, reconstruct

    entries = []
    for tokenizer in tokenizers:
        result = reconstruct(tokenizer, original, further=distances, refine=refine, steps=steps)
        name = f"{tokenizer.name}, refined by {refine} steps" if refine else tokenizer.name
        entries.append(Entry(name, result.image, result.file_bytes, result.bits_per_pixel, result.quality))
        for codec in codecs:
            coded = encode_at_least(original, codec, result.file_bytes)
            entries.append(
                Entry(
                    row=f"{CODECS[codec][0]}, no fewer bytes than {tokenizer.name}",
                    image=coded.image,
                    file_bytes=coded.file_bytes,
                    bits_per_pixel=bits_per_pixel(coded.file_bytes, original),
                    quality=quality(coded.image, original, further=distances, device=result.device),
                    setting=coded.quality,
                    short=coded.file_bytes < result.file_bytes,
                )
            )
    return entries


def mean_row(entries: Sequence[Entry]) -> Row:
    common = [name for name in entries[0].quality if all(name in entry.quality for entry in entries)]
    settings = [entry.setting for entry in entries if entry.setting is not None]
    return Row(
        name=entries[0].row,
        file_bytes=fmean(entry.file_bytes for entry in entries),
        bits_per_pixel=fmean(entry.bits_per_pixel for entry in entries),
        quality={name: fmean(entry.quality[name] for entry in entries) for name in common},
        setting=fmean(settings) if settings else None,
        short=sum(entry.short for entry in entries),
    )


def protocol_of(
    rows: Sequence[Row], entries: dict[Path, list[Entry]], codecs: Sequence[str], rule: str
) -> dict[str, str]:
    """What each number means, and what the table leaves out; `rule`: which settings of the codecs were taken."""
    from zoo.cli.measure import codec_protocol, label
    from zoo.metrics.image import IMAGE_METRICS

    protocol = {
        "numbers": "means over the images, each measured on its 8-bit RGB picture",
        "bytes": "of the whole file, header included: packed tokens or coded image; bits per pixel: 8 x bytes / pixels",
        **{codec: f"{codec_protocol(codec)}, {rule}" for codec in codecs},
        **{label(name): IMAGE_METRICS[name][0].protocol for name in rows[0].quality},
    }
    measured = {name for results in entries.values() for entry in results for name in entry.quality}
    if missing := sorted(measured - set(rows[0].quality)):
        protocol["left out"] = f"{', '.join(map(label, missing))}, which some images are too small for"
    for row in rows:
        if row.short:
            protocol[row.name] = f"{row.short} images have fewer bytes even at quality 100"
    return protocol


def plain(result: Entry | Row) -> dict[str, object]:
    return {key: value for key, value in dataclasses.asdict(result).items() if key != "image"}


def print_table(rows: Sequence[Row], protocol: dict[str, str], *, markdown: bool) -> None:
    from zoo.cli.measure import label
    from zoo.metrics.image import IMAGE_METRICS

    arrows = {"higher": "↑", "lower": "↓"}
    units = {
        name: f" ({IMAGE_METRICS[name][0].unit})" if IMAGE_METRICS[name][0].unit else "" for name in rows[0].quality
    }
    head = ["model or codec", "bytes", "bits per pixel", "codec quality"]
    head += [f"{label(name)}{unit} {arrows[IMAGE_METRICS[name][0].better]}" for name, unit in units.items()]
    lines = [
        [
            row.name,
            f"{row.file_bytes:,.0f}",
            f"{row.bits_per_pixel:.3f}",
            "" if row.setting is None else f"{row.setting:.1f}",
            *(f"{value:.2f}" if name == "psnr" else f"{value:.4f}" for name, value in row.quality.items()),
        ]
        for row in rows
    ]
    print_lines(head, lines, protocol, markdown=markdown)


def print_lines(head: list[str], lines: list[list[str]], protocol: dict[str, str], *, markdown: bool) -> None:
    """A table with its protocol below."""
    if markdown:
        typer.echo(
            "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---", *["---:"] * (len(head) - 1)], *lines])
        )
        typer.echo("\n" + "\n".join(f"- {name}: {text}" for name, text in protocol.items()))
        return
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column(head[0])
    for column in head[1:]:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*line)
    console = stdout()
    console.print(table)
    for name, text in protocol.items():
        console.print(f"{name}: {text}", style="dim", markup=False, highlight=False)
