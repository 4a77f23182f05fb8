"""`zoo roundtrip`: images through a model and back, as pictures side by side and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import (
    DEFAULT_MODEL,
    Device,
    Images,
    Json,
    Model,
    Tile,
    choose_device,
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


def roundtrip(
    files: Images,
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("."),
    as_json: Json = False,
    tile: Tile = None,
    device: Device = None,
) -> None:
    """Encode and decode images; write original and reconstruction side by side, and print tokens, size and quality."""
    from zoo.cli.measure import png, reconstruct
    from zoo.media.image import files as images
    from zoo.media.storage import write_atomically

    found = find_all(files, images)
    where = choose_device(device)
    tokenizer = load_model(model, where)
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
