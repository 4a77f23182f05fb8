"""Features of a signal from a published self-supervised speech model, for units and codecs with a semantic branch.

HuBERT (arXiv 2106.07447), WavLM (arXiv 2110.13900), wav2vec 2.0 (arXiv 2006.11477) and w2v-BERT 2.0 (arXiv 2308.11596)
run through transformers. They are no part of a model's weights: the codecs use them as they were published.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
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
    """Signals (B, 1, T), T a multiple of the hop length -> features (B, frames, width), without gradients."""

    least = 1  # samples that a frame needs

    def __init__(self, config: Any, sample_rate: int, hop_length: int) -> None:
        self.config, self.sample_rate, self.hop_length = config, sample_rate, hop_length

    def frames(self, samples: int) -> int:
        """Frames of so many samples: one for each `hop_length`."""
        return samples // self.hop_length

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        if x.is_meta:  # a trace of how far outputs see, for which no speech model is to be read
            raise ValueError("expected samples with data, got some of the meta device: features of speech may see all")
        frames = self.frames(x.shape[-1])
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

    def compute(self, x: Tensor) -> Tensor:
        model, layer = self.network.to(x.device), self.config.layer
        inputs = filter_banks(x).split(1)
        return torch.cat([model(item, output_hidden_states=True).hidden_states[layer] for item in inputs])

    @property
    def network(self) -> Any:
        """The speech model, a model of transformers, which is read when it is first needed."""
        if self._model is None:
            from transformers import Wav2Vec2BertModel

            logger.info("reading %s for the semantic features", self.config.repo)
            self.use(_published(Wav2Vec2BertModel, self.config.repo).float())
        return self._model

    def use(self, model: Any) -> None:
        """Take the features of this model of transformers instead of reading the published one."""
        model.encoder.layers = model.encoder.layers[: max(1, self.config.layer)]  # the later ones are not needed
        model.config.num_hidden_layers = len(model.encoder.layers)
        self._model = model.eval().requires_grad_(False)


Wav2Vec2BertConfig.features = Wav2Vec2BertFeatures


def filter_banks(x: Tensor) -> Tensor:
    """Signals (B, 1, T) at 16 kHz -> what w2v-BERT takes, (B, T / 320, 160); each is normalised by itself."""
    half = Wav2Vec2BertFeatures.stride // 2
    clips = F.pad(x[:, 0], (half, half)).cpu().numpy()
    options = {"sampling_rate": Wav2Vec2BertFeatures.rate, "return_tensors": "pt"}
    return torch.cat([_filter_bank()(clip, **options).input_features for clip in clips]).to(x.device)


@cache
def _filter_bank() -> Any:
    from transformers import SeamlessM4TFeatureExtractor

    return SeamlessM4TFeatureExtractor()


@dataclass(frozen=True)
class HiddenStatesConfig(SpeechFeaturesConfig):
    """A hidden state of HuBERT, WavLM or wav2vec 2.0, 50 frames a second at 16 kHz.

    Attributes:
        width: of the hidden states.
        layer: which of them; 0 is the input of the first transformer layer, i the output of layer i; None is the mean
            of all.
        normalize: bring each clip to mean 0 and variance 1 first, as the model's own feature extractor states. The
            wrong choice changes the features.
        padding: zeros before and after each clip. 160 of them give a frame for each hop; without them a frame needs
            400 samples.
        repo: hub repository or folder of the model, which is read when it is first needed.
    """

    kind = "hidden_states"
    width: int = 768
    layer: int | None = None
    normalize: bool = False
    padding: int = 0
    repo: str = "facebook/hubert-base-ls960"

    def __post_init__(self) -> None:
        self.require(self.layer is None or self.layer >= 0, "a layer from 0, or None", self.layer)
        self.require(self.padding >= 0, "a padding >= 0", self.padding)


class HiddenStates(SpeechFeatures):
    """Every clip is run by itself, so that none depends on its batch (HuBERT base normalises over the whole clip)."""

    config: HiddenStatesConfig
    rate, stride, frame = 16_000, 320, 400  # Hz; samples from one frame to the next, and that a frame sees

    def __init__(self, config: HiddenStatesConfig, sample_rate: int, hop_length: int) -> None:
        if (sample_rate, hop_length) != (self.rate, self.stride):
            raise ValueError(
                f"the speech models give a frame each {self.stride} samples at {self.rate} Hz; expected a model of "
                f"these, got {hop_length} at {sample_rate} Hz"
            )
        super().__init__(config, sample_rate, hop_length)
        self.least = max(1, self.frame - 2 * config.padding)
        self._model: Any = None

    def frames(self, samples: int) -> int:
        return max(0, (samples + 2 * self.config.padding - self.frame) // self.stride + 1)

    def compute(self, x: Tensor) -> Tensor:
        model = self.network.to(x.device)
        return torch.cat([self.mixed(hidden_states(model, self.prepared(item)[None])) for item in x[:, 0]])

    @property
    def network(self) -> Any:
        """The speech model, a model of transformers, which is read when it is first needed."""
        if self._model is None:
            from transformers import AutoModel

            logger.info("reading %s for the features of speech", self.config.repo)
            self.use(_published(AutoModel, self.config.repo).float())
        return self._model

    def use(self, model: Any) -> None:
        """Take the features of this model of transformers instead of reading the published one."""
        layer = self.config.layer
        count = len(model.encoder.layers)
        if layer is not None and layer > count:
            raise ValueError(f"expected a layer from 0 to {count}, got {layer}")
        if layer is not None:
            model.encoder.layers = model.encoder.layers[: max(1, layer)]  # the later ones are not needed
        self._model = model.eval().requires_grad_(False)

    def prepared(self, clip: Tensor) -> Tensor:
        """A clip (T,) as the model takes it."""
        if self.config.normalize:
            clip = (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt()
        return F.pad(clip, (self.config.padding, self.config.padding))

    def mixed(self, states: list[Tensor]) -> Tensor:
        """The hidden states -> the features that the config asks for."""
        layer = self.config.layer
        return torch.stack(states).mean(0) if layer is None else states[layer]


HiddenStatesConfig.features = HiddenStates


def hidden_states(model: Any, clips: Tensor) -> list[Tensor]:
    """The input of a speech model's first transformer layer and the output of each, (B, frames, width), for (B, T).

    They are taken where they arise: what transformers calls the last hidden state differs between its releases for
    models that normalise at the end.
    """
    states: list[Tensor] = []

    def before(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        states.append(inputs[0] if inputs else named["hidden_states"])

    def after(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    layers = model.encoder.layers
    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        model(clips)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def width_of(repo: str) -> int:
    """Width of the hidden states of a published speech model, whose config alone is read.

    Raises:
        OSError: a model that cannot be had.
    """
    from transformers import AutoConfig

    return int(_published(AutoConfig, repo).hidden_size)


def _published(kind: Any, repo: str) -> Any:
    try:
        return kind.from_pretrained(repo)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{repo}: this speech model, whose features are encoded, cannot be read; decoding works without it "
            f"({error})"
        ) from error


@dataclass(frozen=True)
class MelFeaturesConfig(SpeechFeaturesConfig):
    """Logarithmic mel bands instead of a speech model: a codec that needs no other network, of any rate and hop."""

    kind = "mel"
    width: int = 80


class MelFeatures(SpeechFeatures):
    """One frame of 4 hops around each hop."""

    config: MelFeaturesConfig

    def __init__(self, config: Any, sample_rate: int, hop_length: int) -> None:
        super().__init__(config, sample_rate, hop_length)
        with torch.device("cpu"):  # also where the codec starts without data
            self._spectrogram = MelSpectrogram(MelConfig(sample_rate, 4 * hop_length, hop_length, config.width))

    def compute(self, x: Tensor) -> Tensor:
        hop, spectrogram = self.hop_length, self._spectrogram.to(x.device)
        padded = F.pad(x, (2 * hop, 2 * hop))  # zeros, as a short signal cannot be reflected
        mel = spectrogram(padded)[:, 0, :, 2 : 2 + x.shape[-1] // hop]
        return mel.clamp_min(1e-5).log().transpose(1, 2)


MelFeaturesConfig.features = MelFeatures
