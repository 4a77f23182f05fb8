"""SQ-Codec, the scalar codec of SimpleSpeech: a convolutional network whose latent is rounded channel by channel.

Paper: arXiv 2406.02328. Original: yangdongchao/SimpleSpeech (no licence stated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.quantizers import FiniteScalarConfig, GroupedConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer

DILATIONS = (1, 3, 5, 7, 9)


def scalars(dim: int, steps: int) -> GroupedConfig:
    """`dim` codebooks of one channel each, the multiples of 1 / `steps` from -1 to 1."""
    level = FiniteScalarConfig(levels=(2 * steps + 1,), symmetric=True, squash="clamp", margin=0.0)
    return GroupedConfig(level, num_groups=dim, shared=True)


@dataclass(frozen=True)
class SQCodecConfig(Config):
    """Sizes of the network. Those of the published models lie beside them in a file; the defaults are of their kind."""

    channels: int = 32  # at the signal's rate, doubled by each stride
    strides: tuple[int, ...] = (2, 4, 5)  # of the encoder
    kernel_sizes: tuple[int, ...] = (4, 8, 10)  # of the encoder's strided convolutions
    decoder_strides: tuple[int, ...] = (5, 4, 2)
    decoder_kernel_sizes: tuple[int, ...] = (10, 8, 4)
    pool: int = 8  # samples that are averaged before the first stride, and repeated after the last; 1 for none
    kernel_size: int = 7  # of the first and the last convolution, and those at the pooling
    unit_kernel_size: int = 7  # of the residual units
    delay_kernel_size: int = 5  # of the decoder's first convolution, which looks ahead
    causal: bool = True  # all others
    bands: int = 1  # channels of the signal
    sample_rate: int = 16_000
    quantizer: QuantizerConfig = scalars(50, 9)

    def __post_init__(self) -> None:
        counts = {len(part) for part in (self.strides, self.kernel_sizes)}
        counts_up = {len(part) for part in (self.decoder_strides, self.decoder_kernel_sizes)}
        self.require(len(counts) == len(counts_up) == 1, "a kernel size per stride", (counts, counts_up))
        hops = math.prod(self.strides), math.prod(self.decoder_strides)
        self.require(hops[0] == hops[1], "strides of one product", hops)
        fits = not self.causal or all(
            size == 2 * stride for size, stride in zip(self.decoder_kernel_sizes, self.decoder_strides)
        )
        self.require(fits, "decoder kernels of twice the stride, when causal", self.decoder_kernel_sizes)
        self.require(self.pool >= 1, "a pool >= 1", self.pool)


@register("sqcodec")
class SQCodec(Tokenizer):
    """Signals (B, bands, T) in [-1, 1] -> frames of one token a latent channel (B, channels, ceil(T / hop))."""

    layout = "frames"

    def __init__(self, config: SQCodecConfig) -> None:
        hop = config.pool * math.prod(config.strides)
        spec = InputSpec("audio", config.bands, (-1.0, 1.0), None, hop, config.sample_rate)
        super().__init__(config, spec, config.quantizer)
        self.encoder = nn.Sequential(*_encoder(config))
        self.decoder = nn.Sequential(*_decoder(config))

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).tanh().transpose(1, 2)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.transpose(1, 2))


class PaddedConv(nn.Conv1d):
    """Convolution with zeros around: reach - 1 of them before the signal when causal, otherwise half of it twice."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, *, causal: bool
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation)
        reach = dilation * (kernel_size - 1)
        self.around = (reach, 0) if causal else (reach // 2, reach // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around))


class Unit(nn.Module):
    """Dilated convolution and one of 1, each before its own PReLU, plus the input: (B, C, T) -> the same."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.conv1 = PaddedConv(channels, channels, kernel_size, dilation=dilation, causal=causal)
        self.activation1 = nn.PReLU()
        self.conv2 = nn.Conv1d(channels, channels, 1)
        self.activation2 = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation2(self.conv2(self.activation1(self.conv1(x))))


class Down(nn.Module):
    """Units, and a strided convolution that doubles the width, before a PReLU that all strides share."""

    def __init__(self, config: SQCodecConfig, channels: int, stride: int, kernel_size: int, shared: nn.PReLU) -> None:
        super().__init__()
        self.units = _units(config, channels)
        self.conv = PaddedConv(channels, 2 * channels, kernel_size, stride, causal=config.causal)
        self.activation = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(self.units(x)))


class Up(nn.Module):
    """A transposed convolution that halves the width, and units."""

    def __init__(self, config: SQCodecConfig, channels: int, stride: int, kernel_size: int) -> None:
        super().__init__()
        padding = 0 if config.causal else (kernel_size - stride) // 2
        self.conv = nn.ConvTranspose1d(channels, channels // 2, kernel_size, stride, padding=padding)
        self.surplus = stride if config.causal else 0
        self.units = _units(config, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.units(x[..., : x.shape[-1] - self.surplus])


class Pool(nn.Module):
    """Convolution, PReLU, and the means of `size` samples."""

    def __init__(self, config: SQCodecConfig, channels: int) -> None:
        super().__init__()
        self.conv = PaddedConv(channels, channels, config.kernel_size, causal=config.causal)
        self.activation = nn.PReLU()
        self.size = config.pool

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(self.activation(self.conv(x)), self.size)


class Repeat(Pool):
    """Each position `size` times, convolution, PReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(x.repeat_interleave(self.size, dim=-1)))


def _units(config: SQCodecConfig, channels: int) -> nn.Sequential:
    return nn.Sequential(*(Unit(channels, config.unit_kernel_size, dilation, config.causal) for dilation in DILATIONS))


def _encoder(config: SQCodecConfig) -> list[nn.Module]:
    width, shared = config.channels, nn.PReLU()
    layers: list[nn.Module] = [PaddedConv(config.bands, width, config.kernel_size, causal=config.causal)]
    if config.pool > 1:
        layers.append(Pool(config, width))
    for stride, kernel_size in zip(config.strides, config.kernel_sizes):
        layers.append(Down(config, width, stride, kernel_size, shared))
        width *= 2
    return [*layers, PaddedConv(width, config.quantizer.dim, config.kernel_size, causal=config.causal)]


def _decoder(config: SQCodecConfig) -> list[nn.Module]:
    width = config.channels * 2 ** len(config.decoder_strides)
    layers: list[nn.Module] = [PaddedConv(config.quantizer.dim, width, config.delay_kernel_size, causal=False)]
    for stride, kernel_size in zip(config.decoder_strides, config.decoder_kernel_sizes):
        layers.append(Up(config, width, stride, kernel_size))
        width //= 2
    if config.pool > 1:
        layers.append(Repeat(config, width))
    return [*layers, PaddedConv(width, config.bands, config.kernel_size, causal=config.causal)]


def config_from_original(meta: dict[str, Any]) -> SQCodecConfig:
    """The config of the original's constructor arguments, which round to ninths."""
    kwargs = meta["original"]["kwargs"]
    return SQCodecConfig(
        channels=kwargs["init_channel"],
        strides=tuple(kwargs["downsample_factors"]),
        kernel_sizes=tuple(kwargs["downsample_kernel_sizes"]),
        decoder_strides=tuple(kwargs["upsample_factors"]),
        decoder_kernel_sizes=tuple(kwargs["upsample_kernel_sizes"]),
        pool=kwargs["num_samples"],
        kernel_size=kwargs["default_kernel_size"],
        unit_kernel_size=kwargs["res_kernel_size"],
        delay_kernel_size=kwargs["delay_kernel_size"],
        causal=kwargs["causal"],
        bands=kwargs["num_bands"],
        sample_rate=kwargs["sample_rate"],
        quantizer=scalars(kwargs["latent_hidden_dim"], 9),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer has none."""
    return {}


KEY_MAP = KeyMap(
    {
        f"{side}.{name}": f"{side}.{own}"
        for side in ("encoder", "decoder")
        for name, own in {
            "{}.weight": "{}.weight",
            "{}.bias": "{}.bias",
            "{}.conv.*": "{}.conv.*",
            "{}.activation.weight": "{}.activation.weight",
            "{}.convs.{}.*": "{}.units.{}.*",
            "{}.down_conv.layer.*": "{}.conv.*",
            "{}.down_conv.activation.weight": "{}.activation.weight",  # one weight under the key of every stride
            "{}.up_conv.layer.*": "{}.conv.*",
        }.items()
    },
    weight_norm=True,
)
