"""`zoo units`: speech units fitted by k-means to a folder of recordings, saved as a model of the zoo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import note, progress, report

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.tokenizer import InputSpec


class FeatureKind(StrEnum):
    HIDDEN_STATES = "hidden_states"
    MEL = "mel"


def units(
    recordings: Annotated[list[str], typer.Argument(metavar="FILES", help="Recordings: files, folders or globs.")],
    out: Annotated[Path, typer.Option(help="Folder of the model, which loads as local-dir:FOLDER.")],
    count: Annotated[int, typer.Option(min=1, help="Number of units.")] = 500,
    features: Annotated[
        FeatureKind, typer.Option(help="Hidden states of a speech model, or mel bands.")
    ] = FeatureKind.HIDDEN_STATES,
    repo: Annotated[
        str, typer.Option(help="Speech model of transformers: HuBERT, WavLM or wav2vec 2.0; hub repository or folder.")
    ] = "facebook/hubert-base-ls960",
    layer: Annotated[int, typer.Option(min=0, help="Hidden state; 0 is the input of the first layer.")] = 9,
    normalize: Annotated[
        bool, typer.Option(help="Bring each clip to mean 0 and variance 1, as large models expect.")
    ] = False,
    iterations: Annotated[int, typer.Option(min=1, help="Rounds of k-means at most.")] = 100,
    most_frames: Annotated[int, typer.Option(min=1, help="Frames that k-means works on, a uniform sample.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Of the sample and of the start.")] = 0,
) -> None:
    """Fit discrete speech units to recordings: features, k-means, and a model whose tokens are the nearest centres."""
    from audio.dsu import DSU, DSUConfig, centres, fit
    from audio.speech_features import HiddenStatesConfig, MelFeaturesConfig, SpeechFeaturesConfig, width_of
    from zoo.media.audio import files
    from zoo.registry import save_model

    found = [path for pattern in recordings for path in files(pattern)]
    chosen: SpeechFeaturesConfig = (
        MelFeaturesConfig()
        if features is FeatureKind.MEL
        else HiddenStatesConfig(width_of(repo), layer, normalize, repo=repo)
    )
    config = DSUConfig(chosen, quantizer=centres(count, chosen.width))
    with progress(found, "features") as steps:
        model = fit(
            config, _clips(steps, DSU(config).spec), iterations=iterations, seed=seed, most_frames=most_frames,
            corpus=f"{len(found)} recordings of {', '.join(recordings)}",
        )  # fmt: skip
    path = save_model(model, out)
    metric = model.card.metrics[0] if model.card else None
    typer.echo(f"{path}: {count} units, {metric.name} {metric.value:.4g} ({metric.protocol})" if metric else str(path))


def _clips(paths: Iterable[Path], spec: InputSpec) -> Iterator[Tensor]:
    """The recordings that can be read, as signals (1, T); the others are told."""
    from zoo import media

    for path in paths:
        try:
            yield media.load(path, spec)[0]
        except media.MediaError as error:
            report(error)
            note(f"{path} is left out")
