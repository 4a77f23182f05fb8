"""`zoo tokens`: what the tokens of a set of images are like, as a language."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import (
    DEFAULT_MODEL,
    Device,
    Json,
    Model,
    choose_device,
    file_name_of,
    load_model,
    note,
    print_json,
    stdout,
)

if TYPE_CHECKING:
    from PIL import Image

    from zoo.bpe import Merges
    from zoo.metrics.language import TokenStatistics
    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

SHOWN = 5  # most frequent codes in the table
ENOUGH = 10  # tokens of each kind, below which entropies are visibly too small
SIDE = 24  # pixels of a position in the picture of usage


def tokens(
    data: Annotated[str, typer.Argument(help="Folder, glob, WebDataset shards, Parquet, or hf:NAME?split=S.")],
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures of usage, and the merges.")] = None,
    merges: Annotated[int, typer.Option(min=0, help="Learn up to this many byte-pair merges over the grids.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images of the data.")] = None,
    as_json: Json = False,
    device: Device = None,
) -> None:
    """Measure tokens as a language: frequency, Zipf's law, entropy, what neighbours tell, innovation, use of places."""
    from zoo.metrics.language import TokenCounter

    where = choose_device(device)
    tokenizer = load_model(model, where)
    if tokenizer.spec.modality != "image":
        raise ValueError(f"zoo tokens reads images, and {tokenizer.name} is a model of {tokenizer.spec.modality}")
    if merges and (tokenizer.layout != "grid" or len(tokenizer.vocab_sizes) != 1):
        raise ValueError(f"--merges: expected a model of one grid of tokens, got {tokenizer.name}")
    counters = [TokenCounter(size) for size in tokenizer.vocab_sizes]
    grids = []
    for encoded in _encoded(tokenizer, data, limit):
        for place, (level, counter) in enumerate(zip(encoded.levels, counters)):
            lengths = encoded.lengths  # (1,), or (1, levels)
            counter.update(
                level if lengths is None else level[:, : int(lengths.flatten().expand(len(counters))[place])]
            )
        if merges:
            grids.append(encoded.levels[0].cpu())
    found = [counter.compute() for counter in counters]
    record: dict[str, Any] = {
        "model": tokenizer.name,
        "fingerprint": tokenizer.source.fingerprint,
        "data": data,
        "images": found[0].items,
        "levels": [_record(one) for one in found],
    }
    if merges:
        record["merges"] = _merged(tokenizer, grids, merges, out)
    if out is not None:
        record["pictures"] = _pictures(tokenizer, found, out)
    if as_json:
        print_json(record)
    else:
        _print(record)
    if any(one.tokens < ENOUGH * max([one.used, *one.different_pairs.values()]) for one in found):
        note(f"fewer than {ENOUGH} tokens for each code or pair of neighbours that occurs: entropies are lower bounds")


def _encoded(tokenizer: Tokenizer, data: str, limit: int | None) -> Iterator[Tokens]:
    """The tokens of each image that can be read."""
    from zoo import media
    from zoo.media.sources import Skipped, open_source

    count, where = 0, next(tokenizer.parameters()).device
    reasons: list[str] = []
    for item in open_source(data).records():
        try:
            if isinstance(item, Skipped):
                raise media.MediaError(item.reason)
            image = media.load(item.data, tokenizer.spec)
        except media.MediaError as error:
            reasons.append(f"{item.name}: {error}")
            note(f"skipped {item.name}: {error}")
            continue
        yield tokenizer.encode(image.to(where))
        count += 1
        if count == limit:
            return
    if count == 0:
        raise ValueError(f"no image of {data} can be read: {reasons[0] if reasons else 'it holds no images'}")


def _record(found: TokenStatistics) -> dict[str, Any]:
    frequent = found.counts.sort(descending=True, stable=True)
    return {
        "vocab_size": found.vocab_size,
        "tokens": found.tokens,
        "used": found.used,
        "entropy": found.entropy,
        "entropy_of_equal_use": math.log2(found.vocab_size),
        "conditional_entropy": found.conditional_entropy,
        "different_pairs": found.different_pairs,
        "zipf_exponent": found.zipf_exponent,
        "heaps_exponent": found.heaps_exponent,
        "innovation": [{"tokens": seen, "codes": codes} for seen, codes in found.innovation],
        "histogram": [
            {"code": code, "count": count}
            for code, count in zip(frequent.indices.tolist(), frequent.values[: found.used].tolist())
        ],
        "usage": found.usage.tolist(),
    }


def _merged(tokenizer: Tokenizer, grids: list[Any], count: int, out: Path | None) -> dict[str, Any]:
    """Byte-pair merges learnt from the grids, and how much shorter they make them."""
    from zoo import bpe

    learnt: Merges = bpe.train(grids, tokenizer.vocab_sizes[0], count)
    after = sum(len(sequence) for grid in grids for sequence in bpe.apply(learnt, grid))
    file = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{file_name_of(tokenizer)}_merges.json"
        bpe.save(learnt, file)
    largest = max(learnt.shapes, key=math.prod)
    return {"count": len(learnt.merges), "tokens": after, "largest": largest, "file": file and str(file)}


def _pictures(tokenizer: Tokenizer, found: list[TokenStatistics], out: Path) -> list[str]:
    """The map of usage of each level, as PNG files."""
    from zoo.cli.measure import png
    from zoo.media.storage import write_atomically

    files = []
    for place, one in enumerate(found):
        number = f"_{place}" if len(found) > 1 else ""
        file = out / f"{file_name_of(tokenizer)}_usage{number}.png"
        write_atomically(file, png(usage_picture(one)))
        files.append(str(file))
    return files


def usage_picture(found: TokenStatistics) -> Image.Image:
    """The entropy of the codes at each position: black is 0 bits, white the most; blue where no token fell."""
    import numpy as np
    from PIL import Image

    usage = found.usage.numpy()
    largest = np.nanmax(usage)
    share = usage / largest if largest > 0 else usage
    grey = np.repeat(np.nan_to_num(share * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)
    grey[np.isnan(usage)] = (0, 0, 255)
    return Image.fromarray(grey.repeat(SIDE, axis=0).repeat(SIDE, axis=1))


def _print(record: dict[str, Any]) -> None:
    from rich.table import Table

    levels = record["levels"]
    columns = [f"level {place}" for place in range(len(levels))] if len(levels) > 1 else ["value"]
    table = Table("", *columns, header_style="bold", title=f"{record['model']}, {record['images']} images")
    rows = [_row(level) for level in levels]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "") for row in rows))
    stdout().print(table)
    if merged := record.get("merges"):
        height, width = merged["largest"]
        typer.echo(
            f"{merged['count']} merges: {levels[0]['tokens']} tokens become {merged['tokens']}, the largest of "
            f"{height} x {width} codes" + (f" -> {merged['file']}" if merged["file"] else "")
        )
    for file in record.get("pictures", ()):
        typer.echo(f"bits at each position -> {file}")


def _row(level: dict[str, Any]) -> dict[str, str]:
    def plain(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    frequent = ", ".join(f"{one['code']} ({one['count'] / level['tokens']:.1%})" for one in level["histogram"][:SHOWN])
    return {
        "tokens": f"{level['tokens']:,}",
        "codes used": f"{level['used']:,} of {level['vocab_size']:,}",
        "most frequent codes": frequent,
        "entropy": f"{level['entropy']:.3f} of {level['entropy_of_equal_use']:.3f} bits",
        **{
            f"entropy given the neighbour, {way}": f"{value:.3f} bits"
            for way, value in level["conditional_entropy"].items()
        },
        "Zipf exponent": plain(level["zipf_exponent"]),
        "innovation (Heaps exponent)": plain(level["heaps_exponent"]),
    }
