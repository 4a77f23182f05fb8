"""EnCodec: a convolutional and recurrent codec with residual vector quantisation; 24 kHz causal, 48 kHz in segments.

Paper: arXiv 2210.13438. Original: facebookresearch/encodec (MIT), and audiocraft for the 32 kHz model of MusicGen;
files of transformers' EncodecModel load too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoint import KeyMap
from zoo.config import Config, require_arguments
from zoo.interop.transformers import TransformersLayout, codec_extractor
from zoo.layers.seanet import (
    SEANET_KEYS,
    SEANetConfig,
    SEANetDecoder,
    SEANetEncoder,
    seanet_from_transformers,
    seanet_to_transformers,
)
from zoo.layers.streaming import stream_of
from zoo.quantizers import EmaCodebookConfig, Quantized, QuantizerConfig, ResidualConfig, VectorConfig
from zoo.registry import register
from zoo.streaming import CodecStream
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Extent, Tokens


def residual_codebooks(size: int, dim: int, count: int, decay: float = 0.99, revive_below: float = 2) -> ResidualConfig:
    """EnCodec's quantizer. Gradients pass through the levels and what they leave over, as the models were trained."""
    codebook = EmaCodebookConfig(start="kmeans", kmeans_iterations=50, decay=decay, revive_below=float(revive_below))
    return ResidualConfig(VectorConfig(size, dim, codebook=codebook), num_levels=count, gradient="through")


@dataclass(frozen=True)
class EncodecConfig(Config):
    """Sizes of the network; the defaults are those of the published 24 kHz model."""

    sample_rate: int = 24000
    seanet: SEANetConfig = SEANetConfig()
    normalize: bool = False  # divide the signal, or each segment, by its loudness, which is kept beside the tokens
    segment: float | None = None  # seconds that are coded at a time
    overlap: float = 0.01  # share of a segment that the next one repeats
    quantizer: QuantizerConfig = residual_codebooks(1024, 128, 32)

    def __post_init__(self) -> None:
        self.require(self.sample_rate >= 1, "sample_rate >= 1", self.sample_rate)
        self.require(0 <= self.overlap < 1, "an overlap in [0, 1)", self.overlap)
        samples = self.segment_samples
        self.require(samples is None or samples >= self.seanet.hop_length, "segments of a frame or more", self.segment)

    @property
    def segment_samples(self) -> int | None:
        return None if self.segment is None else int(self.segment * self.sample_rate)

    @property
    def segment_stride(self) -> int | None:
        """Samples from the start of one segment to that of the next."""
        samples = self.segment_samples
        return None if samples is None else max(1, int((1 - self.overlap) * samples))

    def segments(self, samples: int) -> list[tuple[int, int]]:
        """Start and length of each segment of a signal."""
        length, stride = self.segment_samples, self.segment_stride
        if length is None or stride is None:
            return [(0, samples)]
        return [(start, min(length, samples - start)) for start in range(0, samples, stride)]

    def frames(self, samples: int) -> list[int]:
        """Frames of each segment of a signal."""
        return [-(-length // self.seanet.hop_length) for _, length in self.segments(samples)]


@register("encodec")
class Encodec(Tokenizer):
    """Audio (B, C, T) in [-1, 1] of any length -> frames of tokens, one in `hop_length` samples, or so many a segment.

    The causal models stream (`streaming`). Models that normalise keep the loudness of each segment as
    `tokens.extent.gains`; tokens without it decode at loudness 1.
    """

    layout = "frames"
    config: EncodecConfig

    def __init__(self, config: EncodecConfig) -> None:
        whole = config.segment is None
        spec = InputSpec(
            "audio", config.seanet.channels, (-1.0, 1.0), multiple=config.seanet.hop_length if whole else 1,
            sample_rate=config.sample_rate, causal=config.seanet.causal and whole and not config.normalize,
        )  # fmt: skip
        super().__init__(config, spec, config.quantizer)
        self.encoder = SEANetEncoder(config.seanet, config.quantizer.dim)
        self.decoder = SEANetDecoder(config.seanet, config.quantizer.dim)

    def pad(self, x: Tensor) -> Tensor:
        return x  # each convolution pads for itself

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (sum(self.config.frames(size[0])),)

    @property
    def bitrates(self) -> tuple[float, ...]:
        frame_rate = self.spec.sample_rate / self.config.seanet.hop_length  # type: ignore[operator]
        bits = [(size - 1).bit_length() for size in self.vocab_sizes]
        return tuple(sum(bits[:count]) * frame_rate for count in range(1, len(bits) + 1))

    def gains(self, x: Tensor) -> Tensor:
        """Loudness (B, segments) that each segment of signals (B, C, T) is divided by: its root mean square in mono."""
        mono = x.float().mean(1)
        power = [
            mono[:, start : start + length].square().mean(1) for start, length in self.config.segments(x.shape[-1])
        ]
        return torch.stack(power, dim=1).sqrt() + 1e-8

    def latent(self, x: Tensor) -> Tensor:
        gains = self.gains(x) if self.config.normalize else None
        parts = []
        for i, (start, length) in enumerate(self.config.segments(x.shape[-1])):
            part = x[..., start : start + length]
            parts.append(self.encoder(part if gains is None else (part / gains[:, i, None, None]).to(x.dtype)))
        return torch.cat(parts, dim=-1).movedim(1, -1)

    def reconstruct(self, codes: Tensor, samples: int | None = None, gains: Tensor | None = None) -> Tensor:
        """Code vectors to a signal.

        Args:
            codes: (B, frames, D).
            samples: length of the signal, which tells the segments; None: all segments but the last are whole.
            gains: (B, segments) loudness of each segment; None: 1.

        Returns:
            (B, C, T), T >= samples: frames are not cut.
        """
        hop, stride = self.config.seanet.hop_length, self.config.segment_stride
        if samples is not None:
            frames = self.config.frames(samples)
        else:
            most = -(-(self.config.segment_samples or codes.shape[1] * hop) // hop)
            frames = [min(most, codes.shape[1] - start) for start in range(0, codes.shape[1], most)]
        parts = [self.decoder(part.movedim(-1, 1)) for part in codes.split(frames, dim=1)]
        if gains is not None:
            parts = [part * gain[:, None, None].to(part.dtype) for part, gain in zip(parts, gains.unbind(1))]
        return parts[0] if stride is None else overlap_add(parts, stride)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        extent = tokens.extent
        if extent is None:
            return self.reconstruct(codes)
        gains = None if extent.gains is None else torch.tensor(extent.gains, device=codes.device)
        return self.reconstruct(codes, extent.sizes[0][0], gains)

    def extent_of(self, x: Tensor) -> Extent:
        sizes = ((x.shape[-1],),) * len(x)
        gains = tuple(map(tuple, self.gains(x).tolist())) if self.config.normalize else None
        return Extent(sizes, self.spec.sample_rate, gains)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Output:
        if lengths is not None:
            raise ValueError(f"expected no lengths: frames of {self.name} have no prefixes, got {tuple(lengths.shape)}")
        self.spec.check_shape(x)
        latent = self.latent(x)
        quantized = self.quantizer(latent)
        gains = self.gains(x) if self.config.normalize else None
        signal = self.reconstruct(quantized.codes.to(latent.dtype), x.shape[-1], gains)
        return Output(signal[..., : x.shape[-1]], latent, quantized)

    def streaming(self, num_codebooks: int | None = None) -> CodecStream:
        """`with model.streaming() as stream:` encodes and decodes in pieces of any size, as if at once.

        The padding by reflection costs a delay at the start, 7 frames of the published model each way (none with zeros
        as padding); then each frame that comes in gives one. The state is that of the convolutions' reach.

        Args:
            num_codebooks: how many codebooks to encode with; None: all.

        Raises:
            ValueError: a model that looks ahead.
        """
        if not self.spec.causal:
            raise ValueError(f"{self.name} cannot stream: its segments are coded whole; only a causal model can")
        return CodecStream(self, lambda: stream_of(self.encoder), lambda: stream_of(self.decoder), num_codebooks)


def overlap_add(parts: list[Tensor], stride: int) -> Tensor:
    """Join segments (B, C, T_i) that start every `stride` samples, fading with triangles from one to the next."""
    n = parts[0].shape[-1]
    ramp = torch.linspace(0, 1, n + 2, device=parts[0].device, dtype=torch.float32)[1:-1]
    window = (0.5 - (ramp - 0.5).abs()).to(parts[0].dtype)
    ends = [i * stride + part.shape[-1] for i, part in enumerate(parts)]
    total, weight = parts[0].new_zeros(*parts[0].shape[:2], max(ends)), window.new_zeros(max(ends))
    for i, (part, end) in enumerate(zip(parts, ends)):
        total[..., i * stride : end] += window[: part.shape[-1]] * part
        weight[i * stride : end] += window[: part.shape[-1]]
    return total / weight


NORMS = {"weight_norm": "none", "none": "none", "time_layer_norm": "none", "time_group_norm": "time_group_norm"}

# of the original's constructors; its time_layer_norm does nothing
_NETWORK_DEFAULTS: dict[str, Any] = {
    "channels": 1, "n_filters": 32, "n_residual_layers": 1, "ratios": [8, 5, 4, 2], "activation": "ELU",
    "activation_params": {"alpha": 1.0}, "final_activation": None, "norm": "weight_norm", "norm_params": {},
    "kernel_size": 7, "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_base": 2, "causal": False,
    "pad_mode": "reflect", "true_skip": False, "compress": 2, "lstm": 2, "trim_right_ratio": 1.0,
}  # fmt: skip
_QUANTIZER_DEFAULTS = {"dimension": 256, "n_q": 8, "bins": 1024, "decay": 0.99, "threshold_ema_dead_code": 2}
_MODEL_DEFAULTS = {"normalize": False, "segment": None, "overlap": 0.01}


def config_from_original(meta: dict[str, Any]) -> EncodecConfig:
    """The config of the constructor arguments of the original, or of transformers' EncodecConfig.

    Raises:
        ValueError: activations other than ELU, or a norm other than those of `NORMS`.
    """
    kwargs = meta["original"]["kwargs"]
    if not isinstance(kwargs, dict) or "seanet" not in kwargs:
        return config_from_transformers(kwargs if isinstance(kwargs, dict) else {})
    network = {**_NETWORK_DEFAULTS, **kwargs["seanet"]}
    quantizer, model = {**_QUANTIZER_DEFAULTS, **kwargs["quantizer"]}, {**_MODEL_DEFAULTS, **kwargs["model"]}
    fixed = ("activation", "activation_params", "final_activation", "norm_params")
    require_arguments(network, {name: _NETWORK_DEFAULTS[name] for name in fixed}, "EnCodec's network")
    if network["norm"] not in NORMS:
        raise ValueError(f"expected a norm of {', '.join(NORMS)}, got {network['norm']}")
    seanet = SEANetConfig(
        channels=network["channels"],
        filters=network["n_filters"],
        strides=tuple(network["ratios"][::-1]),
        residual_layers=network["n_residual_layers"],
        dilation_base=network["dilation_base"],
        compress=network["compress"],
        shortcut=not network["true_skip"],
        kernel_size=network["kernel_size"],
        last_kernel_size=network["last_kernel_size"],
        residual_kernel_size=network["residual_kernel_size"],
        lstm_layers=network["lstm"],
        causal=network["causal"],
        pad_mode=network["pad_mode"],
        norm=NORMS[network["norm"]],  # type: ignore[arg-type]
        trim_right_ratio=float(network["trim_right_ratio"]),
    )
    codebooks = residual_codebooks(
        quantizer["bins"], quantizer["dimension"], quantizer["n_q"], quantizer["decay"],
        quantizer["threshold_ema_dead_code"],
    )  # fmt: skip
    return EncodecConfig(
        model["sample_rate"], seanet, model["normalize"], model["segment"], model["overlap"], codebooks
    )


def config_from_transformers(kwargs: dict[str, Any]) -> EncodecConfig:
    """The config of the fields of transformers' EncodecConfig, those that are missing at their defaults."""
    defaults = {
        "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0], "sampling_rate": 24000, "audio_channels": 1,
        "normalize": False, "chunk_length_s": None, "overlap": None, "hidden_size": 128, "num_filters": 32,
        "num_residual_layers": 1, "upsampling_ratios": [8, 5, 4, 2], "norm_type": "weight_norm", "kernel_size": 7,
        "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_growth_rate": 2, "use_causal_conv": True,
        "pad_mode": "reflect", "compress": 2, "num_lstm_layers": 2, "trim_right_ratio": 1.0, "codebook_size": 1024,
        "use_conv_shortcut": True,
    }  # fmt: skip
    values = {**defaults, **kwargs}
    seanet = seanet_from_transformers(values, lstm_layers=values["num_lstm_layers"], norm=NORMS[values["norm_type"]])
    size = values["codebook_size"]
    count = int(1000 * values["target_bandwidths"][-1] // _codebook_rate(values["sampling_rate"], seanet, size))
    return EncodecConfig(
        values["sampling_rate"], seanet, values["normalize"], values["chunk_length_s"],
        0.01 if values["overlap"] is None else values["overlap"],
        residual_codebooks(size, values.get("codebook_dim") or values["hidden_size"], count),
    )  # fmt: skip


def _codebook_rate(sample_rate: int, seanet: SEANetConfig, size: int) -> int:
    """Bits per second of a codebook as transformers counts them, by whole frames a second."""
    return -(-sample_rate // seanet.hop_length) * (size - 1).bit_length()


def fields_for_transformers(config: EncodecConfig) -> dict[str, Any]:
    """Values of transformers' EncodecConfig; 1, 2, 4, ... and all codebooks are its bandwidths.

    Raises:
        ValueError: a network or quantizer that EncodecModel does not have.
    """
    seanet, quantizer = config.seanet, config.quantizer
    plain = (seanet.activation, seanet.bidirectional) == ("elu", False)
    if not plain or not isinstance(quantizer, ResidualConfig) or set(map(type, quantizer.levels)) != {VectorConfig}:
        raise ValueError(f"expected EnCodec's network and residual vector quantizer, got {config}")
    size, count = quantizer.vocab_sizes[0], len(quantizer.vocab_sizes)
    rate = _codebook_rate(config.sample_rate, seanet, size)
    counts = sorted({count, *(2**i for i in range(count.bit_length()))})
    return {
        "target_bandwidths": [rate * number / 1000 for number in counts],
        "sampling_rate": config.sample_rate,
        "normalize": config.normalize,
        "chunk_length_s": config.segment,
        "overlap": None if config.segment is None else config.overlap,
        "hidden_size": quantizer.dim,
        "norm_type": "time_group_norm" if seanet.norm == "time_group_norm" else "weight_norm",
        "num_lstm_layers": seanet.lstm_layers,
        **seanet_to_transformers(seanet),
        "codebook_size": size,
    }


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    return {"loss.commit": quantized.losses["commitment"]}


def codebook_keys(published: str) -> dict[str, str | None]:
    """Names of the codebooks, `{}` in `published` standing for the level."""
    return {
        f"{published}.inited": "quantizer.levels.{}.codebook.started",
        f"{published}.cluster_size": "quantizer.levels.{}.ema.count",
        f"{published}.embed": "quantizer.levels.{}.codebook.weight",
        f"{published}.embed_avg": "quantizer.levels.{}.ema.total",
    }


CODEBOOK_TRANSFORMS = {"*.codebook.started": lambda inited: inited.bool().reshape(())}

KEY_MAP = KeyMap(
    {**SEANET_KEYS, **codebook_keys("quantizer.vq.layers.{}._codebook")},
    weight_norm=True,
    transforms=CODEBOOK_TRANSFORMS,
)

KEY_MAP_TRANSFORMERS = KeyMap(
    {
        "*.layers.{}.conv.*": "*.layers.{}.*",
        "*.layers.{}.norm.*": "*.layers.{}.norm.*",
        "*.layers.{}.lstm.*": "*.layers.{}.lstm.*",
        "*.layers.{}.block.{}.conv.*": "*.layers.{}.block.{}.*",
        "*.layers.{}.block.{}.norm.*": "*.layers.{}.block.{}.norm.*",
        "*.layers.{}.shortcut.conv.*": "*.layers.{}.shortcut.*",
        "*.layers.{}.shortcut.norm.*": "*.layers.{}.shortcut.norm.*",
        **codebook_keys("quantizer.layers.{}.codebook"),
    },
    weight_norm=True,
    transforms=CODEBOOK_TRANSFORMS,
)


def _encode_there(peer: Any, x: Tensor) -> Tensor:
    found = peer.encode(x, bandwidth=peer.config.target_bandwidths[-1])
    codes = torch.cat(found.audio_codes.unbind(), dim=-1)  # (B, codebooks, frames of all segments)
    return codes[..., : codes.shape[-1] - found.last_frame_pad_length]


def _decode_there(peer: Any, tokens: Tokens) -> Tensor:
    indices, extent, hop = tokens.indices, tokens.extent, peer.config.hop_length
    most = -(-(peer.config.chunk_length or indices.shape[-1] * hop) // hop)
    filling = -indices.shape[-1] % most
    segments = torch.nn.functional.pad(indices, (0, filling)).split(most, dim=-1)
    gains = None if extent is None or extent.gains is None else torch.tensor(extent.gains).split(1, dim=1)
    signal: Tensor = peer.decode(
        torch.stack(segments), gains or [None] * len(segments), last_frame_pad_length=filling
    ).audio_values
    return signal


TRANSFORMERS = TransformersLayout(
    "EncodecModel",
    "EncodecConfig",
    KEY_MAP_TRANSFORMERS,
    config_from_transformers,
    fields_for_transformers,
    encode=_encode_there,
    decode=_decode_there,
    extractor=partial(codec_extractor, "EncodecFeatureExtractor"),
)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    return KEY_MAP_TRANSFORMERS if "transformers" in str(meta["original"].get("class")) else KEY_MAP
