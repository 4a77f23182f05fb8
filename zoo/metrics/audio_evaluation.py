"""Several metrics over recordings and what a codec makes of them, each number with its protocol and a row a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from zoo.metrics import Metric
from zoo.metrics.audio import AUDIO_METRICS, AudioMetric, Undefined, aligned
from zoo.metrics.distributions import CodebookUse
from zoo.metrics.evaluation import TOKEN_METRICS, Measurement, codebook_measurements
from zoo.metrics.speech import SPEECH_METRICS

BITRATE = Metric("bitrate", "bit/s", "lower", "indices at ceil(log2 K) bits each, over the duration; recordings pooled")
AUDIO_DEFAULT_METRICS = ("si_sdr", "mel_distance", "stft_distance", "bitrate", "codebook")
AUDIO_EVALUATION_METRICS = (*AUDIO_METRICS, *SPEECH_METRICS, "bitrate", "codebook")


@dataclass
class Recording:
    """One recording's numbers; those that are not defined for it are missing, with the reason."""

    name: str
    seconds: float
    shift: int
    bits: int
    values: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)


class AudioEvaluation:
    """Collects recordings one by one; `compute` gives the means.

    Reconstruction and original are aligned first, by a shift of whole samples that is told of each recording.

    Args:
        metrics: names in `AUDIO_EVALUATION_METRICS`.
        vocab_sizes: codes of each level of the tokens.
        sample_rate: in Hz, of the signals.

    Raises:
        ValueError: an unknown name.
        ImportError: a metric whose package is missing.
    """

    def __init__(self, metrics: Sequence[str], vocab_sizes: Sequence[int], sample_rate: int) -> None:
        if unknown := [name for name in metrics if name not in AUDIO_EVALUATION_METRICS]:
            known = ", ".join(AUDIO_EVALUATION_METRICS)
            raise ValueError(f"metrics: expected some of {known}, got {', '.join(unknown)}")
        self.metrics, self.sample_rate = tuple(dict.fromkeys(metrics)), sample_rate
        self.functions: dict[str, tuple[Metric, AudioMetric]] = {}
        for name in self.metrics:
            if name in AUDIO_METRICS:
                self.functions[name] = AUDIO_METRICS[name]
            elif name in SPEECH_METRICS:
                metric, build = SPEECH_METRICS[name]
                self.functions[name] = (metric, build())
        self.vocab_sizes = tuple(vocab_sizes)
        self.codebook = CodebookUse(self.vocab_sizes)
        self.recordings: list[Recording] = []

    def update(
        self, name: str, original: Tensor, reconstruction: Tensor, levels: Sequence[Tensor], bits: int
    ) -> Recording:
        """Count a recording.

        Args:
            name: of its row.
            original, reconstruction: (C, T) in [-1, 1], of one length.
            levels: indices of each level.
            bits: of its tokens.

        Raises:
            ValueError: signals of unequal shapes.
        """
        if original.ndim != 2 or original.shape != reconstruction.shape:
            raise ValueError(
                f"expected two signals (C, T), got {tuple(original.shape)} and {tuple(reconstruction.shape)}"
            )
        one, other, shift = aligned(reconstruction.float().cpu(), original.float().cpu())
        recording = Recording(name, original.shape[-1] / self.sample_rate, shift, bits)
        for metric, (_, function) in self.functions.items():
            try:
                recording.values[metric] = function(one, other, self.sample_rate)
            except Undefined as error:
                recording.undefined[metric] = str(error)
        self.codebook.update(levels)
        self.recordings.append(recording)
        return recording

    def compute(self) -> list[Measurement]:
        """The means over the recordings for which a metric is defined, in the order in which the metrics were named.

        Raises:
            ValueError: no recordings.
        """
        if not self.recordings:
            raise ValueError("expected at least one recording, got none")
        found: list[Measurement] = []
        for name in self.metrics:
            if name == "bitrate":
                seconds = sum(recording.seconds for recording in self.recordings)
                rate = sum(recording.bits for recording in self.recordings) / seconds
                found.append(Measurement(BITRATE, rate, len(self.recordings)))
            elif name in TOKEN_METRICS:
                found += codebook_measurements(self.codebook, self.vocab_sizes, len(self.recordings))
            else:
                found.append(self._mean(name))
        return found

    def _mean(self, name: str) -> Measurement:
        metric = self.functions[name][0]
        values = [recording.values[name] for recording in self.recordings if name in recording.values]
        left_out = len(self.recordings) - len(values)
        protocol = metric.protocol + (
            f"; {left_out} recordings left out, for which it is not defined" if left_out else ""
        )
        mean = sum(values) / len(values) if values else float("nan")
        return Measurement(replace(metric, protocol=protocol), mean, len(values))
