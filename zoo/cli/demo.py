"""`zoo demo`: two photos and a voice through the default models, as a page to look at and listen to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import (
    DEFAULT_MODEL,
    DEFAULT_SPEECH_MODEL,
    Device,
    choose_device,
    file_name_of,
    load_model,
    progress,
)

if TYPE_CHECKING:
    from zoo.cli.measure import Reconstruction
    from zoo.media.report import Section
    from zoo.tokenizer import Tokenizer


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the page and its files.")] = Path("demo"),
    model: Annotated[
        str | None, typer.Option(help=f"One model alone; default: {DEFAULT_MODEL} and {DEFAULT_SPEECH_MODEL}.")
    ] = None,
    device: Device = None,
) -> None:
    """Turn two photos that scikit-learn ships, and a synthetic voice, into tokens and back; write report.html."""
    from zoo.media.report import write_report

    where = choose_device(device)
    tokenizers = [load_model(name, where) for name in ([model] if model else [DEFAULT_MODEL, DEFAULT_SPEECH_MODEL])]
    sections: list[Section] = []
    for tokenizer in tokenizers:
        of_sounds = tokenizer.spec.modality == "audio"
        sections += [_voice(tokenizer, out)] if of_sounds else _photos(tokenizer, out)
    page = out / "report.html"
    things = " and ".join("a voice" if t.spec.modality == "audio" else "two photos" for t in tokenizers)
    names = " and ".join(tokenizer.name for tokenizer in tokenizers)
    write_report(page, f"{things.capitalize()} as tokens of {names}", sections)
    typer.echo(f"open {page.resolve()} in a browser")


def _photos(tokenizer: Tokenizer, out: Path) -> list[Section]:
    from zoo.cli.measure import png, reconstruct
    from zoo.cli.roundtrip import side_by_side
    from zoo.cli.samples import sample_photos
    from zoo.media.storage import write_atomically

    photos = sample_photos()
    if not photos:
        raise ValueError("expected scikit-learn, which ships the demo's photos; run `pip install scikit-learn`")
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
    return sections


def _voice(tokenizer: Tokenizer, out: Path) -> Section:
    """A synthetic voice, its spectrogram and sound before and after."""
    from PIL import Image

    from zoo import media
    from zoo.cli.measure import png
    from zoo.cli.samples import synthetic_voice
    from zoo.cli.sounds import hear, picture
    from zoo.media.audio import encoded
    from zoo.media.report import Section
    from zoo.media.spectrogram import levels, spectrogram_picture
    from zoo.media.storage import write_atomically

    rate = tokenizer.spec.sample_rate or 0
    voice = media.load(synthetic_voice(rate), tokenizer.spec, sample_rate=rate)[0]
    heard = hear(tokenizer, voice)
    stem = out / f"voice_{file_name_of(tokenizer)}"
    write_atomically(stem.with_name(f"{stem.name}.png"), png(picture(heard, tokenizer.name)))
    (sound,) = media.save(heard.sound, stem.with_name(f"{stem.name}.wav"), tokenizer.spec)
    facts = heard.facts()
    typer.echo(f"voice: {', '.join(f'{name.lower()} {value}' for name, value in facts.items())}\n  {sound}")
    loudest = float(levels(heard.original, rate).max())
    before, after = (
        Image.fromarray(spectrogram_picture(signal, rate, loudest=loudest)) for signal in (heard.original, heard.sound)
    )
    return Section(
        heading="Voice",
        text=f"A synthetic voice that glides through five vowels: {len(heard.original[0]):,} samples became "
        f"{heard.count:,} integers, and those alone became the spectrogram on the right. Time runs to the right, "
        "frequency upwards.",
        original=before,
        reconstruction=after,
        facts=facts,
        sounds={
            "Original": encoded(heard.original.T.numpy(), rate, ".wav", "the voice"),
            "Reconstruction": encoded(heard.sound.T.numpy(), rate, ".wav", "its reconstruction"),
        },
    )


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
