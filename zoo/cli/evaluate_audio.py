"""`zoo eval` of codecs: every recording of a folder to tokens and back, numbers with their protocol, a row a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoo.cli.common import note, strict
from zoo.cli.measurements import counted, print_measurements, records

if TYPE_CHECKING:
    from zoo.metrics.audio_evaluation import AudioEvaluation
    from zoo.tokenizer import Tokenizer


def evaluate_audio(
    model: Tokenizer, data: str, metrics: str | None, limit: int | None, bitrate: float | None, json_file: Path | None
) -> None:
    """Measure a codec on recordings.

    Args:
        model: of the modality audio.
        data: file, folder or glob pattern.
        metrics: names separated by commas.
        limit: only the first files.
        bitrate: bits per second at most.
        json_file: where the numbers go, "-" for stdout; None: a table.

    Raises:
        ValueError: an unknown metric, a model without a decoder, or no file that can be read.
    """
    from zoo.media import MediaError
    from zoo.media.audio import files
    from zoo.media.storage import write_atomically
    from zoo.metrics.audio_evaluation import AUDIO_DEFAULT_METRICS, AudioEvaluation

    model._require("decoder")
    names = metrics.split(",") if metrics else AUDIO_DEFAULT_METRICS
    rate = model.spec.sample_rate or 0
    used = model.vocab_sizes if bitrate is None else model.vocab_sizes[: model._codebooks_within(bitrate, None)]
    evaluation = AudioEvaluation(names, used, rate)
    found = files(data)[:limit]
    clock, skipped, digest = {"encode": 0.0, "decode": 0.0}, {}, hashlib.sha256()
    with counted(len(found)) as advance:
        for path in found:
            try:
                _measure(model, evaluation, path, bitrate, clock)
                digest.update(path.read_bytes())
            except MediaError as error:
                skipped[path.name] = str(error)
                note(f"left out: {error}")
            advance(1)
    if not evaluation.recordings:
        raise ValueError(f"no recording of {data} can be read: {next(iter(skipped.values()))}")
    measurements = evaluation.compute()
    protocol = _protocol(model, data, evaluation, bitrate, clock, digest.hexdigest(), len(skipped))
    if json_file is None:
        print_measurements(measurements, protocol, "files")
        return
    content = {
        "metrics": records(measurements, protocol),
        "files": [dataclasses.asdict(recording) for recording in evaluation.recordings],
        "skipped": skipped,
    }
    text = json.dumps(strict(content), indent=1)
    if str(json_file) == "-":
        typer.echo(text)
        return
    write_atomically(json_file, text.encode())
    print_measurements(measurements, protocol, "files")


def _measure(
    model: Tokenizer, evaluation: AudioEvaluation, path: Path, bitrate: float | None, clock: dict[str, float]
) -> None:
    """One recording to tokens and back."""
    from zoo import media

    device = next(iter(model.state_dict().values())).device
    original = media.load(path, model.spec)
    start = time.perf_counter()
    tokens = model.encode(original.to(device), bitrate=bitrate).to("cpu")  # the copy waits for the device
    between = time.perf_counter()
    reconstruction = model.decode(tokens).cpu()
    clock["encode"] += between - start
    clock["decode"] += time.perf_counter() - between
    evaluation.update(path.name, original[0], reconstruction[0].clamp(-1, 1), tokens.levels, tokens.bits[0])


def _protocol(
    model: Tokenizer, data: str, evaluation: AudioEvaluation, bitrate: float | None, clock: dict[str, float],
    digest: str, skipped: int,
) -> dict[str, Any]:  # fmt: skip
    seconds = sum(recording.seconds for recording in evaluation.recordings)
    shifts = sorted({recording.shift for recording in evaluation.recordings})
    at_most = "all codebooks" if bitrate is None else f"the codebooks that fit into {bitrate:g} bit/s"
    return {
        "model": f"{model.name} (weights {model.source.fingerprint}), {at_most}",
        "data": data,
        "recordings": f"{len(evaluation.recordings)}, {seconds:.1f} s" + (f", {skipped} left out" if skipped else ""),
        "sha256": f"{digest} of the files one after the other",
        "signals": f"{model.spec.channels} channels at {model.spec.sample_rate} Hz, whole files, clipped to [-1, 1]",
        "alignment": f"shifted to the best correlation within 64 samples; shifts found: {', '.join(map(str, shifts))}",
        "speed": ", ".join(f"{verb} {seconds / max(spent, 1e-9):.3g}x real time" for verb, spent in clock.items())
        + f" on {next(iter(model.state_dict().values())).device}",
    }
