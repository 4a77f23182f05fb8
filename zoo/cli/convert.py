"""`zoo convert`: a published checkpoint, or one of our own training, into the zoo's own file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import megabytes

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

SAMPLE_SIDE = 256  # pixels of the photo on which tokens are compared


class StoredType(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def convert(
    file: Annotated[Path, typer.Argument(help="A published checkpoint, or a Lightning checkpoint of `zoo fit`.")],
    model: Annotated[str, typer.Option(help="Name in the zoo of what the file holds.")],
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors, config.json and README.md.")],
    dtype: Annotated[StoredType, typer.Option(help="Type of the stored weights.")] = StoredType.FLOAT32,
) -> None:
    """Convert a checkpoint to safetensors with its config and card, and compare the tokens of a photo."""
    import torch

    from zoo.registry import create_model, registry, save_model

    card = registry.card(model)
    if card.part is not None:
        raise ValueError(f"{card.full_name} holds only the {card.part}; convert the file of the whole model")
    source = _from_training(file, model) or create_model(model, checkpoint=file)
    tokens = _sample_tokens(source)
    stored = getattr(torch, dtype)
    _round(source, stored)
    path = save_model(source.to(stored), out)
    typer.echo(f"{path}: {megabytes(path.stat().st_size)}, {dtype}")
    reloaded = create_model(str(path.resolve()))
    again = _sample_tokens(reloaded)
    equal = sum(int((a == b).sum()) for a, b in zip(tokens, again))
    total = sum(level.numel() for level in tokens)
    typer.echo(f"  {reloaded.name}, weights {reloaded.source.fingerprint}")
    typer.echo(f"  {equal} of {total} tokens of a sample picture are those of {file} ({100 * equal / total:.2f}%)")


def _from_training(file: Path, name: str) -> Tokenizer | None:
    """The model of a Lightning checkpoint of `trainers`, with the changes that its run made; None for another file.

    Raises:
        ValueError: a run of another model.
    """
    from zoo import checkpoint
    from zoo.registry import create_model, registry

    content = _hyperparameters(file)
    if content is None:
        return None
    trained = str(content["model"])
    if registry.card(trained).full_name != registry.card(name).full_name:
        raise ValueError(f"{file}: expected a checkpoint of {name}, got a training run of {trained}")
    model = create_model(trained, **(content.get("changes") or {}))
    state = checkpoint.read(file, container="state_dict")
    checkpoint.load_into(model, {key.removeprefix("model."): value for key, value in state.items()})
    return model
