"""`zoo compare` with patterns, such as '*': one model of every family that matches, one after the other."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.cli.common import note, progress, strict
from zoo.cli.comparison import AT_LEAST, Entry, mean_row, measured, pixels_of, plain, print_table, protocol_of

if TYPE_CHECKING:
    import torch

    from zoo.cards import ModelCard
    from zoo.tokenizer import Tokenizer

_RANDOM = "; random weights, so that qualities mean nothing, and one step of decoders that take many"
_ROOM = 1.5  # times the memory of the weights is what a model takes with what its largest maps take


def is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def compare_families(
    patterns: Sequence[str],
    data: str,
    *,
    random_weights: bool,
    size: int | None,
    codecs: Sequence[str],
    distances: Sequence[str],
    json_file: Path | None,
    markdown: bool,
    device: torch.device,
) -> None:
    """Each model gets every image at its own size: where it takes one size alone, resized and cropped to that as in
    evaluations. Only one model is in memory at a time; those that cannot be run are left out, with the reason. With
    random weights decoders that take many steps take one, and a CPU runs the largest models in bfloat16.
    """
    import torch

    from zoo.media.image import files
    from zoo.media.storage import write_atomically
    from zoo.memory import return_free_memory

    def of_card(card: ModelCard) -> tuple[str, dict[Path, list[Entry]], Counter[str]]:
        """The model's name and weights, the entries of each image, and how many images had which size."""
        model = _loaded(card, random_weights=random_weights, device=device)
        crop = model.spec.size or (None if size is None else (size, size))
        decoded_in = 1 if random_weights and "steps" in model.decode_options else None
        results, pixels = dict[Path, list[Entry]](), Counter[str]()
        for path in paths:
            original = pixels_of(path, crop)
            pixels[f"{original.shape[1]} x {original.shape[0]}"] += 1
            found = measured(original, [model], codecs, distances, steps=decoded_in)
            results[path] = [dataclasses.replace(entry, image=None) for entry in found]
        precision = ", bfloat16" if model.dtype == torch.bfloat16 else ""
        return f"{model.name} (weights {model.source.fingerprint}{precision})", results, pixels

    paths, left_out = files(data), dict[str, str]()
    entries: dict[Path, list[Entry]] = {path: [] for path in paths}
    names, sizes = list[str](), defaultdict[str, list[str]](list)
    cards = _cards(patterns, random_weights=random_weights)
    with progress(cards, "comparing") as steps:
        for card in steps:
            gc.collect()  # models of diffusers hold themselves; the last one's memory is needed
            return_free_memory()
            try:
                name, results, pixels = of_card(card)
            except (ValueError, OSError, ImportError) as error:
                left_out[card.full_name] = str(error).partition("\n")[0]
                note(f"{card.full_name}: left out: {left_out[card.full_name]}")
                continue
            for path, found in results.items():
                entries[path] += found
            names.append(name)
            sizes[", ".join(f"{text} ({count})" for text, count in pixels.most_common())].append(card.full_name)
    if not names:
        raise ValueError(f"expected at least one model that runs, got none of {len(cards)}: {left_out}")
    rows = [mean_row(list(column)) for column in zip(*entries.values(), strict=True)]
    common = [name for name in rows[0].quality if all(name in row.quality for row in rows)]
    rows = [dataclasses.replace(row, quality={name: row.quality[name] for name in common}) for row in rows]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    protocol = {
        "data": f"{data}, {len(paths)} images, sha256 of all files one after the other {digest}",
        "sizes": "; ".join(text + (f" of {', '.join(of)}" if len(sizes) > 1 else "") for text, of in sizes.items()),
        "models": ", ".join(names) + (_RANDOM if random_weights else ""),
        **protocol_of(rows, entries, codecs, AT_LEAST),
        **{f"{name}, left out": reason for name, reason in left_out.items()},
    }
    if json_file is not None:
        images = [{"file": str(path), "results": list(map(plain, found))} for path, found in entries.items()]
        content = {"protocol": protocol, "rows": list(map(plain, rows)), "images": images}
        write_atomically(json_file, json.dumps(strict(content), indent=1).encode())
    print_table(rows, protocol, markdown=markdown)


def _cards(patterns: Sequence[str], *, random_weights: bool) -> list[ModelCard]:
    """Of each family the first card that matches, among all for random weights, else among those whose weights come
    with the zoo.
    """
    from zoo.cards import all_cards, select

    def of(pattern: str) -> Iterator[ModelCard]:
        for card in select(all_cards(), pattern, modality="image"):
            here = card.source is not None and card.source.path is not None
            if card.layout != "words" and (random_weights or here):
                yield card

    found: dict[str, ModelCard] = {}
    for pattern in patterns:
        first = next(of(pattern), None)
        if first is None:
            kind = "models" if random_weights else "models whose weights come with the zoo (or give --random-weights)"
            raise ValueError(f"{pattern}: expected image {kind}, got none; `zoo list` shows all")
        for card in of(pattern):
            found.setdefault(card.family, card)
    return list(found.values())


def _loaded(card: ModelCard, *, random_weights: bool, device: torch.device) -> Tokenizer:
    import torch

    from zoo.layers.packed import Linear
    from zoo.memory import free_memory
    from zoo.registry import create_model, registry
    from zoo.tokenizer import Tokenizer

    kind = registry.family(card.family, card.module).model
    if not issubclass(kind, Tokenizer) or not kind.has_decoder:
        raise ValueError("it has no decoder")
    changes = kind.further_parts if random_weights else {}
    with torch.device("meta"):
        outline = create_model(card.full_name, pretrained=False, **changes)
    if outline.spec.channels != 3:
        raise ValueError(f"it takes {outline.spec.channels} channels, no pictures")
    laid_out_anew = [layer.weight for layer in outline.modules() if isinstance(layer, Linear)]
    needed = sum(part.nbytes for part in (*outline.parameters(), *laid_out_anew))
    free = free_memory() if random_weights and device.type == "cpu" else None
    torch.manual_seed(0)
    return create_model(
        card.full_name, pretrained=not random_weights, device=device, dtype=precision_for(needed, free), **changes
    )


def precision_for(needed: int, free: int | None) -> torch.dtype | None:
    """The type in which a model with `needed` bytes of weights runs in `free` bytes: None is its own, float32.

    Raises:
        ValueError: too little even to make the weights.
    """
    import torch

    if free is None:
        return None
    if free < needed:
        raise ValueError(f"expected {needed / 1e9:.1f} GB of free memory, got {free / 1e9:.1f}")
    return torch.bfloat16 if free < _ROOM * needed else None
