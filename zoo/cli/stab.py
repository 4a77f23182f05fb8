"""`zoo stab`: what the tokens themselves tell of a tokenizer of speech, in the manner of STAB (arXiv 2409.02384)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import Device, choose_device, load_model, note, strict
from zoo.cli.measurements import counted, print_measurements, records

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.metrics.evaluation import Measurement
    from zoo.tokenizer import Tokenizer

PERTURBATIONS = "noise_20,noise_10,noise_0,speed_0.9,speed_1.1"
_PART, _WHOLE = 1.0, 4.0  # seconds, of a part cut out for context agreement, and of the clips that are long enough
_STYLE = "STAB-style, not comparable with the paper's"
Pick = Callable[[list[list[int]]], list[int]]


@dataclass
class Corpus:
    """The tokens of all clips, by level: [clip][level][token]."""

    names: list[str] = field(default_factory=list)
    seconds: float = 0.0
    clean: list[list[list[int]]] = field(default_factory=list)
    perturbed: dict[str, list[list[list[int]]]] = field(default_factory=dict)
    whole: list[list[list[int]]] = field(default_factory=list)  # of the clips that a part was cut out of
    parts: list[list[list[int]]] = field(default_factory=list)
    starts: list[list[int]] = field(default_factory=list)  # of each part and level, its first token in the clip


def stab(
    model: Annotated[str, typer.Argument(help="Name in the zoo, hf-hub:owner/repo, or a saved model.")],
    recordings: Annotated[list[str], typer.Argument(metavar="FILES", help="Recordings: files, folders or globs.")],
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV with columns file and group: recordings of one group say the same, for invariance."),
    ] = None,
    perturbations: Annotated[
        str, typer.Option(help="Names separated by commas: noise_<dB>, speed_<factor>, pitch_<semitones>.")
    ] = PERTURBATIONS,
    merges: Annotated[int, typer.Option(min=0, help="Merges of the byte-pair encoding.")] = 200,
    num_codebooks: Annotated[int | None, typer.Option(min=1, help="Only the first codebooks.")] = None,
    joint: Annotated[
        bool, typer.Option(help="Take the tokens of a frame as one, instead of each codebook alone.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first recordings.")] = None,
    seed: Annotated[int, typer.Option(help="Of noise and of the parts cut out.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the numbers; - for stdout.")] = None,
    device: Device = None,
) -> None:
    """Assess the tokens of speech: invariance, robustness, compressibility and use of the vocabulary."""
    from zoo import media
    from zoo.media.audio import files
    from zoo.media.storage import write_atomically
    from zoo.metrics.perturbations import perturbation

    chosen = {name: perturbation(name, seed) for name in filter(None, perturbations.split(","))}
    of_file = _groups(groups)
    tokenizer = load_model(model, choose_device(device))
    if tokenizer.spec.modality != "audio":
        raise ValueError(f"zoo stab measures models of audio, and {tokenizer.name} is one of {tokenizer.spec.modality}")
    found = [path for pattern in recordings for path in files(pattern)][:limit]
    corpus, rate = Corpus(perturbed={name: [] for name in chosen}), tokenizer.spec.sample_rate or 0
    with counted(len(found)) as advance:
        for position, path in enumerate(found):
            try:
                clip = media.load(path, tokenizer.spec)[0]
                tokens = _tokens(tokenizer, clip, num_codebooks)
                changed = {
                    name: _tokens(tokenizer, change(clip, rate), num_codebooks) for name, change in chosen.items()
                }
            except ValueError as error:  # a clip too short for a token, too
                note(f"{path} is left out: {error}")
            else:
                corpus.names.append(path.name)
                corpus.seconds += clip.shape[-1] / rate
                corpus.clean.append(tokens)
                for name, levels in changed.items():
                    corpus.perturbed[name].append(levels)
                _cut(tokenizer, clip, tokens, corpus, num_codebooks, seed + position)
            advance(1)
    if not corpus.clean:
        raise ValueError(f"no recording of {', '.join(recordings)} can be encoded")
    measurements = _measurements(tokenizer, corpus, of_file, merges, joint)
    protocol = {
        "model": f"{tokenizer.name} (weights {tokenizer.source.fingerprint})",
        "recordings": f"{len(corpus.clean)} of {', '.join(recordings)}, {corpus.seconds:.1f} s, each encoded alone",
        "seed": str(seed),
        "style": "after the dimensions of arXiv 2409.02384, whose formulas were not at hand; " + _STYLE,
    }
    if json_file is not None:
        text = json.dumps(strict({"metrics": records(measurements, protocol), "files": corpus.names}), indent=1)
        if str(json_file) == "-":
            typer.echo(text)
            return
        write_atomically(json_file, text.encode())
    print_measurements(measurements, protocol, "files")


def _tokens(model: Tokenizer, clip: Tensor, num_codebooks: int | None) -> list[list[int]]:
    """Of a clip (C, T), each level's."""
    device = next(iter(model.state_dict().values())).device
    tokens = model.encode(clip[None].to(device), num_codebooks=num_codebooks)
    return [level[0].flatten().tolist() for level in tokens.levels]


def _cut(
    model: Tokenizer, clip: Tensor, tokens: list[list[int]], corpus: Corpus, num_codebooks: int | None, seed: int
) -> None:
    """A part of a clip that is long enough, on the borders of tokens of all levels."""
    import torch

    rate = model.spec.sample_rate or 1
    if clip.shape[-1] < _WHOLE * rate:
        return
    multiple = model.spec.multiple if model.spec.multiple > 1 else _hop(clip, tokens)
    steps = max(1, round(_PART * rate / multiple))
    last = clip.shape[-1] // multiple - steps
    start = int(torch.randint(last + 1, (1,), generator=torch.Generator().manual_seed(seed)))
    part = _tokens(model, clip[:, start * multiple : (start + steps) * multiple], num_codebooks)
    counts = [max(1, round(len(level) * multiple / clip.shape[-1])) for level in tokens]
    starts = [start * count for count in counts]
    corpus.whole.append(tokens)
    corpus.parts.append([level[: len(own) - first] for level, own, first in zip(part, tokens, starts)])
    corpus.starts.append(starts)


def _hop(clip: Tensor, tokens: list[list[int]]) -> int:
    """Samples of a token, of models that do not state it as their multiple."""
    return max(1, round(clip.shape[-1] / max(map(len, tokens))))


def _groups(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "group"} <= rows[0].keys():
        raise ValueError(f"{path}: expected a CSV file with the columns file and group")
    return {Path(row["file"]).name: row["group"] for row in rows}


def _measurements(
    model: Tokenizer, corpus: Corpus, of_file: dict[str, str], merges: int, joint: bool
) -> list[Measurement]:
    """The numbers of each codebook, or of whole frames."""
    used = len(corpus.clean[0])
    sizes = model.vocab_sizes[:used]
    found: list[Measurement] = []
    if joint:
        if len({len(level) for level in corpus.clean[0]}) > 1:
            raise ValueError(f"--joint: expected codebooks of one frame rate, got those of {model.name}")
        return _of_symbols(corpus, of_file, merges, math.prod(sizes), "", lambda levels: _frames(levels, sizes), 0)
    for level, size in enumerate(sizes):
        suffix = f"_{level}" if used > 1 else ""
        found += _of_symbols(corpus, of_file, merges, size, suffix, itemgetter(level), level)
    return found


def _frames(levels: list[list[int]], sizes: Sequence[int]) -> list[int]:
    """The tokens of each frame as one number."""
    symbols = []
    for frame in zip(*levels):
        symbol = 0
        for token, size in zip(frame, sizes):
            symbol = symbol * size + token
        symbols.append(symbol)
    return symbols


def _of_symbols(
    corpus: Corpus, of_file: dict[str, str], merges: int, size: int, suffix: str, pick: Pick, level: int
) -> list[Measurement]:
    """The numbers of one kind of symbol: `size` of them, which `pick` takes from the levels of a clip."""
    from zoo.metrics import Metric, stab
    from zoo.metrics.evaluation import Measurement

    sequences = [pick(levels) for levels in corpus.clean]
    statistics = stab.statistics(sequences, size)
    frame_rate = statistics.tokens / corpus.seconds
    files = len(sequences)
    found: list[Measurement] = []

    def add(name: str, value: float, unit: str, better: str, protocol: str, count: int = files) -> None:
        metric = Metric(f"{name}{suffix}", unit, better, protocol)  # type: ignore[arg-type]
        found.append(Measurement(metric, value, count))

    add("tokens_per_second", frame_rate, "", "lower", "tokens over the duration of all recordings")
    add("bits_per_second", frame_rate * math.log2(size), "bit/s", "lower", f"log2 of {size} codes a token")
    add("entropy_bits_per_second", frame_rate * statistics.entropy_bits, "bit/s", "lower", "entropy of single tokens")
    add("utilisation", statistics.utilisation, "", "higher", f"distinct tokens over {size}")
    add("normalised_entropy", statistics.normalised_entropy, "", "higher", f"entropy over log2 of {size}")
    add("huffman_efficiency", statistics.huffman_efficiency, "", "higher", "entropy over the bits of one Huffman code")
    add("huffman_compression", statistics.huffman_compression, "", "higher", "log2 of the codes over those bits")
    if merges:
        pairs = stab.pair_encoding(sequences, size, merges)
        text = f"tokens before over after {len(pairs.merges)} merges of the most frequent pair"
        add("bpe_compression", pairs.compression, "", "higher", text)
    add("dedup_ratio", statistics.dedup_ratio, "", "lower", "tokens left without repetitions, over all")
    for name, clips in corpus.perturbed.items():
        robust = stab.robustness(sequences, [pick(levels) for levels in clips])
        add(f"robustness_{name}", robust.similarity, "", "higher", "mean of 1 - edit distance / longer, without runs")
        add(f"edit_rate_{name}", robust.edit_rate, "", "lower", "edits over tokens of the clean clips, without runs")
    if corpus.parts:
        agreement = stab.context_agreement(
            [pick(levels) for levels in corpus.whole], [pick(levels) for levels in corpus.parts],
            [starts[level] for starts in corpus.starts],
        )  # fmt: skip
        text = f"equal tokens of parts of {_PART:g} s encoded alone, from clips of {_WHOLE:g} s and more"
        add("context_agreement", agreement, "", "higher", text, len(corpus.parts))
    if of_file:
        chosen = [i for i, name in enumerate(corpus.names) if name in of_file]
        invariant = stab.invariance([sequences[i] for i in chosen], [of_file[corpus.names[i]] for i in chosen])
        text = "mean of 1 - edit distance / longer of pairs, without runs"
        add("invariance_within", invariant.within, "", "higher", f"{text}, of one group", len(chosen))
        add("invariance_across", invariant.across, "", "lower", f"{text}, of different groups", len(chosen))
    return found
