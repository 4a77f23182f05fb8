"""Discrete speech units: features of a self-supervised speech model, the nearest k-means centre, runs made one unit.

HuBERT, arXiv 2106.07447; units for language models: DiscreteSLU, arXiv 2406.09345. The conventions are those of
fairseq's simple_kmeans (MIT) and ESPnet's asr2 recipe (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from audio.speech_features import HiddenStatesConfig, SpeechFeaturesConfig
from zoo.cards import Metric, ModelCard
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.ops import kmeans, nearest_code
from zoo.quantizers import FrozenCodebookConfig, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens

FIRST_CHARACTER = 0x4E00  # of unit 0 in text; the block has 20,992
_MOST_CHARACTERS = 20_992


def centres(count: int, dim: int) -> VectorConfig:
    """The quantizer of units: k-means centres, which training leaves alone."""
    return VectorConfig(count, dim, codebook=FrozenCodebookConfig())


@dataclass(frozen=True)
class DSUConfig(Config):
    """Which features, and how many units; the default layer and number are common ones for HuBERT base."""

    features: SpeechFeaturesConfig = HiddenStatesConfig(layer=9)
    sample_rate: int = 16_000
    hop_length: int = 320
    quantizer: QuantizerConfig = centres(500, 768)

    def __post_init__(self) -> None:
        self.require(min(self.sample_rate, self.hop_length) >= 1, "a sample_rate and hop_length >= 1", self.hop_length)
        fits = self.quantizer.dim == self.features.width
        self.require(fits, f"a quantizer of the features' width {self.features.width}", self.quantizer.dim)


@register("dsu")
class DSU(Tokenizer):
    """Speech (B, 1, T) in [-1, 1] -> frames of one unit (B, 1, frames); a frame of HuBERT or WavLM needs 400 samples.

    Units have no decoder: `codes` gives their centres, `runs` the units with repetitions made one, which a vocoder or a
    language model takes. The speech model is read when it is first needed, and every clip is run by itself.
    """

    layout = "frames"
    has_decoder = False
    config: DSUConfig

    def __init__(self, config: DSUConfig) -> None:
        super().__init__(config, InputSpec("audio", 1, (-1.0, 1.0), sample_rate=config.sample_rate), config.quantizer)
        self.features = config.features.build(config.sample_rate, config.hop_length)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.features.frames(size[0]),)

    @property
    def bitrates(self) -> tuple[float, ...]:
        rate = self.config.sample_rate / self.config.hop_length
        bits = [(size - 1).bit_length() for size in self.vocab_sizes]
        return tuple(sum(bits[:count]) * rate for count in range(1, len(bits) + 1))

    def latent(self, x: Tensor) -> Tensor:
        if self.features.frames(x.shape[-1]) < 1:
            raise ValueError(f"expected at least {self.features.least} samples for one unit, got {x.shape[-1]}")
        return self.features(x)

    def runs(self, tokens: Tokens) -> list[Runs]:
        """The units of each item with repetitions made one.

        Raises:
            ValueError: tokens of another model, or of several levels.
        """
        self._check_tokens(tokens)
        if len(tokens.levels) != 1:
            raise ValueError(f"expected one unit a frame, got {len(tokens.levels)}")
        lengths = [tokens.levels[0].shape[1]] * len(tokens) if tokens.lengths is None else tokens.lengths.tolist()
        return [Runs.of(units[:length]) for units, length in zip(tokens.levels[0], lengths)]


@dataclass(frozen=True)
class Runs:
    """Units of a clip with repetitions made one: each unit (N,), its frames (N,), and its first frame (N,), int64."""

    units: Tensor
    durations: Tensor
    starts: Tensor

    @staticmethod
    def of(units: Tensor) -> Runs:
        """The runs of the units (frames,) of one clip."""
        kept, durations = torch.unique_consecutive(units, return_counts=True)
        return Runs(kept, durations, durations.cumsum(0) - durations)

    def expand(self) -> Tensor:
        """The units of all frames again."""
        return self.units.repeat_interleave(self.durations)

    def text(self) -> str:
        """One character a unit, from U+4E00 on, for tokenizers of text (ESPnet's form); `units_of` reads it.

        Raises:
            ValueError: a unit beyond the 20,992 characters of the block.
        """
        if len(self.units) and int(self.units.max()) >= _MOST_CHARACTERS:
            raise ValueError(f"expected units below {_MOST_CHARACTERS}, got {int(self.units.max())}")
        return "".join(chr(FIRST_CHARACTER + unit) for unit in self.units.tolist())


def units_of(text: str) -> Tensor:
    """The units (N,) of `Runs.text`.

    Raises:
        ValueError: a character that stands for no unit.
    """
    units = [ord(character) - FIRST_CHARACTER for character in text]
    if wrong := [character for character, unit in zip(text, units) if not 0 <= unit < _MOST_CHARACTERS]:
        raise ValueError(f"expected characters from U+4E00 to U+9FFF, got {wrong[0]!r}")
    return torch.tensor(units, dtype=torch.int64)


def of_centres(config: DSUConfig, values: Tensor) -> DSU:
    """A model from centres (K, width) found elsewhere: `cluster_centers_` of scikit-learn, an array of a .npy file.

    Raises:
        ValueError: centres of another width than the features.
    """
    if values.ndim != 2 or values.shape[1] != config.features.width:
        raise ValueError(f"expected centres (units, {config.features.width}), got {tuple(values.shape)}")
    model = DSU(config.replace(quantizer=centres(len(values), config.features.width))).eval()
    model.load_state_dict({"quantizer.codebook.weight": values.float()})
    return model


def fit(
    config: DSUConfig,
    clips: Iterable[Tensor],
    *,
    iterations: int = 100,
    seed: int = 0,
    most_frames: int = 200_000,
    corpus: str = "",
) -> DSU:
    """Units fitted to clips by k-means (k-means++, then Lloyd's rounds) on a sample of their frames.

    Args:
        config: features and number of units.
        clips: signals (1, T) in [-1, 1] at `config.sample_rate`; those too short for a frame are left out.
        iterations: rounds at most; they end once no frame changes its unit.
        seed: of the sample of frames and of the start; the same seed and clips give the same units.
        most_frames: of the sample, which is uniform over all frames and bounds the memory.
        corpus: what the clips are, for the model's card.

    Returns:
        The model, whose card tells how it was fitted and the mean squared distance of the sample to its units.

    Raises:
        ValueError: fewer frames than units.
    """
    features = config.features.build(config.sample_rate, config.hop_length)
    generator = torch.Generator().manual_seed(seed)
    kept, ranks, total = torch.zeros(0, config.features.width), torch.zeros(0, dtype=torch.float64), 0
    for clip in clips:
        if features.frames(clip.shape[-1]) < 1:
            continue
        found = features(clip[None])[0].cpu()
        total += len(found)
        kept = torch.cat([kept, found])
        ranks = torch.cat([ranks, torch.rand(len(found), dtype=torch.float64, generator=generator)])
        if len(kept) > 2 * most_frames:  # the frames of the highest ranks are a uniform sample of all so far
            kept, ranks = _highest(kept, ranks, most_frames)
    kept, ranks = _highest(kept, ranks, most_frames)
    count = config.quantizer.vocab_sizes[0]
    if len(kept) < count:
        raise ValueError(f"expected at least {count} frames for {count} units, got {len(kept)}")
    found_centres, _ = kmeans(kept, count, iterations=iterations, generator=generator, init="k-means++")
    model = of_centres(config, found_centres)
    distance = mean_squared_distance(kept, found_centres)
    protocol = f"mean over {len(kept)} frames of {corpus or 'the clips'}, on which the units were fitted"
    model.name = "dsu.fitted"
    model.card = ModelCard(
        "dsu", "fitted", "dsu", __name__, **model.described(),
        metrics=(Metric("squared distance", distance, protocol),),
        notes=f"k-means++ and at most {iterations} rounds, seed {seed}, {len(kept)} of {total} frames of {corpus}",
    )  # fmt: skip
    return model


def _highest(kept: Tensor, ranks: Tensor, most: int) -> tuple[Tensor, Tensor]:
    chosen = ranks.argsort(descending=True, stable=True)[:most].sort().values
    return kept[chosen], ranks[chosen]


def mean_squared_distance(features: Tensor, values: Tensor) -> float:
    """Of features (N, D) to the nearest of the centres (K, D)."""
    nearest = values[nearest_code(features, values)]
    return float((features - nearest).double().square().sum(-1).mean())


KEY_MAP = KeyMap({"centers": "quantizer.codebook.weight", "model.*": None})  # the encoder, as it was published
