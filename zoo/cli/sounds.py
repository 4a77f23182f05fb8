"""Measuring sounds: a recording through a codec and back, beside Opus and Codec2, as numbers and spectrograms."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zoo import media
from zoo.media.spectrogram import levels, spectrogram_picture
from zoo.metrics.audio import AUDIO_METRICS, Undefined, aligned

if TYPE_CHECKING:
    from PIL import Image

    from zoo.media.audio import AudioSource
    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

LABELS = {"si_sdr": "SI-SDR", "mel_distance": "mel distance", "stoi": "STOI", "estoi": "ESTOI", "pesq": "PESQ"}
PACKAGES = {"stoi": "pystoi", "estoi": "pystoi", "pesq": "pesq"}  # metrics that are left out without these
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)  # Hz
FINEST = 0.96  # setting of Opus up to which the smallest with enough bits is sought
STEP = 0.001


@dataclass(frozen=True)
class Heard:
    """One recording through a model or codec.

    Attributes:
        sound: (C, T), what came back.
        bits: of the tokens, or of the codec's packets, without headers.
        quality: metric name -> value; those that are not defined for the recording are missing.
        setting: the codec's.
    """

    sound: Tensor
    bits: int
    quality: dict[str, float]
    setting: float | None = None

    def rate(self, sample_rate: int) -> float:
        """Bits per second."""
        return self.bits * sample_rate / self.sound.shape[-1]


@dataclass(frozen=True)
class SoundReconstruction(Heard):
    """One recording through a model, with what it took.

    Attributes:
        original: (C, T), what the model got.
        tokens: what lay between.
        file_bytes: of the packed tokens, header included.
        encode_seconds, decode_seconds: wall clock of one pass, the first pass of a process included.
    """

    original: Tensor = torch.empty(0)
    tokens: Tokens | None = None
    sample_rate: int = 0
    file_bytes: int = 0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    device: str = ""

    @property
    def count(self) -> int:
        """Tokens of all levels."""
        return sum(level.numel() for level in self.tokens.levels) if self.tokens is not None else 0

    @property
    def seconds(self) -> float:
        return self.original.shape[-1] / self.sample_rate

    def facts(self) -> dict[str, str]:
        """The numbers as a reader sees them."""
        codebooks = len(self.tokens.levels) if self.tokens is not None else 0
        return {
            "Length": f"{self.seconds:.2f} s at {self.sample_rate:,} Hz",
            "Tokens": f"{self.count:,} of {codebooks} codebook{'s' if codebooks != 1 else ''}",
            "Bytes": f"{self.file_bytes:,}",
            "Bit rate": f"{self.rate(self.sample_rate) / 1000:.2f} kbit/s",
            **{label(name): number(name, value) for name, value in self.quality.items()},
            "Encode": f"{self.encode_seconds:.2f} s",
            "Decode": f"{self.decode_seconds:.2f} s",
            "Device": self.device,
        }


def label(metric: str) -> str:
    return LABELS.get(metric, metric)


def number(metric: str, value: float) -> str:
    """A value with its unit."""
    unit = AUDIO_METRICS[metric][0].unit
    return f"{value:.2f} dB" if unit == "dB" else f"{value:.3f}"


def default_metrics() -> list[str]:
    """The names in `LABELS` whose packages are installed."""
    return [name for name in LABELS if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]


def hear(
    model: Tokenizer, source: AudioSource, *, bitrate: float | None = None, metrics: Sequence[str] | None = None
) -> SoundReconstruction:
    """Encode and decode one recording, and measure everything.

    Args:
        model: of the modality audio.
        source: as `zoo.media.load` takes it.
        bitrate: as `Tokenizer.encode` takes it.
        metrics: names in `zoo.metrics.audio.AUDIO_METRICS`; None for `default_metrics`.

    Raises:
        MediaError: a recording that cannot be read.
        ValueError: a bitrate that the model does not take.
    """
    batch = media.load(source, model.spec)
    device = next(model.parameters()).device
    start = time.perf_counter()
    tokens = model.encode(batch.to(device), bitrate=bitrate).to("cpu")  # the copy waits for the device
    between = time.perf_counter()
    sound = model.decode(tokens.to(str(device))).float().cpu()[0].clamp(-1, 1)
    decoded = time.perf_counter()
    original, rate = batch[0].float(), model.spec.sample_rate or 0
    return SoundReconstruction(
        sound=sound,
        bits=tokens.bits[0],
        quality=quality(sound, original, rate, metrics),
        original=original,
        tokens=tokens,
        sample_rate=rate,
        file_bytes=len(tokens.pack()),
        encode_seconds=between - start,
        decode_seconds=decoded - between,
        device=str(device),
    )


def quality(
    sound: Tensor, original: Tensor, sample_rate: int, metrics: Sequence[str] | None = None
) -> dict[str, float]:
    """Metrics of two signals (C, T), aligned first; those that are not defined for them are left out."""
    one, other, _ = aligned(sound, original)
    found = {}
    for name in default_metrics() if metrics is None else metrics:
        try:
            found[name] = AUDIO_METRICS[name][1](one, other, sample_rate)
        except Undefined:
            continue
    return found


def picture(heard: SoundReconstruction, model: str) -> Image.Image:
    """Spectrograms of original and reconstruction side by side, with sizes and quality below."""
    from zoo.media.image import side_by_side

    loudest = float(levels(heard.original, heard.sample_rate).max())
    pictures = [
        spectrogram_picture(signal, heard.sample_rate, loudest=loudest) for signal in (heard.original, heard.sound)
    ]
    facts = heard.facts()
    measured = [f"{label(name)} {facts[label(name)]}" for name in heard.quality]
    quality = "\n".join(", ".join(measured[i : i + 2]) for i in range(0, len(measured), 2))
    sizes = f"{heard.count:,} tokens, {facts['Bytes']} bytes, {facts['Bit rate']}"
    return side_by_side(pictures, [f"original\n{facts['Length']}", f"{model}\n{sizes}\n{quality}"])


# -- Opus ----------------------------------------------------------------------------------------------------------


def opus(original: Tensor, sample_rate: int, setting: float) -> Heard:
    """One recording (C, T) through Opus at a setting from 0 to 1, where 1 gives the fewest bits; without metrics.

    Raises:
        ValueError: a sample rate that Opus does not have.
    """
    import soundfile

    if sample_rate not in OPUS_RATES:
        raise ValueError(f"Opus: expected a sample rate of {', '.join(map(str, OPUS_RATES))} Hz, got {sample_rate}")
    buffer = BytesIO()
    with soundfile.SoundFile(
        buffer, "w", sample_rate, len(original), "OPUS", format="OGG", compression_level=setting
    ) as file:
        file.write(original.T.numpy())
    data = buffer.getvalue()
    sound, _ = soundfile.read(BytesIO(data), dtype="float32", always_2d=True)
    sound = sound[: original.shape[-1]]
    sound = np.pad(sound, ((0, original.shape[-1] - len(sound)), (0, 0)))
    return Heard(torch.from_numpy(sound.T.copy()), 8 * _packet_bytes(data), {}, setting)


def opus_at_least(original: Tensor, sample_rate: int, bits: int) -> Heard:
    """Opus at the setting with the fewest bits that are no fewer than `bits`."""
    least = opus(original, sample_rate, 1.0)
    if least.bits >= bits:
        return least
    fewest, most = 1, round((1 - FINEST) / STEP)  # settings count down from 1, the one with the fewest bits
    while fewest < most:
        between = (fewest + most) // 2
        if opus(original, sample_rate, 1 - between * STEP).bits >= bits:
            most = between
        else:
            fewest = between + 1
    return opus(original, sample_rate, 1 - fewest * STEP)


def _packet_bytes(ogg: bytes) -> int:
    """Bytes of the audio packets of an Ogg Opus file, without the two header packets and the pages around them."""
    at, packet, sizes = 0, 0, []
    while at < len(ogg):
        count = ogg[at + 26]
        for lacing in ogg[at + 27 : at + 27 + count]:
            packet += lacing
            if lacing < 255:
                sizes.append(packet)
                packet = 0
        at += 27 + count + sum(ogg[at + 27 : at + 27 + count])
    return sum(sizes[2:])


# -- Codec2 --------------------------------------------------------------------------------------------------------

CODEC2_MODES = (1200, 1300, 1400, 1600, 2400, 3200)  # bits per second
_SLOWEST = 1600  # samples, the most that Codec2 is thought to come late


def codec2(original: Tensor, sample_rate: int, mode: int) -> Heard:
    """One recording (C, T) through Codec2 at 8 kHz and back, its delay taken out; without metrics.

    Raises:
        ValueError: the programs c2enc and c2dec are not installed.
    """
    import soxr

    if shutil.which("c2enc") is None or shutil.which("c2dec") is None:
        raise ValueError("Codec2: expected the programs c2enc and c2dec (package codec2)")
    narrow = soxr.resample(original.mean(0).numpy(), sample_rate, 8000, "VHQ")
    narrow = np.pad(narrow, (0, 1600 - len(narrow) % 320))  # whole frames, and what comes late
    samples = np.rint(narrow.clip(-1, 1) * 32767).astype("<i2").tobytes()
    bits = subprocess.run(["c2enc", str(mode), "-", "-"], input=samples, capture_output=True, check=True).stdout
    back = subprocess.run(["c2dec", str(mode), "-", "-"], input=bits, capture_output=True, check=True).stdout
    sound = soxr.resample(np.frombuffer(back, "<i2") / np.float32(32768), 8000, sample_rate, "VHQ")
    length = original.shape[-1]
    sound = sound[_delay(sound, original[0].numpy()) :][:length]
    sound = np.pad(sound, (0, length - len(sound))).astype(np.float32)
    return Heard(torch.from_numpy(sound)[None], -(-length * mode // sample_rate), {}, mode)


def _delay(sound: np.ndarray, original: np.ndarray, window: int = 80) -> int:
    """By how many samples, in steps of 16, a sound comes late whose waveform is another: where the courses of the
    energy agree best.
    """
    length = min(len(sound) - _SLOWEST, len(original))
    taps = np.ones(window)

    def energy(signal: np.ndarray) -> np.ndarray:
        course = np.convolve(np.square(signal), taps, "same")[::16]
        return np.log(course + 1e-4) - np.log(course + 1e-4).mean()

    wanted, found = energy(original[:length]), energy(sound)
    return 16 * int(np.argmax([found[i : i + len(wanted)] @ wanted for i in range(_SLOWEST // 16)]))


def codec2_at_least(original: Tensor, sample_rate: int, bits: int) -> Heard:
    """Codec2 at its lowest rate that has no fewer than `bits`, or at its highest where none has."""
    rate = bits * sample_rate / original.shape[-1]
    return codec2(original, sample_rate, next((mode for mode in CODEC2_MODES if mode >= rate), CODEC2_MODES[-1]))


SOUND_CODECS: dict[str, tuple[str, Callable[[Tensor, int, int], Heard], str]] = {
    "opus": (
        "Opus",
        opus_at_least,
        "libsndfile's, packets of 20 ms, variable rate, for each recording the setting with the fewest bits that are "
        "no fewer than the model's, and for a model below them all the fewest; bits of the packets without Ogg's pages",
    ),
    "codec2": (
        "Codec2",
        codec2_at_least,
        "c2enc and c2dec at 8 kHz, delay taken out; the lowest rate that is no lower than the model's, or 3.2 kbit/s",
    ),
}
