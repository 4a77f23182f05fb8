"""`zoo roundtrip`: images and recordings through a model and back, as pictures side by side, sounds and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import (
    DEFAULT_MODEL,
    DEFAULT_SPEECH_MODEL,
    Device,
    Json,
    Tile,
    choose_device,
    default_model,
    file_name_of,
    find_all,
    for_each,
    load_model,
    pair,
    print_json,
)

if TYPE_CHECKING:
    from PIL import Image

    from zoo.cli.measure import Reconstruction
    from zoo.cli.sounds import SoundReconstruction
    from zoo.tokenizer import Tokenizer


def roundtrip(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES", help="Images or recordings: files, folders or glob patterns.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Name in the zoo, hf-hub:owner/repo, or a saved model's file or folder; default: "
            f"{DEFAULT_MODEL}, of recordings {DEFAULT_SPEECH_MODEL}."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures and sounds.")] = Path("."),
    bitrate: Annotated[float | None, typer.Option(help="Most bits per second, of recordings.")] = None,
    as_json: Json = False,
    tile: Tile = None,
    device: Device = None,
) -> None:
    """Encode and decode images or recordings; write both side by side, and print tokens, size and quality."""
    from zoo.cli.measure import png, reconstruct
    from zoo.media.image import files as images
    from zoo.media.storage import write_atomically

    where = choose_device(device)
    tokenizer = load_model(default_model(files) if model is None else model, where)
    if tokenizer.spec.modality == "audio":
        if tile is not None:
            raise ValueError(f"--tile: {tokenizer.name} is a model of recordings, which has no tiles")
        _sounds(files, tokenizer, out, bitrate, as_json=as_json)
        return
    if bitrate is not None:
        raise ValueError(f"--bitrate: {tokenizer.name} is no model of recordings")
    found = find_all(files, images)
    targets = pair(found, out, lambda path: f"{path.stem}_{file_name_of(tokenizer)}.png")

    def work(pair: tuple[Path, Path]) -> None:
        source, target = pair
        result = reconstruct(tokenizer, source, tile=tile)
        write_atomically(target, png(side_by_side(result, tokenizer.name)))
        if as_json:
            print_json(_record(result, source, target))
        else:
            facts = ", ".join(f"{name.lower()} {value}" for name, value in result.facts().items())
            typer.echo(f"{source} -> {target}\n  {tokenizer.name}: {facts}")

    for_each(targets, work, "reconstructing")


def _sounds(files: list[str], tokenizer: Tokenizer, out: Path, bitrate: float | None, *, as_json: bool) -> None:
    """Recordings: a WAV file of each, and the spectrograms in a PNG file beside it."""
    from zoo import media
    from zoo.cli.measure import png
    from zoo.cli.sounds import hear, picture
    from zoo.media.audio import files as recordings
    from zoo.media.storage import write_atomically

    targets = pair(find_all(files, recordings), out, lambda path: f"{path.stem}_{file_name_of(tokenizer)}.wav")

    def work(pair: tuple[Path, Path]) -> None:
        source, target = pair
        heard = hear(tokenizer, source, bitrate=bitrate)
        shown = target.with_suffix(".png")
        write_atomically(shown, png(picture(heard, tokenizer.name)))
        media.save(heard.sound, target, tokenizer.spec)
        if as_json:
            print_json(_sound_record(heard, tokenizer, source, target, shown))
        else:
            facts = ", ".join(f"{name.lower()} {value}" for name, value in heard.facts().items())
            typer.echo(f"{source} -> {target}, {shown.name}\n  {tokenizer.name}: {facts}")

    for_each(targets, work, "reconstructing")


def _sound_record(
    heard: SoundReconstruction, tokenizer: Tokenizer, source: Path, target: Path, shown: Path
) -> dict[str, object]:
    return {
        "file": str(source),
        "sound": str(target),
        "picture": str(shown),
        "model": tokenizer.name,
        "fingerprint": tokenizer.source.fingerprint,
        "sample_rate": heard.sample_rate,
        "seconds": heard.seconds,
        "tokens": heard.count,
        "bits": heard.bits,
        "bytes": heard.file_bytes,
        "bits_per_second": heard.rate(heard.sample_rate),
        **heard.quality,
        "encode_seconds": heard.encode_seconds,
        "decode_seconds": heard.decode_seconds,
        "device": heard.device,
    }


def side_by_side(result: Reconstruction, model: str) -> Image.Image:
    """Original and reconstruction in one picture, with their sizes and quality below."""
    from zoo.media.image import side_by_side as join

    facts = result.facts()
    quality = "PSNR " + facts["PSNR"] + (f", MS-SSIM {facts['MS-SSIM']}" if "MS-SSIM" in facts else "")
    sizes = f"{result.count:,} tokens, {facts['Bytes']} bytes, {facts['Bits per pixel']} bits per pixel"
    return join([result.original, result.image], [f"original\n{facts['Size']}", f"{model}\n{sizes}\n{quality}"])


def _record(result: Reconstruction, source: Path, target: Path) -> dict[str, object]:
    height, width = result.original.shape[:2]
    maker = result.tokens.source
    return {
        "file": str(source),
        "picture": str(target),
        "model": maker.name if maker else None,
        "fingerprint": maker.fingerprint if maker else None,
        "width": width,
        "height": height,
        "tokens": result.count,
        "vocab_sizes": list(result.tokens.vocab_sizes),
        "bits": result.tokens.bits[0],
        "bytes": result.file_bytes,
        "bits_per_pixel": result.bits_per_pixel,
        **result.quality,
        "encode_seconds": result.encode_seconds,
        "decode_seconds": result.decode_seconds,
        "device": result.device,
    }
