"""`zoo decode`: token files back to images and recordings."""

from __future__ import annotations

import glob
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import Device, Tile, choose_device, find_all, for_each, load_model, pair
from zoo.cli.encode import LONG

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

SUFFIXES = (".ztok", ".safetensors")


class ImageFormat(StrEnum):
    PNG = "png"
    WEBP = "webp"
    JPG = "jpg"


def decode(
    files: Annotated[list[str], typer.Argument(metavar="FILES", help="Token files, folders or glob patterns.")],
    model: Annotated[
        str | None, typer.Option(help="Name, file or folder; default: the name in each token file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: beside each token file.")] = None,
    image_format: Annotated[ImageFormat, typer.Option("--format", help="Format of the images.")] = ImageFormat.PNG,
    tile: Tile = None,
    device: Device = None,
) -> None:
    """Turn token files back into images or recordings, `photo.ztok` into `photo_decoded.png`, `.wav` for sound."""
    from zoo import media
    from zoo.registry import UnknownModelError
    from zoo.tokens import Tokens

    targets = pair(find_all(files, token_files), out, lambda path: f"{path.stem}_decoded.{image_format}")
    where = choose_device(device)

    @cache
    def tokenizer(name: str) -> Tokenizer:
        return load_model(name, where)

    def work(pair: tuple[Path, Path]) -> None:
        source, target = pair
        tokens = Tokens.load(source)
        name = model or (tokens.source and tokens.source.name)
        if not name:
            raise ValueError(f"{source}: the file does not say which model made it; name it by --model")
        try:
            decoder = tokenizer(name)
        except UnknownModelError as error:
            raise UnknownModelError(
                f"{source}: {error}; --model also takes the file or folder of a saved model"
            ) from error
        if decoder.spec.modality == "audio":
            signal, target = decode_recording(decoder, tokens), target.with_suffix(".wav")
        else:
            signal = decoder.decode_tiled(tokens, tile=tile) if tile else decoder.decode(tokens)
        for written in media.save(signal, target, decoder.spec):
            typer.echo(f"{source} -> {written}")

    for_each(targets, work, "decoding")


def decode_recording(model: Tokenizer, tokens: Tokens) -> Tensor:
    """The samples of tokens: at once, or of a long recording piece by piece, in little memory for the network."""
    import torch

    from zoo.long_audio import can_be_cut, decode_pieces

    rate = model.spec.sample_rate or 1
    sizes = [size[0] for size in tokens.extent.sizes] if tokens.extent else []
    if len(sizes) == 1 and sizes[0] > LONG * rate and can_be_cut(model, "decoder") is None:
        return torch.cat([piece.cpu() for piece in decode_pieces(model, tokens)], dim=-1)
    return model.decode(tokens).cpu()


def token_files(pattern: str) -> list[Path]:
    """The token files that a file, folder or glob pattern means, sorted.

    Raises:
        ValueError: there are none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    files = sorted(name for name in found if name.suffix in SUFFIXES and name.is_file())
    if not files:
        raise ValueError(f"no token files at {path}: expected a file, folder or pattern with {' or '.join(SUFFIXES)}")
    return files
