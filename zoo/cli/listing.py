"""`zoo list`: the models of the zoo as a table."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cards import ModelCard, all_cards, select
from zoo.cli.common import Json, note, print_json, stdout


def list_models(
    pattern: Annotated[str, typer.Argument(help="Glob over names and families.")] = "*",
    modality: Annotated[str | None, typer.Option(help="image, video, audio, graph, mesh, ...")] = None,
    quantizer: Annotated[str | None, typer.Option(help="vector, finite_scalar, binary, ...")] = None,
    layout: Annotated[str | None, typer.Option(help="grid, sequence, frames, scales or words.")] = None,
    licence: Annotated[str | None, typer.Option(help="A part of the licence's name.")] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--no-pretrained", help="Only with, or only without, published weights.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models, by name or by what they are."""
    filters = {"modality": modality, "quantizer": quantizer, "layout": layout, "licence": licence}
    cards = select(all_cards(), pattern, pretrained=pretrained, **filters)
    if as_json:
        print_json([card.to_dict() for card in cards], indent=1)
        return
    if not cards:
        note("no model matches; `zoo list` without filters shows all")
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{len(cards)} models", title_justify="left", header_style="bold")
    table.add_column("name", no_wrap=True, style="cyan")
    for column in ("family", "modality", "layout", "quantizer", "weights", "headline metric"):
        table.add_column(column)
    for card in cards:
        facts = (
            card.full_name,
            card.family,
            card.modality,
            card.layout,
            card.quantizer,
            _weights(card),
            _headline(card),
        )
        table.add_row(*map(escape, facts))
    stdout().print(table)


def _weights(card: ModelCard) -> str:
    if card.source is None:
        return "none"
    flags = [flag for flag, holds in (("non-commercial", card.non_commercial), ("login", card.gated)) if holds]
    return ", ".join([card.licence, *flags])


def _headline(card: ModelCard) -> str:
    return f"{card.metrics[0].name} {card.metrics[0].value:g}" if card.metrics else ""
