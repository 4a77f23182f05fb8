"""`zoo compare` over recordings: codecs of the zoo at several bit rates, and classical codecs at no fewer bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from zoo.cli.common import progress, strict
from zoo.cli.comparison import print_lines

if TYPE_CHECKING:
    from zoo.cli.sounds import Heard
    from zoo.tokenizer import Tokenizer


@dataclass(frozen=True)
class SoundRow:
    """A model at a bit rate, or a codec, over all recordings: means over them, the bit rate over their whole length."""

    name: str
    bits_per_second: float
    quality: dict[str, float]  # of the metrics that are defined for every recording
    setting: float | None


def compare_sounds(
    tokenizers: Sequence[Tokenizer],
    data: str,
    *,
    bitrates: Sequence[float],
    codecs: Sequence[str],
    json_file: Path | None,
    markdown: bool,
) -> None:
    """Measure, print and write the comparison.

    Args:
        tokenizers: of audio, of one sample rate.
        data: recordings: a folder, a file or a glob pattern.
        bitrates: in bits per second; a model that takes none has one row. Empty for all bits that a model has.
        codecs: names in `zoo.cli.sounds.SOUND_CODECS`.
        json_file: for the numbers, those of each recording too.
        markdown: print the table as Markdown.
    """
    from zoo.cli.sounds import SOUND_CODECS, default_metrics, label
    from zoo.media.audio import files
    from zoo.media.storage import write_atomically
    from zoo.metrics.audio import AUDIO_METRICS

    rates = {tokenizer.name: tokenizer.spec.sample_rate for tokenizer in tokenizers}
    if len(set(rates.values())) > 1:
        raise ValueError(f"expected models of one sample rate, got {rates}")
    paths = files(data)
    digest = hashlib.sha256()
    entries: dict[Path, list[tuple[str, Heard]]] = {}
    with progress(paths, "comparing") as steps:
        for path in steps:
            digest.update(path.read_bytes())
            entries[path] = _entries(path, tokenizers, bitrates, codecs)
    rate = next(iter(rates.values())) or 0
    rows = [_mean([column[i] for column in entries.values()], rate) for i in range(len(next(iter(entries.values()))))]
    metrics = [name for name in default_metrics() if all(name in row.quality for row in rows)]
    seconds = sum(column[0][1].sound.shape[-1] for column in entries.values()) / rate
    protocol = {
        "data": f"{data}, {len(paths)} recordings, {seconds:.1f} s, sha256 of all files one after the other "
        f"{digest.hexdigest()}",
        "models": ", ".join(f"{tokenizer.name} (weights {tokenizer.source.fingerprint})" for tokenizer in tokenizers),
        "numbers": f"means over the recordings at {rate:,} Hz, each aligned with its original first",
        "kbit/s": "bits of the tokens, or of the codec's packets, over the length of all recordings; no headers",
        **{SOUND_CODECS[codec][0]: SOUND_CODECS[codec][2] for codec in codecs},
        **{label(name): AUDIO_METRICS[name][0].protocol for name in metrics},
    }
    if json_file is not None:
        recordings = [
            {"file": str(path), "results": [_plain(name, heard, rate) for name, heard in column]}
            for path, column in entries.items()
        ]
        content = {"protocol": protocol, "rows": list(map(dataclasses.asdict, rows)), "recordings": recordings}
        write_atomically(json_file, json.dumps(strict(content), indent=1).encode())
    arrows = {"higher": "↑", "lower": "↓"}
    head = ["model or codec", "kbit/s"]
    for name in metrics:
        unit = AUDIO_METRICS[name][0].unit
        head.append(f"{label(name)}{f' ({unit})' if unit else ''} {arrows[AUDIO_METRICS[name][0].better]}")
    lines = [
        [row.name, f"{row.bits_per_second / 1000:.2f}", *(_shown(name, row.quality[name]) for name in metrics)]
        for row in rows
    ]
    print_lines(head, lines, protocol, markdown=markdown)


def _entries(
    path: Path, tokenizers: Sequence[Tokenizer], bitrates: Sequence[float], codecs: Sequence[str]
) -> list[tuple[str, Heard]]:
    """Each model at each bit rate, and after it each codec at no fewer bits."""
    from zoo.cli.sounds import SOUND_CODECS, hear, quality

    entries: list[tuple[str, Heard]] = []
    for tokenizer in tokenizers:
        takes = "bitrate" in tokenizer.encode_options and len(bitrates) > 0
        for bitrate in bitrates if takes else (None,):
            name = tokenizer.name if bitrate is None else f"{tokenizer.name} at {bitrate / 1000:g} kbit/s"
            heard = hear(tokenizer, path, bitrate=bitrate)
            entries.append((name, heard))
            for codec in codecs:
                title, encode, _ = SOUND_CODECS[codec]
                coded = encode(heard.original, heard.sample_rate, heard.bits)
                measured = quality(coded.sound, heard.original, heard.sample_rate)
                entries.append((f"{title} beside it", dataclasses.replace(coded, quality=measured)))
    return entries


def _mean(column: Sequence[tuple[str, Heard]], sample_rate: int) -> SoundRow:
    names, results = zip(*column, strict=True)
    common = [name for name in results[0].quality if all(name in heard.quality for heard in results)]
    settings = [heard.setting for heard in results if heard.setting is not None]
    samples = sum(heard.sound.shape[-1] for heard in results)
    return SoundRow(
        name=names[0],
        bits_per_second=sum(heard.bits for heard in results) * sample_rate / samples,
        quality={name: fmean(heard.quality[name] for heard in results) for name in common},
        setting=fmean(settings) if settings else None,
    )


def _plain(name: str, heard: Heard, sample_rate: int) -> dict[str, Any]:
    return {
        "row": name,
        "bits": heard.bits,
        "bits_per_second": heard.rate(sample_rate),
        "setting": heard.setting,
        **heard.quality,
    }


def _shown(name: str, value: float) -> str:
    return f"{value:.2f}" if name in ("si_sdr", "pesq") else f"{value:.3f}"
