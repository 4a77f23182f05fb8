"""What the verbs of composed retrieval share: a projector with its CLIP, and features that are kept."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import choose_device, load_any, note, stderr

if TYPE_CHECKING:
    from tokenizers_visual.inversion.cir_inputs import ImageInput
    from tokenizers_visual.inversion.clip import ClipPair
    from tokenizers_visual.inversion.freedom import FreeDom
    from tokenizers_visual.inversion.projector import Projector
    from tokenizers_visual.inversion.retrieval import FeatureStore
    from tokenizers_visual.inversion.words import PseudoWords

NAMED = 20  # unreadable pictures that are named one by one

BatchSize = Annotated[int, typer.Option(min=1, help="Pictures in one pass of the image encoder.")]
TextEncoder = Annotated[Path | None, typer.Option(help="Text encoder that RTD trained for the projector.")]
Vocabulary = Annotated[
    Path | None, typer.Option(help="Words that FreeDom chooses from: one a line, or the first column of a CSV.")
]


@dataclass(frozen=True)
class Setup:
    """A CLIP, a projector of it, and how pictures go in.

    Attributes:
        pair: of the gallery and the words.
        text_pair: of the prompts: the same, or one with a text encoder trained by RTD.
        projector: None where no words are needed.
        freedom: what finds words of a vocabulary, where that was named in place of a projector.
        family: of the projector; "" without.
    """

    pair: ClipPair
    text_pair: ClipPair
    projector: Projector | None
    freedom: FreeDom | None
    family: str
    preprocess: ImageInput


def prepare(projector: str | None, clip: str | None, text_encoder: Path | None, device: str | None) -> Setup:
    """Load what the names mean.

    Args:
        projector: a name of the zoo, or a saved model, of a projector or of FreeDom; its config names the CLIP.
        clip: needed without a projector alone.

    Raises:
        ValueError: no projector, or one of another CLIP than `clip`; a text encoder for FreeDom.
    """
    import copy

    from tokenizers_visual.inversion.backbones import load_pair
    from tokenizers_visual.inversion.cir_inputs import image_input
    from tokenizers_visual.inversion.freedom import FreeDom
    from tokenizers_visual.inversion.projector import Projector
    from tokenizers_visual.inversion.retrieval import preprocessing
    from tokenizers_visual.inversion.rtd import load_text_encoder
    from zoo.registry import registry

    where, model, family = choose_device(device), None, ""
    if projector is not None:
        model = load_any(projector, where)
        if not isinstance(model, Projector | FreeDom):
            raise ValueError(
                f"{projector}: expected a projector, got a {type(model).__name__}; `zoo list --layout words`"
            )
        family = registry.family_of(model).name
    elif clip is None:
        raise ValueError("expected --projector, or --clip for what needs none")
    pair = load_pair(clip or model.config.backbone).to(where)  # type: ignore[union-attr]
    if model is not None:
        model.check_backbone(pair)
    text_pair = pair
    if text_encoder is not None:
        text_pair = copy.deepcopy(pair)
        load_text_encoder(text_pair, text_encoder)
    if isinstance(model, FreeDom):
        if text_encoder is not None:
            raise ValueError(f"--text-encoder: expected a projector that it was trained for, got {projector}")
        return Setup(pair, pair, None, model, family, image_input(pair))
    return Setup(pair, text_pair, model, None, family, preprocessing(family, image_input(pair)))


def vocabulary_of(setup: Setup, file: Path | None) -> tuple[list[str], Any]:
    """FreeDom's words and their features, which are kept in the zoo's cache.

    Raises:
        ValueError: no file, or one without words.
    """
    from tokenizers_visual.inversion.vocabulary import read_words, word_features

    if file is None:
        raise ValueError(
            "--vocabulary: expected a file of words for FreeDom (published: the classes of Open Images V7)"
        )
    words = read_words(file)
    return words, word_features(setup.pair, words, store_file(None, file, setup.pair.backbone))


def store_file(given: Path | None, place: Path, backbone: str) -> Path:
    """Where the features of a folder's pictures are kept: the file that was given, or one in the zoo's cache."""
    from zoo.hub import cache_folder

    key = hashlib.sha256(f"{place.resolve()}\0{backbone}".encode(errors="surrogateescape")).hexdigest()[:16]
    return given or cache_folder() / "features" / f"{key}.sqlite"


def encode_all(setup: Setup, store: FeatureStore, items: Sequence[Any], batch_size: int) -> dict[str, str]:
    """Features of all items into the store, with a bar on stderr; gives those that cannot be read, with the reasons."""
    from tokenizers_visual.inversion.retrieval import encode_images

    with progress_bar(len(items)) as advance:
        encode_images(store, items, setup.pair, setup.preprocess, batch_size=batch_size, advance=advance)
    return store.skipped(items)


def tell_skipped(skipped: dict[str, str], total: int) -> None:
    """Name the pictures that were left out, and count them."""
    for name, reason in list(skipped.items())[:NAMED]:
        note(f"skipped {name}: {reason.removeprefix('cannot read ').removeprefix(f'{name}: ')}")
    if skipped:
        note(f"{len(skipped)} of {total} pictures cannot be read and are left out")


def words_of(setup: Setup, features: Any, items: Sequence[Any], batch_size: int) -> PseudoWords:
    """The words of pictures, from their pooled features (N, E), or from the pictures anew where tokens are needed."""
    import torch

    from tokenizers_visual.inversion.words import PseudoWords

    projector, weight = setup.projector, next(setup.pair.parameters())
    if projector is None:
        raise ValueError("expected --projector, to make words of pictures")
    parts = []
    for start in range(0, len(items), batch_size):
        if projector.features == "pooled":
            words = projector.project(features[start : start + batch_size].to(weight.device))
        else:
            pictures = torch.stack([item.load(setup.preprocess) for item in items[start : start + batch_size]])
            words = projector.project_images(pictures.to(weight), setup.pair)
        parts.append(words.embeddings.cpu())
    return PseudoWords(torch.cat(parts), projector.config.backbone)


@contextmanager
def progress_bar(total: int) -> Iterator[Any]:
    """A bar of image features on stderr, where that is a terminal; gives what is told the number of pictures done."""
    from rich.progress import Progress

    with Progress(console=stderr(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("image features", total=total)
        yield lambda count: bar.advance(task, count)
