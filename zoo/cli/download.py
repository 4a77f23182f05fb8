"""`zoo download`: published weights onto this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.common import megabytes


def download(
    names: Annotated[list[str], typer.Argument(metavar="NAMES", help="Names in the zoo.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept non-commercial licences; remembered for each model.")
    ] = False,
) -> None:
    """Download weights, check them, and print where they lie."""
    import hashlib

    from zoo import hub
    from zoo.registry import registry

    cards = [registry.card(name) for name in names]
    for card in cards:
        if card.source is None:
            raise ValueError(f"{card.full_name} has no published weights")
        hub.require_licence(card.full_name, card.licence, non_commercial=card.non_commercial, accept=accept_licence)
        path = hub.resolve(card.source, name=card.full_name)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        state = "as the manifest states" if card.source.sha256 else "the manifest states none to compare with"
        typer.echo(f"{card.full_name}: {path}")
        typer.echo(f"  {megabytes(path.stat().st_size)}, sha256 {digest} ({state})")
