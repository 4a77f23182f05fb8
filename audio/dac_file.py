"""Whole recordings through DAC: loudness brought to a norm, long ones window by window, `.dac` files.

File format and procedure of descriptinc/descript-audio-codec 1.0.0 (MIT); arXiv 2306.06546.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio.dac import DAC
from zoo.metrics.loudness import loudness, normalized
from zoo.options import codebooks

VERSION = "1.0.0"
_CLASSES = {  # what the pickle of a .dac file may name: arrays of numbers, and nothing that acts
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class DACFile:
    """The content of a `.dac` file.

    Attributes:
        codes: int64 (channels, codebooks, frames); channels are coded apart.
        input_db: loudness of the recording in LUFS.
        original_length: samples at `sample_rate`.
        sample_rate: of the recording, in Hz; the model's may be another.
        chunk_length: frames of each window.
        padding: whether the convolutions pad, which they do where there is one window alone.
    """

    codes: Tensor
    input_db: float
    original_length: int
    sample_rate: int
    chunk_length: int
    padding: bool

    def to_bytes(self) -> bytes:
        """The file's bytes: a NumPy file of one pickled dict."""
        metadata = {
            "input_db": np.array([self.input_db], np.float32),
            "original_length": self.original_length,
            "sample_rate": self.sample_rate,
            "chunk_length": self.chunk_length,
            "channels": len(self.codes),
            "padding": self.padding,
            "dac_version": VERSION,
        }
        buffer = io.BytesIO()
        content: Any = {"codes": self.codes.cpu().numpy().astype(np.uint16), "metadata": metadata}
        np.save(buffer, content, allow_pickle=True)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> DACFile:
        """Read a file, without running what a pickle could run.

        Raises:
            ValueError: no such file, cut short, of another version, or with anything but numbers in it.
        """
        stream = io.BytesIO(data)
        try:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            read_header(stream)
            content = _Numbers(stream).load().item()  # an array of one object
            facts = content["metadata"]
            if facts["dac_version"] != VERSION:
                raise ValueError(f"expected version {VERSION}, got {facts['dac_version']}")
            codes = torch.from_numpy(np.asarray(content["codes"]).astype(np.int64))
            if codes.ndim != 3 or len(codes) != facts["channels"]:
                raise ValueError(f"expected codes of {facts['channels']} channels, got {tuple(codes.shape)}")
            return DACFile(
                codes=codes,
                input_db=float(np.asarray(facts["input_db"]).reshape(-1)[0]),
                original_length=int(facts["original_length"]),
                sample_rate=int(facts["sample_rate"]),
                chunk_length=int(facts["chunk_length"]),
                padding=bool(facts["padding"]),
            )
        except Exception as error:  # a damaged pickle may break anywhere
            raise ValueError(f"expected the bytes of a .dac file: {error or type(error).__name__}") from error


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CLASSES:
            raise ValueError(f"its pickle holds more than numbers: {module}.{name}")
        return super().find_class(module, name)


@torch.no_grad()
def compress(
    model: DAC,
    audio: Tensor,
    sample_rate: int,
    *,
    window: float | None = 1.0,
    num_codebooks: int | None = None,
    target_db: float | None = -16.0,
) -> DACFile:
    """Code a recording of any rate, length and number of channels.

    Args:
        audio: (C, T) in [-1, 1].
        sample_rate: of `audio`, in Hz.
        window: seconds that are coded at a time; the convolutions then do not pad, so that each window gives samples
            that know both their sides. None, or as much as the recording lasts: all at once, with padding.
        num_codebooks: how many; None: all.
        target_db: loudness in LUFS that the recording is brought to before it is coded; None: as it is.

    Raises:
        ValueError: as `encode`; a window that the network's reach does not leave a sample of.
    """
    if not isinstance(audio, Tensor) or audio.ndim != 2:
        got = tuple(audio.shape) if isinstance(audio, Tensor) else type(audio).__name__
        raise ValueError(f"expected a recording (channels, samples), got {got}")
    model.spec.check(audio[:, None])
    count = codebooks(num_codebooks, len(model.vocab_sizes))
    rate = model.config.sample_rate
    signal = _resampled(audio, sample_rate, rate)
    model.spec.check_shape(signal[:, None])  # a few samples may be none at the model's rate
    input_db = loudness(signal[None], rate)
    if target_db is not None:
        signal = normalized(signal[None], rate, target_db)[0]
    peak = signal.abs().amax(-1, keepdim=True)
    signal = (signal / peak.clamp_min(1))[:, None]  # channels are items

    def encode(part: Tensor) -> Tensor:
        return torch.stack(model.quantizer.first_levels(model.latent(part), count), dim=1)

    with model._evaluating():
        if window is None or signal.shape[-1] <= window * rate:
            codes = encode(model.pad(signal))
            chunk, padding = codes.shape[-1], True
        else:
            parts = [encode(part) for part in _windows(model, signal, window)]
            codes, chunk, padding = torch.cat(parts, dim=-1), parts[0].shape[-1], False
    return DACFile(codes, float(input_db), audio.shape[-1], sample_rate, chunk, padding)


@torch.no_grad()
def decompress(model: DAC, file: DACFile) -> Tensor:
    """The recording (C, T) of a file, at its own rate, length and loudness (each channel brought to it by itself)."""

    def decode(codes: Tensor) -> Tensor:
        return model.decoder(model.quantizer.indices_to_codes(*codes.unbind(1)).movedim(-1, 1))

    with model._evaluating(), unpadded(model, not file.padding):
        signal = torch.cat([decode(part) for part in file.codes.split(file.chunk_length, dim=-1)], dim=-1)
    signal = normalized(signal, model.config.sample_rate, file.input_db)[:, 0]
    signal = _resampled(signal, model.config.sample_rate, file.sample_rate)[:, : file.original_length]
    return F.pad(signal, (0, file.original_length - signal.shape[-1]))


@contextmanager
def unpadded(model: DAC, active: bool = True) -> Iterator[None]:
    """The model with convolutions that do not pad, for the block."""
    convolutions = _convolutions(model) if active else []
    before = [conv.padding for conv in convolutions]
    for conv in convolutions:
        conv.padding = (0,)
    try:
        yield
    finally:
        for conv, padding in zip(convolutions, before):
            conv.padding = padding


def delay(model: DAC) -> int:
    """Samples that the convolutions without padding take away at either end, in encoding and decoding together."""
    inner = output_length(model, 0)
    length = inner
    for conv in reversed(_convolutions(model)):
        stride, reach = conv.stride[0], conv.dilation[0] * (conv.kernel_size[0] - 1)
        if isinstance(conv, nn.ConvTranspose1d):
            length = math.ceil((length - reach - 1) / stride + 1)
        else:
            length = (length - 1) * stride + reach + 1
    return (length - inner) // 2


def output_length(model: DAC, samples: int) -> int:
    """Samples that come out of encoding and decoding without padding; negative where the reach is larger."""
    for conv in _convolutions(model):
        stride, reach = conv.stride[0], conv.dilation[0] * (conv.kernel_size[0] - 1)
        if isinstance(conv, nn.ConvTranspose1d):
            samples = (samples - 1) * stride + reach + 1
        else:
            samples = (samples - reach - 1) // stride + 1
    return samples


def _convolutions(model: DAC) -> list[nn.Conv1d | nn.ConvTranspose1d]:
    """In the order in which a signal passes them."""
    return [
        m
        for part in (model.encoder, model.decoder)
        for m in part.modules()
        if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)
    ]


def _windows(model: DAC, signal: Tensor, window: float) -> Iterator[Tensor]:
    """Windows of (C, 1, T), each of which gives the samples that follow those of the one before."""
    hop, samples = model.spec.multiple, signal.shape[-1]
    length = math.ceil(window * model.config.sample_rate / hop) * hop
    step, margin = output_length(model, length), delay(model)
    if step < 1:
        least = (2 * margin + 2 * hop) / model.config.sample_rate
        raise ValueError(f"window: expected about {least:.2g} seconds or more, got {window:g}")
    padded = F.pad(signal, (margin, margin))
    with unpadded(model):
        for start in range(0, samples, step):
            part = padded[..., start : start + length]
            yield F.pad(part, (0, length - part.shape[-1]))


def _resampled(signal: Tensor, rate: int, to_rate: int) -> Tensor:
    import soxr

    if rate == to_rate:
        return signal
    return torch.from_numpy(soxr.resample(signal.T.float().cpu().numpy(), rate, to_rate, "VHQ").T.copy()).to(signal)
