"""What the verbs share: models and devices by name, files in and out, and how things are printed."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

if TYPE_CHECKING:
    import torch

    from zoo.tokenizer import Tokenizer

T = TypeVar("T")

DEFAULT_MODEL = "compact_f8.photos"
DEFAULT_SPEECH_MODEL = "spectral_codec_16khz.speech"

Images = Annotated[list[str], typer.Argument(metavar="FILES", help="Images: files, folders or glob patterns.")]
Model = Annotated[str, typer.Option(help="Name in the zoo, hf-hub:owner/repo, or a saved model's file or folder.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: the fastest there is.")]
Tile = Annotated[
    int | None,
    typer.Option(min=1, help="Work tile by tile of this many pixels a side; the same result in little memory."),
]
Refine = Annotated[
    int, typer.Option(min=0, help="Steps of gradient descent to tokens nearer to each image; slow: about 1 s a step.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]

logger = logging.getLogger("zoo")


# -- printing ------------------------------------------------------------------------------------------------------


def stdout() -> Console:
    """For tables; wide where no terminal limits it."""
    return Console(width=None if sys.stdout.isatty() else 200)


def stderr() -> Console:
    """For errors, notes and progress."""
    return Console(stderr=True)


def note(text: str) -> None:
    """A remark that is no result."""
    stderr().print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def report(error: BaseException) -> None:
    """One red line on stderr; with --debug the traceback above it."""
    if logger.isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    text = str(error) or type(error).__name__
    stderr().print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Strict JSON on stdout: infinity and NaN, which it lacks, become null."""
    typer.echo(json.dumps(strict(value), indent=indent, default=str, allow_nan=False))


def strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


# -- models --------------------------------------------------------------------------------------------------------


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the fastest there is.

    Raises:
        ValueError: no such device on this machine.
    """
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device: expected a device of this machine, got {name!r}: {reason}") from error
    return device


def load_model(name: str, device: torch.device | str = "cpu") -> Tokenizer:
    """A tokenizer with its weights: a name of the zoo, `hf-hub:...`, or a file or folder that `save_model` wrote.

    Raises:
        ValueError: the model is no tokenizer.
    """
    from zoo.tokenizer import Tokenizer

    model = load_any(name, device)
    if not isinstance(model, Tokenizer):
        raise ValueError(f"{name}: expected a tokenizer of images, video or audio, got a {type(model).__name__}")
    return model


def load_any(name: str, device: torch.device | str = "cpu") -> Any:
    """As `load_model`, of a model of any kind."""
    from zoo.registry import create_model

    if Path(name, "model.safetensors").is_file():
        name = f"local-dir:{name}"
    return create_model(name, pretrained=True, device=device)


def file_name_of(model: Tokenizer) -> str:
    """The model's name as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", model.name)


def default_model(files: Sequence[str]) -> str:
    """The small model that comes with the zoo for such files: for recordings where all of them are some."""
    from zoo.media import MediaError
    from zoo.media.audio import SUFFIXES
    from zoo.media.audio import files as recordings
    from zoo.media.image import files as images

    def holds(pattern: str, find: Callable[[str], Sequence[Path]]) -> bool:
        try:
            return len(find(pattern)) > 0
        except MediaError:
            return False

    def is_sound(pattern: str) -> bool:
        if Path(pattern).suffix:
            return Path(pattern).suffix.lower() in SUFFIXES
        return holds(pattern, recordings) and not holds(pattern, images)

    return DEFAULT_SPEECH_MODEL if files and all(map(is_sound, files)) else DEFAULT_MODEL


# -- files ---------------------------------------------------------------------------------------------------------


def find_all(patterns: Iterable[str], find: Callable[[str], Sequence[Path]]) -> list[tuple[Path, Path]]:
    """Files with their paths inside the folder that was named; of a file or glob pattern the name alone.

    Args:
        patterns: files, folders or glob patterns.
        find: the files that one of them means.
    """
    return [
        (path, path.relative_to(pattern) if Path(pattern).is_dir() else Path(path.name))
        for pattern in patterns
        for path in find(pattern)
    ]


def pair(
    files: Iterable[tuple[Path, Path]], out: Path | None, rename: Callable[[Path], str]
) -> list[tuple[Path, Path]]:
    """Files of `find_all` with the files to write.

    Args:
        files: what `find_all` gave.
        out: folder of the results, in which the levels of a named folder are kept; None: beside each file.
        rename: file name of the result.

    Raises:
        ValueError: two files would be written to one place.
    """
    sources: dict[Path, Path] = {}  # target -> source
    for source, relative in files:
        target = (source if out is None else out / relative).with_name(rename(source))
        other = sources.setdefault(target, source)
        if other.resolve() != source.resolve():
            raise ValueError(f"both {other} and {source} would be written to {target}; give one of them alone")
    return [(source, target) for target, source in sources.items()]


def for_each(items: Sequence[T], work: Callable[[T], None], label: str) -> None:
    """Work on every item, with a progress bar where there is a terminal; errors are told as they come.

    Raises:
        typer.Exit: with status 1, at the end, when any item failed.
    """
    failed = 0
    with progress(items, label) as steps:
        for item in steps:
            try:
                work(item)
            except (ValueError, OSError) as error:
                report(error)
                failed += 1
    if failed:
        if len(items) > 1:
            note(f"{failed} of {len(items)} failed")
        raise typer.Exit(1)


@contextmanager
def progress(items: Sequence[T], label: str) -> Iterator[Iterable[T]]:
    """The items to walk through, with a bar on stderr where there is more than one and a terminal."""
    from rich.progress import Progress

    quiet = len(items) < 2 or not sys.stderr.isatty()
    # what is printed meanwhile goes above the bar, unless stdout leads elsewhere
    with Progress(console=stderr(), transient=True, redirect_stdout=sys.stdout.isatty(), disable=quiet) as bar:
        yield bar.track(items, description=label)
