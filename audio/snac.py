"""SNAC: a convolutional codec whose residual quantizers work at different frame rates, the coarse ones seldom.

Paper: SNAC: Multi-Scale Neural Audio Codec, arXiv 2410.14411. Original: hubertsiuzdak/snac (MIT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio.dac import projected_codebook
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.channels_inside import WaveConv1d, WaveConvTranspose1d
from zoo.layers.ddim import item_noise
from zoo.layers.snake import Snake, SnakeUnit, check_sizes
from zoo.quantizers import Quantized, QuantizerConfig, ResidualConfig, StridedConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens

_DILATIONS = (1, 3, 9)
_HEAD_DIM = 64


def multi_scale_codebooks(size: int, dim: int, width: int, strides: tuple[int, ...]) -> ResidualConfig:
    """SNAC's quantizer: level i codes means of `strides[i]` positions of what the levels before it left over."""
    levels = tuple(StridedConfig(projected_codebook(size, dim, width), stride) for stride in strides)
    return ResidualConfig(levels, num_levels=len(levels), gradient="through")


@dataclass(frozen=True)
class SNACConfig(Config):
    """Sizes of the network; the defaults are those of the published 24 kHz model."""

    sample_rate: int = 24000
    channels: int = 48  # at the signal's rate in the encoder, doubled by each stride
    strides: tuple[int, ...] = (2, 4, 8, 8)
    decoder_channels: int = 1024  # at the lowest rate in the decoder, halved by each stride
    decoder_strides: tuple[int, ...] = (8, 8, 4, 2)
    attention_window: int | None = None  # positions that attend to each other, in either network
    noise: bool = True  # the decoder adds noise, which it shapes
    depthwise: bool = True
    quantizer: QuantizerConfig = multi_scale_codebooks(4096, 8, 768, (4, 2, 1))

    def __post_init__(self) -> None:
        check_sizes(self, self.sample_rate, self.strides, self.decoder_strides, self.decoder_channels)
        if self.attention_window is not None:
            self.require(self.attention_window >= 1, "a window of 1 position or more", self.attention_window)
            widths = (self.width, self.decoder_channels)
            self.require(all(width % _HEAD_DIM == 0 for width in widths), f"multiples of {_HEAD_DIM} channels", widths)

    @property
    def width(self) -> int:
        """Channels at the lowest rate in the encoder."""
        return self.channels * 2 ** len(self.strides)

    @property
    def hop_length(self) -> int:
        """Samples per position."""
        return math.prod(self.strides)


class WindowAttention(nn.Module):
    """Attention among the positions of each window, with rotary positions, plus the input: (B, C, T) -> the same.

    T is a multiple of the window. Rotary embedding: arXiv 2104.09864.
    """

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, time = x.shape
        heads = channels // _HEAD_DIM
        qkv = self.to_qkv(self.norm(x.transpose(1, 2)))
        qkv = qkv.reshape(batch * time // self.window, self.window, 3, heads, _HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (windows, heads, window, head) each
        y = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v)
        return x + self.to_out(y.transpose(1, 2).reshape(batch, time, channels)).transpose(1, 2)

    def _rotate(self, x: Tensor) -> Tensor:
        half = _HEAD_DIM // 2
        frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = torch.arange(self.window, device=x.device, dtype=torch.float32)[:, None] * frequency
        cos, sin = (part.repeat(1, 2).to(x.dtype) for part in (angle.cos(), angle.sin()))
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


class NoiseBlock(nn.Module):
    """Adds noise (B, 1, T) that all channels share, each at a strength that a linear map of the signal gives."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = WaveConv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + noise * self.linear(x)


class SNACStage(nn.Sequential):
    """One stride of the decoder: (B, C, T) and noise (B, 1, stride * T) -> (B, C / 2, stride * T)."""

    def __init__(self, config: SNACConfig, channels: int, stride: int) -> None:
        width = channels // 2
        up = WaveConvTranspose1d(channels, width, 2 * stride, stride, math.ceil(stride / 2), stride % 2)
        groups = width if config.depthwise else 1
        units = [SnakeUnit(width, dilation, groups) for dilation in _DILATIONS]
        super().__init__(Snake(channels), up, *([NoiseBlock(width)] if config.noise else []), *units)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, noise) if isinstance(part, NoiseBlock) else part(x)
        return x


@register("snac")
class SNAC(Tokenizer):
    """Audio (B, 1, T) in [-1, 1] of any length -> scales of tokens, coarse first.

    The decoder adds noise: `decode` takes a `seed` (0 if nothing is given), one or one an item, or the `noise` itself:
    (B, N), standard normal, of its strides one after the other (`noise_lengths`). In training each pass draws anew.
    """

    layout = "frames"
    config: SNACConfig

    def __init__(self, config: SNACConfig) -> None:
        multiple = config.hop_length * math.lcm(largest_stride(config.quantizer), config.attention_window or 1)
        spec = InputSpec("audio", 1, (-1.0, 1.0), multiple=multiple, sample_rate=config.sample_rate)
        super().__init__(config, spec, config.quantizer)
        if config.noise:
            self.decode_options = frozenset({"seed", "noise"})
        self.encoder = nn.Sequential(*self._encoder_layers(config, config.quantizer.dim))
        self.decoder = nn.Sequential(*self._decoder_layers(config, config.quantizer.dim))

    @staticmethod
    def _encoder_layers(config: SNACConfig, dim: int) -> list[nn.Module]:
        width = config.channels
        layers: list[nn.Module] = [WaveConv1d(1, width, 7, padding=3)]
        for stride in config.strides:
            units = [SnakeUnit(width, dilation, width if config.depthwise else 1) for dilation in _DILATIONS]
            down = WaveConv1d(width, 2 * width, 2 * stride, stride, math.ceil(stride / 2))
            layers.append(nn.Sequential(*units, Snake(width), down))
            width *= 2
        if config.attention_window is not None:
            layers.append(WindowAttention(width, config.attention_window))
        groups = width if config.depthwise and dim == width else 1
        return [*layers, WaveConv1d(width, dim, 7, padding=3, groups=groups)]

    @staticmethod
    def _decoder_layers(config: SNACConfig, dim: int) -> list[nn.Module]:
        width = config.decoder_channels
        layers: list[nn.Module] = [WaveConv1d(dim, width, 7, padding=3)]
        if config.depthwise:
            layers = [WaveConv1d(dim, dim, 7, padding=3, groups=dim), WaveConv1d(dim, width, 1)]
        if config.attention_window is not None:
            layers.append(WindowAttention(width, config.attention_window))
        for stride in config.decoder_strides:
            layers.append(SNACStage(config, width, stride))
            width //= 2
        return [*layers, Snake(width), WaveConv1d(width, 1, 7, padding=3), nn.Tanh()]

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (size[0] // self.config.hop_length,)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[-1] % self.spec.multiple))

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def noise_lengths(self, positions: int) -> list[int]:
        """Samples of noise that each stride of the decoder takes."""
        strides = self.config.decoder_strides
        return [positions * math.prod(strides[: i + 1]) for i in range(len(strides))]

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        if not self.config.noise:
            return super().noise_shape(codes)
        return (codes.shape[0], sum(self.noise_lengths(codes.shape[1])))

    def reconstruct(self, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        """Code vectors (B, positions, D), and noise as `decode` takes it, to a signal (B, 1, T)."""
        lengths = self.noise_lengths(codes.shape[1])
        shape = (codes.shape[0], sum(lengths))
        if noise is None and self.training:
            noise = torch.randn(shape, dtype=torch.float32, device=codes.device)
        elif noise is None:
            noise = item_noise(shape, 0) if self.config.noise else codes.new_zeros(shape)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise: expected {shape}, got {tuple(noise.shape)}")
        pieces = iter(noise.to(codes)[:, None].split(lengths, dim=-1))
        x = codes.movedim(-1, 1)
        for layer in self.decoder:
            x = layer(x, next(pieces)) if isinstance(layer, SNACStage) else layer(x)
        return x

    def decode_codes(
        self, codes: Tensor, tokens: Tokens, *, seed: int | list[int] | None = None, noise: Tensor | None = None,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        if noise is None and self.config.noise:
            noise = item_noise(self.noise_shape(codes), seed)
        return self.reconstruct(codes, noise)


def largest_stride(quantizer: QuantizerConfig) -> int:
    """Positions that a quantizer needs whole multiples of."""
    if isinstance(quantizer, ResidualConfig):
        return math.lcm(*(largest_stride(level) for level in quantizer.levels))
    if isinstance(quantizer, StridedConfig):
        return quantizer.stride * largest_stride(quantizer.inner)
    return 1


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "sampling_rate": 44100, "encoder_dim": 64, "encoder_rates": [3, 3, 7, 7], "latent_dim": None, "decoder_dim": 1536,
    "decoder_rates": [7, 7, 3, 3], "attn_window_size": 32, "codebook_size": 4096, "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1], "noise": True, "depthwise": True,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> SNACConfig:
    """The config of the original's constructor arguments."""
    kwargs = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    width = kwargs["latent_dim"] or kwargs["encoder_dim"] * 2 ** len(kwargs["encoder_rates"])
    return SNACConfig(
        sample_rate=kwargs["sampling_rate"],
        channels=kwargs["encoder_dim"],
        strides=tuple(kwargs["encoder_rates"]),
        decoder_channels=kwargs["decoder_dim"],
        decoder_strides=tuple(kwargs["decoder_rates"]),
        attention_window=kwargs["attn_window_size"],
        noise=kwargs["noise"],
        depthwise=kwargs["depthwise"],
        quantizer=multi_scale_codebooks(
            kwargs["codebook_size"], kwargs["codebook_dim"], width, tuple(kwargs["vq_strides"])
        ),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original has none: its training is not published."""
    return {}


KEY_MAP = KeyMap(
    {
        "encoder.block.{}.*": "encoder.{}.*",
        "encoder.block.{}.block.{}.*": "encoder.{}.{}.*",
        "encoder.block.{}.block.{}.block.{}.*": "encoder.{}.{}.layers.{}.*",
        "decoder.model.{}.*": "decoder.{}.*",
        "decoder.model.{}.block.{}.*": "decoder.{}.{}.*",
        "decoder.model.{}.block.{}.block.{}.*": "decoder.{}.{}.layers.{}.*",
        "*.rel_pos.inv_freq": None,  # the rotary embedding's constants
        "quantizer.quantizers.{}.in_proj.*": "quantizer.levels.{}.inner.project_in.*",
        "quantizer.quantizers.{}.out_proj.*": "quantizer.levels.{}.inner.project_out.*",
        "quantizer.quantizers.{}.codebook.weight": "quantizer.levels.{}.inner.inner.codebook.weight",
    },
    weight_norm=True,
    transforms={"quantizer.levels.*.project_*.weight": lambda weight: weight.squeeze(-1)},  # 1x1 convolutions
)
