"""SEANet's encoder and decoder: strided convolutions with residual blocks and a recurrent network (arXiv 2009.02095).

As EnCodec has them (arXiv 2210.13438), and after it Mimi, SpeechTokenizer, DM-Codec and WavTokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.channels_inside import are_inside
from zoo.layers.conv1d import LSTM, Conv1d, ConvTranspose1d, PadMode, TimeNorm
from zoo.layers.in_place import added
from zoo.layers.snake import Snake
from zoo.layers.streaming import Stream, Sum, stream_of
from zoo.ops.activations import elu


@dataclass(frozen=True)
class SEANetConfig(Config):
    """Sizes of an encoder and its decoder; the defaults are those of EnCodec at 24 kHz, but for the padding."""

    channels: int = 1  # of the signal
    filters: int = 32  # width at the signal's rate, doubled by each stride
    strides: tuple[int, ...] = (2, 4, 5, 8)  # of the encoder; the decoder has them the other way round
    residual_layers: int = 1  # blocks a stride, with dilations 1, base, base ** 2, ...
    dilation_base: int = 2
    compress: int = 2  # how much narrower a block is inside
    shortcut: bool = True  # a 1x1 convolution around each block instead of the identity
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    lstm_layers: int = 2
    bidirectional: bool = False  # the encoder's recurrent network; the decoder's goes forwards
    activation: Literal["elu", "snake"] = "elu"
    causal: bool = True
    pad_mode: PadMode = "reflect"
    norm: TimeNorm = "none"
    trim_right_ratio: float = 1.0

    def __post_init__(self) -> None:
        self.require(min(self.strides, default=0) >= 1, "strides >= 1", self.strides)
        self.require(min(self.channels, self.filters, self.compress) >= 1, "widths >= 1", self.filters)
        self.require(self.residual_layers >= 0 and self.lstm_layers >= 0, "numbers >= 0", self.residual_layers)
        self.require(not (self.causal and self.norm != "none"), "no norm over time in a causal network", self.norm)
        self.require(0 <= self.trim_right_ratio <= 1, "a ratio in [0, 1]", self.trim_right_ratio)

    @property
    def hop_length(self) -> int:
        """Samples per position."""
        return math.prod(self.strides)

    @property
    def width(self) -> int:
        """Channels at the lowest rate."""
        return self.filters * 2 ** len(self.strides)

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> Conv1d:
        """A convolution with the network's padding and normalisation."""
        return Conv1d(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, causal=self.causal,
            pad_mode=self.pad_mode, norm=self.norm,
        )  # fmt: skip

    def up(self, in_channels: int, out_channels: int, stride: int) -> ConvTranspose1d:
        """A transposed convolution with the network's trimming and normalisation."""
        return ConvTranspose1d(
            in_channels, out_channels, 2 * stride, stride=stride, causal=self.causal,
            trim_right_ratio=self.trim_right_ratio, norm=self.norm,
        )  # fmt: skip

    def act(self, channels: int) -> nn.Module:
        """An activation of signals with so many channels."""
        return Snake(channels) if self.activation == "snake" else ELU()

    def blocks(self, channels: int) -> list[nn.Module]:
        """The residual blocks of one stride."""
        return [SEANetBlock(self, channels, self.dilation_base**i) for i in range(self.residual_layers)]


_TRANSFORMERS_FIELDS = {
    "audio_channels": "channels", "num_filters": "filters", "num_residual_layers": "residual_layers",
    "dilation_growth_rate": "dilation_base", "compress": "compress", "use_conv_shortcut": "shortcut",
    "kernel_size": "kernel_size", "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size", "use_causal_conv": "causal", "pad_mode": "pad_mode",
    "trim_right_ratio": "trim_right_ratio",
}  # fmt: skip


def seanet_from_transformers(fields: Mapping[str, Any], **further: Any) -> SEANetConfig:
    """The network of transformers' EncodecConfig or MimiConfig, and what these say in other ways."""
    known = {ours: fields[theirs] for theirs, ours in _TRANSFORMERS_FIELDS.items()}
    known["trim_right_ratio"] = float(known["trim_right_ratio"])
    return SEANetConfig(strides=tuple(fields["upsampling_ratios"][::-1]), **known, **further)


def seanet_to_transformers(config: SEANetConfig) -> dict[str, Any]:
    """The values of these configs."""
    known = {theirs: getattr(config, ours) for theirs, ours in _TRANSFORMERS_FIELDS.items()}
    return {"upsampling_ratios": list(config.strides[::-1]), **known}


class ELU(nn.Module):
    """max(x, 0) + exp(min(x, 0)) - 1."""

    pointwise = True

    def forward(self, x: Tensor) -> Tensor:
        return elu(x.transpose(1, 2)).transpose(1, 2) if x.ndim == 3 and are_inside(x) else elu(x)


class SEANetBlock(nn.Module):
    """Two convolutions, each after an activation, beside a shortcut: (B, C, T) -> (B, C, T)."""

    def __init__(self, config: SEANetConfig, channels: int, dilation: int) -> None:
        super().__init__()
        inner = channels // config.compress
        self.block = nn.Sequential(
            config.act(channels),
            config.conv(channels, inner, config.residual_kernel_size, dilation=dilation),
            config.act(inner),
            config.conv(inner, channels, 1),
        )
        self.shortcut = config.conv(channels, channels, 1) if config.shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return added(self.block(x), self.shortcut(x))

    def stream(self) -> Stream:
        return Sum(stream_of(self.shortcut), stream_of(self.block))


class SEANetEncoder(nn.Module):
    """Signal (B, C, T) -> (B, dim, ceil(T / hop))."""

    def __init__(self, config: SEANetConfig, dim: int) -> None:
        super().__init__()
        width = config.filters
        layers: list[nn.Module] = [config.conv(config.channels, width, config.kernel_size)]
        for stride in config.strides:
            layers += config.blocks(width)
            layers += [config.act(width), config.conv(width, 2 * width, 2 * stride, stride=stride)]
            width *= 2
        if config.lstm_layers:
            layers.append(LSTM(width, config.lstm_layers, config.bidirectional))
            width *= 2 if config.bidirectional else 1
        layers += [config.act(width), config.conv(width, dim, config.last_kernel_size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def stream(self) -> Stream:
        return stream_of(self.layers)


class SEANetDecoder(nn.Module):
    """(B, dim, T) -> signal (B, C, T * hop), not clamped."""

    def __init__(self, config: SEANetConfig, dim: int) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = [config.conv(dim, width, config.kernel_size)]
        if config.lstm_layers:
            layers.append(LSTM(width, config.lstm_layers))
        for stride in reversed(config.strides):
            layers += [config.act(width), config.up(width, width // 2, stride)]
            width //= 2
            layers += config.blocks(width)
        layers += [config.act(width), config.conv(width, config.channels, config.last_kernel_size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def stream(self) -> Stream:
        return stream_of(self.layers)


# names of both networks in files that hold them as EnCodec's own code does -> names here, for key maps
SEANET_KEYS = {
    "*.model.{}.conv.conv.*": "*.layers.{}.*",
    "*.model.{}.conv.norm.*": "*.layers.{}.norm.*",
    "*.model.{}.convtr.convtr.*": "*.layers.{}.*",
    "*.model.{}.convtr.norm.*": "*.layers.{}.norm.*",
    "*.model.{}.lstm.*": "*.layers.{}.lstm.*",
    "*.model.{}.alpha": "*.layers.{}.alpha",
    "*.model.{}.block.{}.conv.conv.*": "*.layers.{}.block.{}.*",
    "*.model.{}.block.{}.conv.norm.*": "*.layers.{}.block.{}.norm.*",
    "*.model.{}.block.{}.alpha": "*.layers.{}.block.{}.alpha",
    "*.model.{}.shortcut.conv.conv.*": "*.layers.{}.shortcut.*",
    "*.model.{}.shortcut.conv.norm.*": "*.layers.{}.shortcut.norm.*",
}
