"""`zoo encode`: images and recordings to token files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import (
    DEFAULT_MODEL,
    Device,
    Images,
    Model,
    Refine,
    Tile,
    choose_device,
    find_all,
    for_each,
    load_model,
    note,
    pair,
    stderr,
)

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

LONG = 60.0  # seconds, from which on recordings are encoded piece by piece


class TokenFormat(StrEnum):
    ZTOK = "ztok"
    SAFETENSORS = "safetensors"


def encode(
    files: Images,
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option(help="Folder of the token files; default: beside each file.")] = None,
    token_format: Annotated[
        TokenFormat, typer.Option("--format", help="Packed bits, or safetensors.")
    ] = TokenFormat.ZTOK,
    tile: Tile = None,
    num_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each image, of models of adaptive length; default: all.")
    ] = None,
    psnr: Annotated[
        float | None, typer.Option(help="dB; each image gets the fewest tokens that reach it (adaptive length).")
    ] = None,
    bitrate: Annotated[
        float | None, typer.Option(min=1, help="Bits per second at most, of codecs; default: all codebooks.")
    ] = None,
    refine: Refine = 0,
    device: Device = None,
) -> None:
    """Turn images or recordings into token files, `photo.jpg` into `photo.ztok`."""
    import zoo
    from zoo import media
    from zoo.adaptive import Quality
    from zoo.media.audio import files as recordings
    from zoo.media.image import files as images

    tokenizer = load_model(model, choose_device(device))
    sound = tokenizer.spec.modality == "audio"
    length: dict[str, Any] = {"num_tokens": num_tokens, "quality": None if psnr is None else Quality(psnr=psnr)}
    adaptive = {name: value for name, value in length.items() if value is not None}
    if (sound and (tile or adaptive or refine)) or (bitrate and not sound):
        for_images = "--tile, --num-tokens, --psnr and --refine"
        raise ValueError(f"expected {for_images} for images alone, and --bitrate for recordings")
    if tile and (adaptive or refine):
        raise ValueError("expected --tile, or --num-tokens, --psnr or --refine, got both")
    if refine and psnr is not None:
        raise ValueError("expected --refine or --psnr, got both")
    found = find_all(files, recordings if sound else images)
    targets = pair(found, out, lambda path: f"{path.stem}.{token_format}")
    where = next(iter(tokenizer.state_dict().values())).device

    def work_on_recording(pair: tuple[Path, Path]) -> None:
        source, target = pair
        tokens = encode_recording(tokenizer, source, bitrate)
        target.parent.mkdir(parents=True, exist_ok=True)
        tokens.save(target)
        size, count = target.stat().st_size, sum(level.numel() for level in tokens.levels)
        seconds = tokens.extent.sizes[0][0] / (tokenizer.spec.sample_rate or 1) if tokens.extent else 0.0
        typer.echo(
            f"{source} ({seconds:.2f} s) -> {target}: {count} tokens, {size} bytes, "
            f"{tokens.bits[0] / seconds / 1000:.2f} kbit/s"
        )

    def work(pair: tuple[Path, Path]) -> None:
        source, target = pair
        batch = media.load(source, tokenizer.spec)
        if tile:
            tokens = tokenizer.encode_tiled(batch, tile=tile)
        elif refine:
            tokens = zoo.refine(tokenizer, batch.to(where), steps=refine, num_tokens=num_tokens)
        else:
            tokens = tokenizer.encode(batch.to(where), **adaptive)
        target.parent.mkdir(parents=True, exist_ok=True)
        tokens.save(target)
        size = target.stat().st_size
        height, width = batch.shape[2:]
        count = sum(level.numel() for level in tokens.levels)
        typer.echo(
            f"{source} ({width} x {height}) -> {target}: {count} tokens, {size} bytes, "
            f"{8 * size / (height * width):.3f} bits per pixel"
        )

    for_each(targets, work_on_recording if sound else work, "encoding")


def encode_recording(model: Tokenizer, path: Path, bitrate: float | None = None) -> Tokens:
    """The tokens of a file: at once, or where it is long piece by piece in bounded memory, with a progress bar.

    Raises:
        MediaError: a file that cannot be read.
        ValueError: a bitrate that the model does not have.
    """
    import soundfile

    from zoo import media
    from zoo.long_audio import can_be_cut, encode_pieces

    rate = model.spec.sample_rate or 1
    try:
        seconds = soundfile.info(path).duration
    except (OSError, RuntimeError):  # `load` says what is wrong
        seconds = 0.0
    if seconds > LONG:
        reason = can_be_cut(model)
        if reason is None:
            count = None if bitrate is None else model._codebooks_within(bitrate, None)
            with _bar(media.audio.blocks(path, model.spec, 10 * rate), path.name, seconds, rate) as pieces:
                return encode_pieces(model, pieces, num_codebooks=count).to("cpu")
        note(f"{path}: encoded at once, in memory that grows with its {seconds:.0f} s: {reason}")
    device = next(iter(model.state_dict().values())).device
    return model.encode(media.load(path, model.spec).to(device), bitrate=bitrate).to("cpu")


@contextmanager
def _bar(pieces: Iterable[Tensor], name: str, seconds: float, rate: int) -> Iterator[Iterable[Tensor]]:
    """The pieces to walk through, with a bar on stderr where that is a terminal."""
    from rich.progress import Progress

    with Progress(console=stderr(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=seconds)

        def walk() -> Iterator[Tensor]:
            for piece in pieces:
                yield piece
                bar.advance(task, piece.shape[-1] / rate)

        yield walk()
