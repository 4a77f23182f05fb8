"""Semantic distillation: a codec's codes learn to tell what speech and language models know of the recording.

SpeechTokenizer (arXiv 2308.16692): a speech model teaches the first codebook. DM-Codec (arXiv 2410.15017): so does a
language model, on the transcript of a speech recogniser. Teachers run through transformers, and are no part of the
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from audio.speech_features import HiddenStatesConfig, SpeechFeaturesConfig
from zoo.config import Config
from zoo.losses.distillation import SemanticDistillation, along_features, combined
from zoo.media.storage import write_atomically

RATE, HOP = 16_000, 320  # Hz and samples from frame to frame, of the speech models


class TeacherConfig(Config):
    """Base of the teachers' configs; a field of this type takes any. `level`: the codebook that is taught."""

    teacher: ClassVar[type[Teacher]]
    level: int

    def build(self) -> Teacher:
        return self.teacher(self)


class Teacher:
    """Recordings (B, 1, T) at 16 kHz -> features (B, frames, width), without gradients."""

    width: int

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, signal: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class SpeechTeacherConfig(TeacherConfig):
    """Hidden states of a speech model; the default is HuBERT's mean over its layers, as SpeechTokenizer takes it."""

    kind = "speech"
    features: SpeechFeaturesConfig = HiddenStatesConfig()
    level: int = 0


class SpeechTeacher(Teacher):
    def __init__(self, config: SpeechTeacherConfig) -> None:
        super().__init__(config)
        self.width = config.features.width
        self.features = config.features.build(RATE, HOP)

    def __call__(self, signal: Tensor) -> Tensor:
        return self.features(F.pad(signal, (0, -signal.shape[-1] % HOP)))


SpeechTeacherConfig.teacher = SpeechTeacher


@dataclass(frozen=True)
class LanguageTeacherConfig(TeacherConfig):
    """Hidden states of a language model on the recognised text, which is not aligned with the sound.

    The text's pieces take the first positions, and padding that no piece sees the rest, one for each frame of the
    recogniser: DM-Codec teaches padding too.

    Attributes:
        width: of the hidden states.
        layer: which of them; 0 is the input of the first layer, None the mean of all.
        repo: hub repository or folder of the language model and its tokenizer.
        recogniser: hub repository or folder of a CTC model and its processor.
        level: the codebook that is taught.
    """

    kind = "language"
    width: int = 768
    layer: int | None = None
    repo: str = "bert-base-uncased"
    recogniser: str = "facebook/wav2vec2-base-960h"
    level: int = 0


class LanguageTeacher(Teacher):
    config: LanguageTeacherConfig

    def __init__(self, config: LanguageTeacherConfig) -> None:
        super().__init__(config)
        self.width = config.width
        self._parts: tuple[Any, Any, Any, Any] | None = None

    @torch.no_grad()
    def __call__(self, signal: Tensor) -> Tensor:
        return torch.stack([self._features(item[0]) for item in signal.float()])

    def _features(self, recording: Tensor) -> Tensor:
        text, frames = self.transcribe(recording)
        _, _, tokenizer, model = self._loaded(recording.device)
        pieces = tokenizer(text, padding="max_length", max_length=frames, truncation=True, return_tensors="pt")
        states = model(**pieces.to(recording.device), output_hidden_states=True).hidden_states
        return torch.stack(states).mean(0)[0] if self.config.layer is None else states[self.config.layer][0]

    @torch.no_grad()
    def transcribe(self, recording: Tensor) -> tuple[str, int]:
        """The recognised text of (T,), by the likeliest symbol of each frame, and the number of frames."""
        processor, recogniser, _, _ = self._loaded(recording.device)
        inputs = processor(recording.cpu().numpy(), sampling_rate=RATE, return_tensors="pt").input_values
        symbols = recogniser(inputs.to(recording.device)).logits.argmax(-1)
        return processor.batch_decode(symbols)[0], symbols.shape[1]

    def _loaded(self, device: torch.device) -> tuple[Any, Any, Any, Any]:
        if self._parts is None:
            from transformers import AutoModel, AutoModelForCTC, AutoProcessor, AutoTokenizer

            recogniser, repo = self.config.recogniser, self.config.repo
            self._parts = (
                AutoProcessor.from_pretrained(recogniser),
                AutoModelForCTC.from_pretrained(recogniser).float().eval().requires_grad_(False),
                AutoTokenizer.from_pretrained(repo),
                AutoModel.from_pretrained(repo).float().eval().requires_grad_(False),
            )
        processor, recogniser, tokenizer, model = self._parts
        return processor, recogniser.to(device), tokenizer, model.to(device)


LanguageTeacherConfig.teacher = LanguageTeacher


@dataclass(frozen=True)
class DistillationConfig(Config):
    """What is taught and how; the defaults are SpeechTokenizer's.

    Attributes:
        teachers: all of them.
        weight: of the distillation loss in the generator's.
        weights: of the teachers in their sum; empty for their mean.
        along: "time": -log sigmoid of the cosine of each feature's course; "features": mean absolute difference, and
            -log sigmoid of the cosine of each frame.
        cache: folder in which the features of every recording that was seen are kept; worth it where the same
            segments come again (`fixed` of `AudioFolderData`).
    """

    teachers: tuple[TeacherConfig, ...] = (SpeechTeacherConfig(),)
    weight: float = 120.0
    weights: tuple[float, ...] = ()
    along: Literal["time", "features"] = "time"
    cache: str | None = None

    def __post_init__(self) -> None:
        self.require(len(self.teachers) >= 1, "at least one teacher", self.teachers)
        fits = len(self.weights) in (0, len(self.teachers))
        self.require(fits, f"{len(self.teachers)} weights or none", self.weights)
        self.require(min(teacher.level for teacher in self.teachers) >= 0, "levels >= 0", self.teachers)


class Distillation(nn.Module):
    """The teachers, and a linear map from codes to the features of each, which learns with the codec.

    Args:
        config: what is taught.
        dim: width of the codes.
        sample_rate: of the recordings, in Hz.
    """

    def __init__(self, config: DistillationConfig, dim: int, sample_rate: int) -> None:
        super().__init__()
        self.config, self.sample_rate = config, sample_rate
        self.teachers = [teacher.build() for teacher in config.teachers]  # in a list: their weights are not saved
        self.students = nn.ModuleList(SemanticDistillation(dim, teacher.width) for teacher in self.teachers)

    def forward(self, signal: Tensor, output: zoo.Output, quantizer: nn.Module) -> Tensor:
        """The distillation loss before `weight`: a scalar.

        Args:
            signal: (B, C, T), what the codec took.
            output: of the codec.
            quantizer: the codec's.

        Raises:
            ValueError: a level that this output does not have.
        """
        losses = []
        for teacher, student in zip(self.teachers, self.students, strict=True):
            codes = level_codes(output, quantizer, teacher.config.level)
            features = self.features(teacher, signal)
            if features.shape[1] > codes.shape[1] + 2:  # a codec of fewer frames: each is taught the mean of its time
                features = F.adaptive_avg_pool1d(features.transpose(1, 2), codes.shape[1]).transpose(1, 2)
            if self.config.along == "time":
                losses.append(student(codes, features))
            else:
                losses.append(along_features(student.projection(codes), features))
        return combined(losses, list(self.config.weights) or None)

    @torch.no_grad()
    def features(self, teacher: Teacher, signal: Tensor) -> Tensor:
        """The teacher's features (B, frames, width) of signals (B, C, T), from the cache where they are there."""
        if self.config.cache is None:
            return teacher(self._at_teachers_rate(signal))
        return torch.cat([self._kept(teacher, item[None], Path(self.config.cache)) for item in signal])

    def _kept(self, teacher: Teacher, signal: Tensor, folder: Path) -> Tensor:
        about = json.dumps([teacher.config.to_dict(), self.sample_rate])
        key = hashlib.sha256(about.encode() + signal.float().cpu().numpy().tobytes()).hexdigest()
        file = folder / f"{key}.npy"
        if file.is_file():
            return torch.from_numpy(np.load(file)).to(signal.device)
        features = teacher(self._at_teachers_rate(signal))
        np.save(buffer := BytesIO(), features.cpu().numpy())
        write_atomically(file, buffer.getvalue())
        return features

    def _at_teachers_rate(self, signal: Tensor) -> Tensor:
        """(B, 1, T) at 16 kHz."""
        mono = signal.float().mean(1, keepdim=True)
        if self.sample_rate == RATE:
            return mono
        import soxr

        items = [soxr.resample(item[0].cpu().numpy(), self.sample_rate, RATE, "VHQ") for item in mono]
        return torch.from_numpy(np.stack(items)).to(signal.device)[:, None]


def level_codes(output: zoo.Output, quantizer: Any, level: int) -> Tensor:
    """What one level adds to the codes, (B, T, D), with the gradient passed straight through to the latent.

    Raises:
        ValueError: a level that this output does not have.
    """
    levels = output.quantized.levels
    if level >= len(levels):
        raise ValueError(
            f"distillation: expected level {level} in every step, got {len(levels)} levels; a quantizer dropout needs "
            f"a minimum of {level + 1}"
        )
    codes = quantizer.indices_to_codes(*levels[: level + 1])
    if level > 0:
        codes = codes - quantizer.indices_to_codes(*levels[:level])
    return output.latent + (codes - output.latent).detach()
