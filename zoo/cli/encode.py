"""`zoo encode`: images to token files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import (
    DEFAULT_MODEL,
    Device,
    Images,
    Model,
    Tile,
    choose_device,
    find_all,
    for_each,
    load_model,
    pair,
)


class TokenFormat(StrEnum):
    ZTOK = "ztok"
    SAFETENSORS = "safetensors"


def encode(
    files: Images,
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option(help="Folder of the token files; default: beside each image.")] = None,
    token_format: Annotated[
        TokenFormat, typer.Option("--format", help="Packed bits, or safetensors.")
    ] = TokenFormat.ZTOK,
    tile: Tile = None,
    device: Device = None,
) -> None:
    """Turn images into token files, `photo.jpg` into `photo.ztok`."""
    from zoo import media
    from zoo.media.image import files as images

    targets = pair(find_all(files, images), out, lambda path: f"{path.stem}.{token_format}")
    tokenizer = load_model(model, choose_device(device))
    where = next(tokenizer.parameters()).device

    def work(pair: tuple[Path, Path]) -> None:
        source, target = pair
        batch = media.load(source, tokenizer.spec)
        tokens = tokenizer.encode_tiled(batch, tile=tile) if tile else tokenizer.encode(batch.to(where))
        target.parent.mkdir(parents=True, exist_ok=True)
        tokens.save(target)
        size = target.stat().st_size
        height, width = batch.shape[2:]
        count = sum(level.numel() for level in tokens.levels)
        typer.echo(
            f"{source} ({width} x {height}) -> {target}: {count} tokens, {size} bytes, "
            f"{8 * size / (height * width):.3f} bits per pixel"
        )

    for_each(targets, work, "encoding")
