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
    """Convert a checkpoint to safetensors with its config and card, and compare a tokenizer's tokens of a photo."""
    import torch

    from zoo.registry import create_model, registry, save_model
    from zoo.tokenizer import Tokenizer

    card = registry.card(model)
    if card.part is not None:
        raise ValueError(f"{card.full_name} holds only the {card.part}; convert the file of the whole model")
    source = _from_training(file) or _from_own_file(file) or create_model(model, checkpoint=file)
    if source.name != card.full_name:
        raise ValueError(f"{file}: expected a checkpoint of {card.full_name}, got one of {source.name}")
    tokens = _sample_tokens(source) if isinstance(source, Tokenizer) else ()
    stored = getattr(torch, dtype)
    _round(source, stored)
    maker = source.source  # before the cast, since loading the file gives float32 weights again
    path = save_model(source.to(stored), out)
    typer.echo(f"{path}: {megabytes(path.stat().st_size)}, {dtype}")
    reloaded = create_model(str(path.resolve()))
    if reloaded.source != maker:
        raise ValueError(f"{path}: expected {maker} back from the file, got {reloaded.source}")
    typer.echo(f"  {reloaded.name}, weights {reloaded.source.fingerprint}")
    if not tokens:
        return
    again = _sample_tokens(reloaded)
    equal = sum(int((a == b).sum()) for a, b in zip(tokens, again))
    total = sum(level.numel() for level in tokens)
    typer.echo(f"  {equal} of {total} tokens of a sample picture are those of {file} ({100 * equal / total:.2f}%)")


def _from_training(file: Path) -> Tokenizer | None:
    """The model of a Lightning checkpoint of `trainers`, with the changes that its run made; None for another file."""
    from zoo import checkpoint
    from zoo.registry import create_model

    settings = _hyperparameters(file)
    if settings is None:
        return None
    model = create_model(settings["model"], **(settings.get("changes") or {}))
    state = checkpoint.read(file, container="state_dict")
    averaged = any(
        key.startswith("ema.module.") for key in state
    )  # where a run keeps a running average, that is the model
    prefix = "ema.module." if averaged else "model."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    checkpoint.load_into(model, own)
    return model


def _from_own_file(file: Path) -> Tokenizer | None:
    """The model of a file that `save_model` wrote; None for another file."""
    from zoo import checkpoint
    from zoo.registry import load_model

    if file.suffix != ".safetensors" or "zoo" not in checkpoint.metadata(file):
        return None
    return load_model(file).eval()


def _hyperparameters(file: Path) -> dict[str, Any] | None:
    """What the run of a Lightning checkpoint of `trainers` was given; None for another file."""
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever else the file is, `checkpoint.read` knows or refuses it with the reason
        return None
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        return None
    settings = content.get("hyper_parameters", {})
    keys = content.get("state_dict", {})
    trained_here = isinstance(settings.get("model"), str) and any(key.startswith("model.") for key in keys)
    return settings if trained_here else None


def _round(model: Tokenizer, dtype: Any) -> None:
    """Round the weights to a type in place, so that the fingerprint is that of the file to be written.

    Raises:
        ValueError: weights beyond the range of the type.
    """
    import torch

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                rounded = value.to(dtype)
                if not rounded.isfinite().all():
                    raise ValueError(f"{name} has values beyond the range of {dtype}; use --dtype bfloat16 or float32")
                value.copy_(rounded)


def _sample_tokens(model: Tokenizer) -> tuple[Any, ...]:
    """Index tensors of a photo of scikit-learn's, or of a drawn picture where that is not installed."""
    from zoo import media
    from zoo.cli.samples import drawn_picture, sample_photos
    from zoo.tokenizer import InputSpec

    size = model.spec.size or (SAMPLE_SIDE, SAMPLE_SIDE)
    photos = sample_photos()
    source = photos[0] if photos else drawn_picture(*size)
    spec = InputSpec("image", channels=model.spec.channels, value_range=model.spec.value_range, size=size)
    return model.encode(media.load(source, spec)).levels
