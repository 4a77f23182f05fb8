"""`zoo demo`: two photos through the default model, as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import DEFAULT_MODEL, Device, Model, choose_device, file_name_of, load_model, progress

if TYPE_CHECKING:
    from zoo.cli.measure import Reconstruction
    from zoo.media.report import Section
    from zoo.tokenizer import Tokenizer


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the page and its pictures.")] = Path("demo"),
    model: Model = DEFAULT_MODEL,
    device: Device = None,
) -> None:
    """Turn two photos that scikit-learn ships into tokens and back; write report.html with pictures and numbers."""
    from zoo.cli.measure import png, reconstruct
    from zoo.cli.roundtrip import side_by_side
    from zoo.cli.samples import sample_photos
    from zoo.media.report import write_report
    from zoo.media.storage import write_atomically

    photos = sample_photos()
    if not photos:
        raise ValueError("expected scikit-learn, which ships the demo's photos; run `pip install scikit-learn`")
    tokenizer = load_model(model, choose_device(device))
    sections = []
    with progress(photos, "reconstructing") as steps:
        for photo in steps:
            result = reconstruct(tokenizer, photo)
            picture = out / f"{photo.stem}_{file_name_of(tokenizer)}.png"
            write_atomically(picture, png(side_by_side(result, tokenizer.name)))
            section = _section(photo, result, tokenizer)
            sections.append(section)
            facts = ", ".join(f"{name.lower()} {value}" for name, value in section.facts.items())
            typer.echo(f"{photo.name}: {facts}\n  {picture}")
    page = out / "report.html"
    write_report(page, f"Two photos as tokens of {tokenizer.name}", sections)
    typer.echo(f"open {page.resolve()} in a browser")


def _section(photo: Path, result: Reconstruction, tokenizer: Tokenizer) -> Section:
    """The photo, its tokens and what came back, beside JPEG at no fewer bytes."""
    from PIL import Image

    from zoo.cli.measure import encode_at_least, label, number, quality
    from zoo.media.report import Section, token_map

    jpeg = encode_at_least(result.original, "jpeg", result.file_bytes)
    facts = result.facts()
    seconds = {name: facts.pop(name) for name in ("Encode", "Decode", "Device")}
    facts |= {
        f"{label(name)} of JPEG at {jpeg.file_bytes:,} bytes": number(name, value)
        for name, value in quality(jpeg.image, result.original).items()
    }
    grid = result.tokens.levels[0][0]
    text = (
        f"{photo.stat().st_size:,} bytes on disk became {result.count:,} integers below "
        f"{max(result.tokens.vocab_sizes):,}, and those alone became the picture on the right. In the small picture "
        "every square is one token; equal tokens have equal colours."
    )
    return Section(
        heading=photo.stem.capitalize(),
        text=text,
        original=Image.fromarray(result.original),
        reconstruction=Image.fromarray(result.image),
        token_map=token_map(grid, result.tokens.vocab_sizes[0], tokenizer.spec.multiple) if grid.ndim == 2 else None,
        facts=facts | seconds,
    )
