"""BrainTokenizer of BrainOmni: EEG or MEG of any sensors to the tokens of a few latent sources, and back.

Paper: arXiv 2505.18185. Original: OpenTSLab/BrainOmni (MIT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio.encodec import CODEBOOK_TRANSFORMS
from audio.speechtokenizer import seanet_keys
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from zoo.layers.transformer import RMSNorm
from zoo.quantizers import (
    EmaCodebookConfig,
    ProjectedConfig,
    Quantized,
    QuantizerConfig,
    ResidualConfig,
    RotationConfig,
    StraightThroughConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer

SENSOR_TYPES = 3  # EEG, and MEG's magnetometers and gradiometers
_WIDTH = 256  # published
_LEAST_DEVIATIONS = (1e-5, 1e-13, 1e-13)  # of the types, added to those of their signals
_LARGEST = 100.0  # of a sample, in the unit of the training data: volts and microvolts taken for each other stand out


@dataclass(frozen=True)
class Sensor(Config):
    """Where a sensor is, which way it looks, and its type, as `placed` takes them."""

    position: tuple[float, float, float]
    direction: tuple[float, float, float]
    type: int = 0

    def __post_init__(self) -> None:
        self.require(0 <= self.type < SENSOR_TYPES, f"a type from 0 to {SENSOR_TYPES - 1}", self.type)


def on_sphere(inclination: float, azimuth: float) -> Sensor:
    """An EEG electrode on the unit sphere, without direction: degrees from the vertex, and from the nose clockwise."""
    up, around = math.radians(inclination), math.radians(azimuth)
    place = tuple(
        round(value, 4) for value in (math.sin(up) * math.sin(around), math.sin(up) * math.cos(around), math.cos(up))
    )
    return Sensor(place, (0.0, 0.0, 0.0))  # type: ignore[arg-type]


TEN_TWENTY = tuple(  # Fp1 Fp2 F7 F3 Fz F4 F8 T7 C3 Cz C4 T8 P7 P3 Pz P4 P8 O1 O2, on an ideal head
    on_sphere(inclination, azimuth)
    for inclination, azimuth in (
        (72, -18), (72, 18), (72, -54), (49, -40), (36, 0), (49, 40), (72, 54), (72, -90), (36, -90), (0, 0),
        (36, 90), (72, 90), (72, -126), (49, -140), (36, 180), (49, 140), (72, 126), (72, -162), (72, 162),
    )
)  # fmt: skip


def codebooks(size: int, dim: int, width: int, count: int, rotation: bool = True) -> ResidualConfig:
    """Residual codebooks trained by the rotation trick, or straight through, each between projections where their
    width is another."""
    codebook = EmaCodebookConfig(start="kmeans", kmeans_iterations=10, smoothing=1e-6, revive_below=2.0)
    vector = VectorConfig(
        size, dim, codebook=codebook, gradient=RotationConfig() if rotation else StraightThroughConfig()
    )
    return ResidualConfig(vector if dim == width else ProjectedConfig(width, vector), count, gradient="per_level")


@dataclass(frozen=True)
class BrainOmniConfig(Config):
    """Sizes of the network; the defaults are those of the published model."""

    sensors: tuple[Sensor, ...] = TEN_TWENTY  # of the signals that `encode` takes and `decode` gives; no weights
    sample_rate: int = 256
    window: int = 512  # samples that are coded at a time
    network: SEANetConfig = SEANetConfig(strides=(2, 4, 8), kernel_size=5, last_kernel_size=5, causal=False)
    width: int = _WIDTH
    sources: int = 16  # latent channels, whatever the number of sensors
    heads: int = 4
    quantizer: QuantizerConfig = codebooks(512, _WIDTH, _WIDTH, 4)

    def __post_init__(self) -> None:
        self.require(len(self.sensors) >= 1, "at least one sensor", self.sensors)
        hop = self.network.hop_length
        self.require(self.window % hop == 0 and self.window > 0, f"a window in multiples of {hop}", self.window)
        self.require(self.width % self.heads == 0 and self.width % 2 == 0, "an even width, in whole heads", self.width)
        self.require(self.sources >= 1, "sources >= 1", self.sources)


@register("brainomni")
class BrainOmni(Tokenizer):
    """EEG or MEG (B, sensors, T) of 0.1 to 96 Hz, at 256 Hz, as `scaled` gives it -> tokens of the latent sources.

    Positions are frames x sources, all sources of a frame together (`by_source` separates them). Windows are coded
    independently of each other; the last is filled up with zeros. The montage is `config.sensors`; other sensors, or
    other ones for each item, go into `latent` and `reconstruct` as tensors.
    """

    layout = "frames"
    config: BrainOmniConfig

    def __init__(self, config: BrainOmniConfig) -> None:
        spec = InputSpec(
            "audio", len(config.sensors), (-_LARGEST, _LARGEST), multiple=config.window, sample_rate=config.sample_rate
        )
        super().__init__(config, spec, config.quantizer)
        width, dim = config.width, config.quantizer.dim
        self.sensor_embedding = SensorEmbedding(width)
        self.encoder = SEANetEncoder(config.network, width)
        self.sources = nn.Parameter(torch.randn(config.sources, width))
        self.to_key, self.to_value = nn.Linear(width, width), nn.Linear(width, width)
        self.gather = nn.Linear(width, width)
        self.to_latent = nn.Identity() if dim == width else nn.Linear(width, dim)
        self.from_codes = nn.Identity() if dim == width else nn.Linear(dim, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.spread = nn.Linear(width, width)
        self.decoder = SEANetDecoder(config.network, width)
        self.register_constant("places", _places, config.sensors)
        self.register_constant("types", torch.tensor, [[sensor.type for sensor in config.sensors]])
        self._initialise()

    places: Tensor
    types: Tensor

    def _initialise(self) -> None:
        """Normal weights, of deviation 0.02 at the published width, and no biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02 * (_WIDTH / self.config.width) ** 0.5)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (size[0] // self.config.network.hop_length * self.config.sources,)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.spec.padding((x.shape[-1],))[0]))

    def latent(self, x: Tensor, places: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Signals (B, C, T) of whole windows -> unit vectors (B, frames * sources, D).

        Args:
            places: (B or 1, C, 6) position and direction of each sensor, see `placed`; None: those of the config.
            types: (B or 1, C) its type.
        """
        return self.to_latent(F.normalize(self.source_features(x, places, types), dim=-1)).flatten(1, 2)

    def source_features(self, x: Tensor, places: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """What the sources gather from the sensors (B, frames, sources, width); arguments as `latent`."""
        features = self.encoder(x.reshape(-1, 1, self.config.window))  # each window and channel alone
        features = features.reshape(*x.shape[:2], -1, *features.shape[1:])  # (B, C, windows, width, frames of one)
        features = features.permute(0, 2, 4, 1, 3).flatten(1, 2)  # (B, frames, C, width)
        sensors = self._sensors(places, types)[:, None]
        keys, values = self.to_key(features + sensors), self.to_value(features)
        queries = self.sources.expand(*features.shape[:2], -1, -1)
        return self.gather(self._attend(queries, keys, values))

    def reconstruct(self, codes: Tensor, places: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Code vectors (B, frames * sources, D) -> signals of the sensors (B, C, T); arguments as `latent`."""
        config = self.config
        codes = self.from_codes(codes).unflatten(1, (-1, config.sources))  # (B, frames, sources, width)
        keys, values = self.to_key_value(codes).chunk(2, dim=-1)
        sensors = self._sensors(places, types).to(codes.dtype)
        queries = sensors[:, None].expand(codes.shape[0], codes.shape[1], -1, -1)
        features = self.spread(self._attend(queries, keys, values)).permute(0, 2, 3, 1)  # (B, C, width, frames)
        features = features.unflatten(-1, (-1, config.window // config.network.hop_length)).movedim(-2, 2)
        return self.decoder(features.flatten(0, 2)).reshape(*features.shape[:2], -1)

    def _sensors(self, places: Tensor | None, types: Tensor | None) -> Tensor:
        """(B or 1, C, width)."""
        return self.sensor_embedding(
            (self.places if places is None else places).to(self.dtype), self.types if types is None else types
        )

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(..., N, width) each, in the config's heads."""
        heads = [x.unflatten(-1, (self.config.heads, -1)).transpose(-2, -3) for x in (queries, keys, values)]
        return F.scaled_dot_product_attention(*heads).transpose(-2, -3).flatten(-2)

    def by_source(self, positions: Tensor, axis: int = -1) -> Tensor:
        """An axis of frames x sources of indices, latents or codes as two axes: sources, frames."""
        axis %= positions.ndim
        return positions.unflatten(axis, (-1, self.config.sources)).transpose(axis, axis + 1)


class SensorEmbedding(nn.Module):
    """Position and direction (B, C, 6) and type (B, C) of sensors -> (B, C, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sensor_type = nn.Embedding(SENSOR_TYPES, width)
        self.place = nn.Sequential(nn.Linear(6, width // 2), nn.SELU(), nn.Linear(width // 2, width))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SELU(), nn.Linear(4 * width, width))
        self.norm = RMSNorm(width, eps=1e-6)

    def forward(self, places: Tensor, types: Tensor) -> Tensor:
        x = self.sensor_type(types) + self.place(places)
        return self.norm(x + self.mlp(x))


def _places(sensors: tuple[Sensor, ...]) -> Tensor:
    """(1, C, 6)."""
    positions, directions = (torch.tensor([getattr(s, name) for s in sensors]) for name in ("position", "direction"))
    return placed(positions, directions, torch.tensor([sensor.type for sensor in sensors]))[None]


def placed(positions: Tensor, directions: Tensor, types: Tensor) -> Tensor:
    """Sensors as the model takes them: EEG and MEG each about the middle of its own sensors, at a mean square distance
    of 1/3 from it; directions of MEG alone.

    Args:
        positions: (C, 3) in any unit, x to the right, y to the nose, z up.
        directions: (C, 3), of length 1: of a magnetometer or an axial gradiometer the way that its coils look, of a
            planar one the way that it measures the slope along.
        types: (C,) 0 for EEG, 1 for magnetometers, 2 for gradiometers.

    Returns:
        (C, 6) positions and directions.
    """
    places = torch.cat([positions, torch.where(types[:, None] == 0, 0.0, directions)], dim=1).float()
    for kind in (types == 0, types != 0):
        if kind.any():
            centred = places[kind, :3] - places[kind, :3].mean(0)
            size = (3 * centred.square().sum(1).mean()).sqrt()
            places[kind, :3] = centred / torch.where(size > 0, size, 1)  # a sensor alone stands in the middle
    return places


def scaled(signals: Tensor, types: Tensor) -> Tensor:
    """A segment of a recording as the model takes it: of each type of sensor, without the mean of its sensors at each
    moment, and divided by the deviation of all of them together.

    Args:
        signals: (C, T) in V (EEG), T (magnetometers) and T/m (gradiometers).
        types: (C,) as for `placed`.
    """
    result = signals.clone()
    for kind, least in enumerate(_LEAST_DEVIATIONS):
        if (chosen := types == kind).any():
            centred = signals[chosen] - signals[chosen].mean(0)
            result[chosen] = centred / (centred.std(correction=0) + least)
    return result


def config_from_original(meta: dict[str, Any]) -> BrainOmniConfig:
    """The config of the original's constructor arguments, which say nothing of the sensors.

    Raises:
        ValueError: codebooks that do not follow running averages.
    """
    kwargs = meta["original"]["kwargs"]
    if (method := kwargs.get("quantize_optimize_method", "ema")) != "ema":
        raise ValueError(f"expected quantize_optimize_method ema, got {method}")
    network = SEANetConfig(
        filters=kwargs["n_filters"],
        strides=tuple(reversed(kwargs["ratios"])),
        kernel_size=kwargs["kernel_size"],
        last_kernel_size=kwargs["last_kernel_size"],
        causal=False,
    )
    width = kwargs["n_dim"]
    return BrainOmniConfig(
        window=kwargs["window_length"],
        network=network,
        width=width,
        sources=kwargs["n_neuro"],
        heads=kwargs["n_head"],
        quantizer=codebooks(
            kwargs["codebook_size"], kwargs["codebook_dim"], width, kwargs["num_quantizers"],
            kwargs.get("rotation_trick", True),
        ),
    )  # fmt: skip


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """A quarter of the mean of the levels' commitment losses."""
    return {"loss.commit": 0.25 * quantized.losses["commitment"]}


def in_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The codebooks named as those of levels between projections, where there are any."""
    if not any(".project_in." in key for key in state):
        return state
    parts = (".codebook.", ".ema.")
    renamed = {}
    for key, value in state.items():
        part = next((part for part in parts if key.startswith("quantizer.") and part in key), None)
        renamed[key.replace(part, f".inner{part}") if part else key] = value
    return renamed


_LEVEL = "quantizer.rvq.layers.{}"

KEY_MAP = KeyMap(
    {
        "sensor_embed.sensor_embedding_layer.weight": "sensor_embedding.sensor_type.weight",
        "sensor_embed.pos_embedding_layer.{}.*": "sensor_embedding.place.{}.*",
        "sensor_embed.aggregate_mlp.layer.{}.*": "sensor_embedding.mlp.{}.*",
        "sensor_embed.norm.weight": "sensor_embedding.norm.weight",
        **seanet_keys("encoder.seanet_encoder.model", "encoder.layers"),
        "encoder.neuros": "sources",
        "encoder.k_proj.*": "to_key.*",
        "encoder.backwardsolution.v.*": "to_value.*",
        "encoder.backwardsolution.proj.*": "gather.*",
        f"{_LEVEL}._codebook.inited": "quantizer.levels.{}.codebook.started",
        f"{_LEVEL}._codebook.cluster_size": "quantizer.levels.{}.ema.count",
        f"{_LEVEL}._codebook.embed": "quantizer.levels.{}.codebook.weight",
        f"{_LEVEL}._codebook.embed_avg": "quantizer.levels.{}.ema.total",
        f"{_LEVEL}.project_in.*": "quantizer.levels.{}.project_in.*",
        f"{_LEVEL}.project_out.*": "quantizer.levels.{}.project_out.*",
        "decoder.forwardsolution.kv.*": "to_key_value.*",
        "decoder.forwardsolution.proj.*": "spread.*",
        **seanet_keys("decoder.seanet_decoder.model", "decoder.layers"),
    },
    weight_norm=True,
    transforms=CODEBOOK_TRANSFORMS,
    finish=in_projections,
)
