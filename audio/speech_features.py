"""Features of a signal that a codec with a semantic branch takes beside the waveform: of a published speech model.

w2v-BERT 2.0 (SeamlessM4T, arXiv 2308.11596) runs through transformers. It is no part of the codec's weights: the
published codecs use it as it was published.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import Config
from zoo.losses.mel import MelConfig, MelSpectrogram

logger = logging.getLogger(__name__)


class SpeechFeaturesConfig(Config):
    """Base of the features' configs; a config field of this type takes any. `width`: of a frame's features."""

    features: ClassVar[type[SpeechFeatures]]
    width: int

    def build(self, sample_rate: int, hop_length: int) -> SpeechFeatures:
        """The features of signals at a sample rate in Hz, one frame for each `hop_length` samples."""
        return self.features(self, sample_rate, hop_length)


class SpeechFeatures:
    """Signals (B, 1, T), T a multiple of the hop length -> features (B, T / hop length, width), without gradients."""

    def __init__(self, config: Any, sample_rate: int, hop_length: int) -> None:
        self.config, self.sample_rate, self.hop_length = config, sample_rate, hop_length

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        frames = x.shape[-1] // self.hop_length
        features = self.compute(x.float())
        if features.shape[1] != frames:
            raise ValueError(f"expected {frames} frames of features, got {features.shape[1]}")
        return features.to(x.dtype)

    def compute(self, x: Tensor) -> Tensor:
        """Float32 signals -> features."""
        raise NotImplementedError


@dataclass(frozen=True)
class Wav2Vec2BertConfig(SpeechFeaturesConfig):
    """A hidden state of w2v-BERT 2.0, 50 frames a second at 16 kHz.

    Attributes:
        width: of the hidden states.
        layer: which of them; 0 is the input of the first layer.
        repo: hub repository or folder of the model, which is read when it is first needed.
    """

    kind = "w2v_bert"
    width: int = 1024
    layer: int = 16
    repo: str = "facebook/w2v-bert-2.0"


class Wav2Vec2BertFeatures(SpeechFeatures):
    """Every item is normalised and run by itself, so that none depends on its batch."""

    config: Wav2Vec2BertConfig
    rate, stride, frame = 16_000, 320, 400  # Hz; samples from one frame to the next, and of the first filter bank's

    def __init__(self, config: Wav2Vec2BertConfig, sample_rate: int, hop_length: int) -> None:
        if (sample_rate, hop_length) != (self.rate, self.stride):
            raise ValueError(
                f"w2v-BERT gives a frame each {self.stride} samples at {self.rate} Hz; expected a codec of these, got "
                f"{hop_length} at {sample_rate} Hz"
            )
        super().__init__(config, sample_rate, hop_length)
        self._model: Any = None
        self._extractor: Any = None

    def compute(self, x: Tensor) -> Tensor:
        model = self._loaded(x.device)
        padded = F.pad(x[:, 0], (self.stride // 2, self.stride // 2))
        return torch.cat([self._item(model, signal) for signal in padded])

    def _item(self, model: Any, signal: Tensor) -> Tensor:
        inputs = self._extractor(signal.cpu().numpy(), sampling_rate=self.rate, return_tensors="pt")
        hidden = model(inputs.input_features.to(signal.device), output_hidden_states=True).hidden_states
        return hidden[self.config.layer]

    def _loaded(self, device: torch.device) -> Any:
        if self._model is None:
            from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel

            logger.info("reading %s for the semantic features", self.config.repo)
            self._extractor = SeamlessM4TFeatureExtractor()
            try:
                model = Wav2Vec2BertModel.from_pretrained(self.config.repo, dtype=torch.float32).eval()
            except OSError as error:
                raise OSError(
                    f"{self.config.repo}: this speech model, whose features the codec encodes, cannot be read; "
                    f"decoding works without it ({error})"
                ) from error
            model.encoder.layers = model.encoder.layers[: max(1, self.config.layer)]  # the later ones are not needed
            self._model = model.requires_grad_(False)
        return self._model.to(device)


Wav2Vec2BertConfig.features = Wav2Vec2BertFeatures


@dataclass(frozen=True)
class MelFeaturesConfig(SpeechFeaturesConfig):
    """Logarithmic mel bands instead of a speech model: a codec that needs no other network, of any rate and hop."""

    kind = "mel"
    width: int = 80


class MelFeatures(SpeechFeatures):
    """One frame of 4 hops around each hop."""

    config: MelFeaturesConfig

    def compute(self, x: Tensor) -> Tensor:
        hop = self.hop_length
        config = MelConfig(self.sample_rate, 4 * hop, hop, self.config.width)
        spectrogram = MelSpectrogram(config).to(x.device)
        padded = F.pad(x, (2 * hop, 2 * hop))  # zeros, as a short signal cannot be reflected
        mel = spectrogram(padded)[:, 0, :, 2 : 2 + x.shape[-1] // hop]
        return mel.clamp_min(1e-5).log().transpose(1, 2)


MelFeaturesConfig.features = MelFeatures
