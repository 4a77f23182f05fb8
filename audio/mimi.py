"""Mimi, Moshi's streaming codec: causal SEANet and transformers, one semantic beside many residual codebooks.

Paper: arXiv 2410.00037. Original: kyutai-labs/moshi (MIT); transformers' MimiModel has the same weights in its layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from audio.mimi_keys import KEY_MAP, KEY_MAP_TRANSFORMERS, LEAST_USAGE
from zoo.checkpoint import KeyMap
from zoo.config import Config, require_arguments
from zoo.interop.transformers import TransformersLayout, codec_extractor
from zoo.layers.conv1d import Conv1d, ConvTranspose1d
from zoo.layers.seanet import (
    SEANetConfig,
    SEANetDecoder,
    SEANetEncoder,
    seanet_from_transformers,
    seanet_to_transformers,
)
from zoo.layers.streaming import Chain, Stream, stream_of
from zoo.layers.transformer import CausalTransformer, RotaryPairs
from zoo.quantizers import (
    EmaCodebookConfig,
    ProjectedConfig,
    Quantized,
    QuantizerConfig,
    ResidualConfig,
    SummedConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.streaming import CodecStream
from zoo.tokenizer import InputSpec, Tokenizer

_ALL_POSITIONS = 2**31 - 1  # the window where the original states none


def split_codebooks(width: int, size: int, dim: int, semantic: int, count: int) -> SummedConfig:
    """`semantic` residual codebooks, and beside them those up to `count`, between projections of their own."""
    level = VectorConfig(size, dim, codebook=EmaCodebookConfig(start="kmeans", kmeans_iterations=50, smoothing=0.0))
    parts = [ResidualConfig(level, num_levels=number) for number in (semantic, count - semantic)]
    return SummedConfig(tuple(ProjectedConfig(width, part, bias=False) for part in parts))


@dataclass(frozen=True)
class MimiConfig(Config):
    """Sizes of the network; the defaults are those of the published model."""

    network: SEANetConfig = SEANetConfig(
        filters=64, strides=(4, 5, 6, 8), shortcut=False, last_kernel_size=3, lstm_layers=0, pad_mode="constant"
    )
    stride: int = 2  # from the network's rate, at which the transformers work, to that of the tokens
    width: int = 512  # of the transformers, which a quantizer of another width is projected from and to
    layers: int = 8  # of each transformer
    heads: int = 8
    hidden: int = 2048
    window: int = 250  # positions that the transformers attend to
    rotary_base: float = 10_000.0
    rotary_pairs: RotaryPairs = "neighbours"  # "halves" in transformers' layout of the weights
    layer_scale: float = 0.01
    sample_rate: int = 24_000
    quantizer: QuantizerConfig = split_codebooks(512, 2048, 256, 1, 32)

    def __post_init__(self) -> None:
        self.require(self.network.causal, "a causal network", self.network)
        self.require(self.width % (2 * self.heads) == 0, "an even width per head", (self.width, self.heads))
        counts = (self.stride, self.layers, self.window)
        self.require(min(counts) >= 1, "a stride, layers and a window >= 1", counts)


@register("mimi")
class Mimi(Tokenizer):
    """Speech (B, 1, T) in [-1, 1] -> frames of tokens (B, codebooks, ceil(T / hop)), 12.5 a second; causal.

    The signal is filled up with zeros to whole frames.
    """

    layout = "frames"
    config: MimiConfig

    def __init__(self, config: MimiConfig) -> None:
        network, width, dim = config.network, config.width, config.quantizer.dim
        hop, stride = config.stride * network.hop_length, config.stride
        spec = InputSpec("audio", network.channels, (-1.0, 1.0), None, hop, config.sample_rate, causal=True)
        super().__init__(config, spec, config.quantizer)
        self.encoder = SEANetEncoder(network, width)
        self.encoder_transformer = self._transformer(config)
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()
        if stride > 1:
            sizes: dict[str, Any] = {"kernel_size": 2 * stride, "stride": stride, "bias": False, "causal": True}
            self.downsample = Conv1d(width, width, pad_mode="replicate", **sizes)
            self.upsample = ConvTranspose1d(width, width, groups=width, **sizes)
        self.to_latent = nn.Identity() if dim == width else Conv1d(width, dim, 1, causal=True)
        self.from_codes = nn.Identity() if dim == width else Conv1d(dim, width, 1, causal=True)
        self.decoder_transformer = self._transformer(config)
        self.decoder = SEANetDecoder(network, width)

    def _transformer(self, config: MimiConfig) -> CausalTransformer:
        return CausalTransformer(
            config.width, config.layers, config.heads, config.hidden, config.window,
            base=config.rotary_base, layer_scale=config.layer_scale, pairs=config.rotary_pairs,
        )  # fmt: skip

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.spec.padding((x.shape[-1],))[0]))

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.downsample(self.encoder_transformer(self.encoder(x)))).transpose(1, 2)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.decoder_transformer(self.upsample(self.from_codes(codes.transpose(1, 2)))))

    def streaming(self, num_codebooks: int | None = None) -> CodecStream:
        """The codec on a signal in pieces of any size, equal to the whole; one frame of latency.

        Args:
            num_codebooks: as in `encode`.

        Raises:
            ValueError: a number of codebooks that the model does not have.
        """

        def encoder() -> Stream:
            parts = (self.encoder, self.encoder_transformer, self.downsample, self.to_latent)
            return Chain([WholeFrames(self.spec.multiple), *map(stream_of, parts)])

        def decoder() -> Stream:
            parts = (self.from_codes, self.upsample, self.decoder_transformer, self.decoder)
            return Chain(map(stream_of, parts))

        return CodecStream(self, encoder, decoder, num_codebooks)


class WholeFrames(Stream):
    """A signal, with zeros after its end up to a multiple of `hop` samples."""

    def __init__(self, hop: int) -> None:
        self.hop, self.seen = hop, 0

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        self.seen += x.shape[-1]
        return F.pad(x, (0, -self.seen % self.hop)) if last else x


def config_from_original(meta: dict[str, Any]) -> MimiConfig:
    """The config of the original's three dicts, or of transformers' MimiConfig.

    Raises:
        ValueError: a network that is not Mimi's.
    """
    kwargs = meta["original"]["kwargs"]
    return _from_moshi(kwargs) if "seanet" in kwargs else _from_transformers(kwargs)


_SEANET_DEFAULTS = {
    "channels": 1, "n_filters": 32, "n_residual_layers": 3, "ratios": [8, 5, 4, 2], "activation": "ELU",
    "norm": "none", "kernel_size": 7, "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_base": 2,
    "pad_mode": "reflect", "true_skip": True, "compress": 2,
}  # fmt: skip
_NETWORK = "Mimi's network"
_FIXED_SEANET = {"activation": "ELU", "causal": True}
_FIXED_TRANSFORMER = {"causal": True, "gating": "none", "norm": "layer_norm", "positional_embedding": "rope"}


def _from_moshi(kwargs: dict[str, Any]) -> MimiConfig:
    transformer, quantizer = kwargs["transformer"], kwargs["quantizer"]
    seanet: dict[str, Any] = {**_SEANET_DEFAULTS, **kwargs["seanet"]}
    require_arguments(seanet, _FIXED_SEANET, _NETWORK)
    require_arguments(transformer, _FIXED_TRANSFORMER, _NETWORK)
    network = SEANetConfig(
        channels=seanet["channels"],
        filters=seanet["n_filters"],
        strides=tuple(reversed(seanet["ratios"])),
        residual_layers=seanet["n_residual_layers"],
        dilation_base=seanet["dilation_base"],
        compress=seanet["compress"],
        shortcut=not seanet["true_skip"],
        kernel_size=seanet["kernel_size"],
        last_kernel_size=seanet["last_kernel_size"],
        residual_kernel_size=seanet["residual_kernel_size"],
        lstm_layers=0,
        pad_mode=seanet["pad_mode"],
    )
    return MimiConfig(
        network=network,
        stride=round(kwargs["sample_rate"] / network.hop_length / kwargs["frame_rate"]),
        width=transformer["d_model"],
        layers=transformer["num_layers"],
        heads=transformer["num_heads"],
        hidden=transformer.get("dim_feedforward", 2048),
        window=transformer.get("context") or _ALL_POSITIONS,
        rotary_base=float(transformer.get("max_period", 10_000)),
        layer_scale=transformer["layer_scale"],
        sample_rate=kwargs["sample_rate"],
        quantizer=split_codebooks(
            quantizer["input_dimension"], quantizer["bins"], quantizer["dimension"],
            quantizer.get("n_q_semantic", 1), quantizer["n_q"],
        ),
    )  # fmt: skip


_TRANSFORMERS_DEFAULTS = {
    "sampling_rate": 24_000, "audio_channels": 1, "hidden_size": 512, "num_filters": 64, "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4], "kernel_size": 7, "last_kernel_size": 3, "residual_kernel_size": 3,
    "dilation_growth_rate": 2, "use_causal_conv": True, "pad_mode": "constant", "compress": 2,
    "trim_right_ratio": 1.0, "codebook_size": 2048, "codebook_dim": 256, "num_quantizers": 32,
    "use_conv_shortcut": False, "num_semantic_quantizers": 1, "num_hidden_layers": 8, "intermediate_size": 2048,
    "num_attention_heads": 8, "sliding_window": 250, "layer_scale_initial_scale": 0.01,
}  # fmt: skip


def _from_transformers(kwargs: dict[str, Any]) -> MimiConfig:
    values: dict[str, Any] = {**_TRANSFORMERS_DEFAULTS, **kwargs}
    width, heads = values["hidden_size"], values["num_attention_heads"]
    fixed = {"hidden_act": "gelu", "norm_eps": 1e-5, "attention_bias": False, "upsample_groups": width}
    require_arguments(values, {**fixed, "num_key_value_heads": heads, "head_dim": width // heads}, _NETWORK)
    return MimiConfig(
        network=seanet_from_transformers(values, lstm_layers=0),
        width=width,
        layers=values["num_hidden_layers"],
        heads=heads,
        hidden=values["intermediate_size"],
        window=values["sliding_window"] or _ALL_POSITIONS,
        rotary_base=float((values.get("rope_parameters") or values).get("rope_theta", 10_000.0)),
        rotary_pairs="halves",
        layer_scale=values["layer_scale_initial_scale"],
        sample_rate=values["sampling_rate"],
        quantizer=split_codebooks(
            width, values["codebook_size"], values["codebook_dim"], values["num_semantic_quantizers"],
            values["num_quantizers"],
        ),
    )  # fmt: skip


def _to_transformers(config: MimiConfig) -> dict[str, Any]:
    """Values of transformers' MimiConfig, which knows strides of 2 alone."""
    network, sizes = config.network, config.quantizer.vocab_sizes
    inner = [part.inner for part in getattr(config.quantizer, "parts", ()) if isinstance(part, ProjectedConfig)]
    level = inner[0].levels[0] if len(inner) == 2 and isinstance(inner[0], ResidualConfig) else None
    split = isinstance(level, VectorConfig) and config.quantizer == split_codebooks(
        config.width, level.codebook_size, level.dim, len(inner[0].vocab_sizes), len(sizes)
    )
    if not isinstance(level, VectorConfig) or not split or config.stride != 2:
        raise ValueError(f"expected Mimi's quantizer and a stride of 2 between its rates, got {config}")
    return {
        "sampling_rate": config.sample_rate,
        "hidden_size": config.width,
        **seanet_to_transformers(network),
        "codebook_size": level.codebook_size,
        **dict.fromkeys(("codebook_dim", "vector_quantization_hidden_dimension"), level.dim),
        "num_quantizers": len(sizes),
        "num_semantic_quantizers": len(inner[0].vocab_sizes),
        "upsample_groups": config.width,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.hidden,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "sliding_window": config.window,
        "layer_scale_initial_scale": config.layer_scale,
    }


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The commitment loss, a mean over all codebooks in the projected space."""
    return {"loss.commit": quantized.losses["commitment"]}


def weights_for_transformers(model: Mimi) -> dict[str, Tensor]:
    """The inverse of `from_transformers`, of models with either order of the rotary pairs."""
    state = dict(model.state_dict())

    def halves(weight: Tensor) -> Tensor:
        pairs = weight.unflatten(0, (model.config.heads, -1, 2))  # (heads, pairs, 2, width)
        return pairs.transpose(1, 2).flatten(0, 2) if model.config.rotary_pairs == "neighbours" else weight

    for key in [key for key in state if key.endswith(".attention.qkv.weight")]:
        q, k, v = state.pop(key).chunk(3)
        for name, part in (("q", halves(q)), ("k", halves(k)), ("v", v)):
            state[key.replace(".qkv.", f".{name}.")] = part
    for key in [key for key in state if key.endswith(".codebook.weight")]:
        usage = state[key.replace(".codebook.weight", ".ema.count")].clamp_min(LEAST_USAGE)
        state[key.replace(".codebook.weight", ".ema.total")] = state.pop(key) * usage[:, None]
    return state


TRANSFORMERS = TransformersLayout(
    "MimiModel",
    "MimiConfig",
    KEY_MAP_TRANSFORMERS,
    _from_transformers,
    _to_transformers,
    weights_for_transformers,
    extractor=partial(codec_extractor, "EncodecFeatureExtractor"),
)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture's layout."""
    return KEY_MAP if "seanet" in meta["original"]["kwargs"] else KEY_MAP_TRANSFORMERS
