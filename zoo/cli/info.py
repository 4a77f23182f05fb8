"""`zoo info`: everything known of one model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Json, megabytes, print_json, stdout

if TYPE_CHECKING:
    from zoo.cards import ModelCard
    from zoo.model import Model

IMAGE_SIDE = 256  # pixels of the image whose tokens are counted


def info(
    name: Annotated[str, typer.Argument(help="Name in the zoo, or a saved model's file or folder.")],
    as_json: Json = False,
) -> None:
    """Show a model's card: config, weights, licence, paper, metrics with their protocols, and its tokens."""
    model, card = _model_and_card(name)
    facts = {**card.to_dict(), **of_model(model)}
    if as_json:
        print_json(facts, indent=1)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows(card, facts).items():
        if value:
            table.add_row(key, escape(value))
    console = stdout()
    console.print(table)
    if card.metrics:
        metrics = Table("metric", "value", "protocol", header_style="bold")
        for metric in card.metrics:
            metrics.add_row(escape(metric.name), f"{metric.value:g}", escape(metric.protocol))
        console.print(metrics)


def _model_and_card(name: str) -> tuple[Model, ModelCard]:
    """A model of the zoo without memory for its weights; a saved one as it is."""
    import torch

    from zoo.cli.common import load_any
    from zoo.registry import registry

    if ":" in name or Path(name).exists():
        model = load_any(name)
        return model, model.card or registry.card(model.name)
    card = registry.card(name)
    family = registry.family(card.family, card.module)
    with torch.device("meta"):
        return family.model(family.config.from_dict(card.config)), card  # type: ignore[call-arg, arg-type]


def of_model(model: Model) -> dict[str, Any]:
    """What the built model tells: its size; of a tokenizer, what it takes and how many tokens an image becomes."""
    from zoo.tokenizer import Tokenizer

    facts: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if not isinstance(model, Tokenizer):
        return facts
    facts |= {"input": dataclasses.asdict(model.spec), "vocab_sizes": model.vocab_sizes}
    if model.spec.modality == "image":
        size = model.spec.size or (IMAGE_SIDE, IMAGE_SIDE)
        padded = tuple(side + grow for side, grow in zip(size, model.spec.padding(size)))
        counts = [math.prod(shape) for shape in model.token_shapes(padded)]
        bits = sum((vocabulary - 1).bit_length() * count for vocabulary, count in zip(model.vocab_sizes, counts))
        facts["example"] = {"size": size, "tokens": sum(counts), "bits": bits, "bits_per_pixel": bits / math.prod(size)}
    return facts


def rows(card: ModelCard, facts: dict[str, Any]) -> dict[str, str]:
    """What a reader sees of a card and the facts of `of_model`, empty where there is nothing to say."""
    flags = [flag for flag, holds in (("non-commercial", card.non_commercial), ("needs a login", card.gated)) if holds]
    source = "none published"
    if card.source is not None:
        source = str(card.source) + (f", sha256 {card.source.sha256}" if card.source.sha256 else "")
    given = ""
    if taken := facts.get("input"):
        sides = " x ".join(map(str, taken["size"])) if taken["size"] else "any size"
        low, high = taken["value_range"]
        padding = f", padded to multiples of {taken['multiple']}" if taken["multiple"] > 1 else ""
        if taken["frame_multiple"] > 1:
            padding += f", frames after the first to multiples of {taken['frame_multiple']}"
        given = f"{taken['channels']} channels in [{low:g}, {high:g}], {sides}{padding}"
    tokens = ""
    if example := facts.get("example"):
        tokens = (
            f"{example['tokens']:,} for an image of {' x '.join(map(str, example['size']))}: {example['bits']:,} bits, "
            f"{example['bits_per_pixel']:.3f} bits per pixel"
        )
    return {
        "name": card.full_name + (f" (also {', '.join(card.aliases)})" if card.aliases else ""),
        "family": f"{card.family} ({card.module})",
        "kind": f"{card.modality}, {card.layout}, {card.quantizer}",
        "holds": f"only the {card.part}" if card.part else "",
        "input": given,
        "parameters": f"{facts['parameters']:,} ({megabytes(4 * facts['parameters'])} in float32)",
        "vocabulary": ", ".join(f"{size:,}" for size in facts.get("vocab_sizes", ())),
        "tokens": tokens,
        "weights": source,
        "licence": ", ".join([card.licence, *flags]),
        "paper": card.paper,
        "code": card.code,
        "checked by": card.checked_by,
        "notes": card.notes,
        "sizes": "those that the shapes in the weights tell" if card.sizes == "file" else "",
        "config": json.dumps(dict(card.config)),
    }
