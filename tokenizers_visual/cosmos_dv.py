"""Cosmos discrete video tokenizer: Haar patches, a causal network that treats space and time in turn, and FSQ.

Paper: arXiv 2501.03575. Original: NVIDIA/Cosmos-Tokenizer (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.cosmos_di import fields_from_original
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.attention import SpatialAttention
from zoo.layers.haar import Patching, VideoPatch, VideoUnpatch
from zoo.layers.vqgan import LevelBlocks
from zoo.quantizers import FiniteScalarConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class CosmosDVConfig(Config):
    """Sizes of the network; the defaults are those of the published 8x16x16 model."""

    stride: int = 16  # pixels a side of one token
    frame_stride: int = 8  # frames of one token, but for the first frame
    patch_size: int = 4  # of all three axes
    patching: Patching = "haar"
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 4, 4)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    latent_channels: int = 16
    resolution: int = 1024  # with attention_resolutions it places attention, whatever the size of the input
    attention_resolutions: tuple[int, ...] = (32,)
    dropout: float = 0.0
    quantizer: QuantizerConfig = FiniteScalarConfig(levels=(8, 8, 8, 5, 5, 5))

    def __post_init__(self) -> None:
        for name in ("stride", "frame_stride", "patch_size"):
            value = getattr(self, name)
            self.require(value >= 1 and value & (value - 1) == 0, f"{name} to be a power of two", value)
        most = len(self.channel_multipliers) - 1
        self.require(most >= 0, "at least one level", self.channel_multipliers)
        self.require(
            0 <= self.halvings <= most,
            f"a stride of patch_size {self.patch_size} times at most 2 ** {most}",
            self.stride,
        )
        most = min(self.halvings, max(0, most - 1))  # the decoder's first level leaves time as it is
        self.require(
            0 <= self.time_halvings <= most,
            f"a frame_stride of patch_size {self.patch_size} times at most 2 ** {most}",
            self.frame_stride,
        )

    @property
    def halvings(self) -> int:
        """Levels that change height and width; patching does the rest of the stride."""
        return int(math.log2(self.stride)) - int(math.log2(self.patch_size))

    @property
    def time_halvings(self) -> int:
        """Levels that change the number of frames; patching does the rest."""
        return int(math.log2(self.frame_stride)) - int(math.log2(self.patch_size))


@register("cosmos_dv")
class CosmosDV(Tokenizer):
    """Video (B, 3, T, H, W) in [-1, 1], T = 1 + k c, H and W multiples of the stride f -> a grid of tokens
    (B, 1 + k, H / f, W / f). An image is a video of one frame.

    No token depends on a later frame: those of the first 1 + j c frames are the first 1 + j along time.
    """

    def __init__(self, config: CosmosDVConfig) -> None:
        spec = InputSpec(
            "video",
            channels=3,
            value_range=(-1.0, 1.0),
            multiple=config.stride,
            frame_multiple=config.frame_stride,
            causal=True,
        )
        super().__init__(config, spec, config.quantizer)
        patched, z = 3 * config.patch_size**3, config.latent_channels
        self.patch = VideoPatch(config.patch_size, config.patching)
        self.encoder = _Encoder(patched, z, config)
        self.to_latent = _CausalConv(z, config.quantizer.dim)
        self.from_codes = _CausalConv(config.quantizer.dim, z)
        self.decoder = _Decoder(z, patched, config)
        self.unpatch = VideoUnpatch(config.patch_size, config.patching)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(self.patch(x))).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.unpatch(self.decoder(self.from_codes(codes.movedim(-1, 1))))


class _CausalConv(nn.Conv3d):
    """Convolution over (B, C, T, H, W), with zeros around space and repetitions of the first frame before time."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time: int = 1,
        space: int = 1,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        padding = (0, space // 2, space // 2) if stride[1] == 1 else 0
        super().__init__(in_channels, out_channels, (time, space, space), stride=stride, padding=padding)
        self.repeats = time - stride[0]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_after_first_frame(x, self.repeats))


def _after_first_frame(x: Tensor, count: int) -> Tensor:
    """(B, C, T, H, W) after `count` more copies of its first frame."""
    return x if count == 0 else torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2)


def _space_then_time(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        _CausalConv(in_channels, out_channels, space=3), _CausalConv(out_channels, out_channels, time=3)
    )


def _each_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer of images applied to each frame of (B, C, T, H, W)."""
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class _FrameNorm(nn.GroupNorm):
    """Normalises each frame by itself, all channels and pixels as one group."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return _each_frame(super().forward, x)  # type: ignore[arg-type]


class _Block(nn.Module):
    """norm, SiLU, convolutions of space and time, twice (dropout before the second); plus the input (1x1-projected)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _FrameNorm(in_channels)
        self.conv1 = _space_then_time(in_channels, out_channels)
        self.norm2 = _FrameNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _space_then_time(out_channels, out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else _CausalConv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class _TimeAttention(nn.Module):
    """One head over the frames up to the own one, at each pixel by itself; residual. (B, C, T, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _FrameNorm(channels)
        self.q, self.k, self.v, self.proj_out = (_CausalConv(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        parts = (conv(h).permute(0, 3, 4, 2, 1) for conv in (self.q, self.k, self.v))  # (B, H, W, T, C)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        return x + self.proj_out(mixed.permute(0, 4, 3, 1, 2))


class _Attention(nn.Module):
    """Attention over the pixels of each frame, then over the frames of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = SpatialAttention(channels, groups=1)
        self.time = _TimeAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.time(_each_frame(self.space, x))


class _Resample(nn.Module):
    """Three convolutions, of space, time and neither, as the published files hold them for every change of size. Those
    that have nothing to do are never trained or called.
    """

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.space, self.time = space, time

    def freeze_unused(self, space: nn.Module, time: nn.Module, last: nn.Module) -> None:
        """Exempts from training what `forward` does not call."""
        for layer, used in ((space, self.space), (time, self.time), (last, self.space or self.time)):
            layer.requires_grad_(used)


class _Downsample(_Resample):
    """Halves H and W, the number of frames after the first, both or neither: convolutions beside means."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__(channels, space=space, time=time)
        self.conv1 = _CausalConv(channels, channels, space=3, stride=(1, 2, 2))
        self.conv2 = _CausalConv(channels, channels, time=3, stride=(2, 1, 1))
        self.conv3 = _CausalConv(channels, channels)
        self.freeze_unused(self.conv1, self.conv2, self.conv3)

    def forward(self, x: Tensor) -> Tensor:
        if self.space:
            x = F.pad(x, (0, 1, 0, 1))
            x = self.conv1(x) + F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3])
        if self.time:
            x = _after_first_frame(x, 1)
            x = self.conv2(x) + (x[:, :, ::2] + x[:, :, 1::2]) / 2
        return self.conv3(x) if self.space or self.time else x


class _Upsample(_Resample):
    """Doubles H and W, the number of frames after the first, both or neither: repetition plus a convolution of it."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__(channels, space=space, time=time)
        self.conv1 = _CausalConv(channels, channels, time=3)
        self.conv2 = _CausalConv(channels, channels, space=3)
        self.conv3 = _CausalConv(channels, channels)
        self.freeze_unused(self.conv2, self.conv1, self.conv3)

    def forward(self, x: Tensor) -> Tensor:
        if self.time:
            x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = self.conv1(x) + x
        if self.space:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2(x) + x
        return self.conv3(x) if self.space or self.time else x


def _level(widths: Sequence[int], attention: bool, dropout: float, resample: nn.Module) -> LevelBlocks:
    blocks = (_Block(before, after, dropout) for before, after in pairwise(widths))
    return LevelBlocks(blocks, (_Attention(width) for width in widths[1:] if attention), resample)


def _middle(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(_Block(channels, channels, dropout), _Attention(channels), _Block(channels, channels, dropout))


class _Encoder(nn.Module):
    """(B, in_channels, T, H, W) -> (B, out_channels, ...), smaller by what patching leaves of the strides."""

    def __init__(self, in_channels: int, out_channels: int, config: CosmosDVConfig) -> None:
        super().__init__()
        widths = [config.channels, *(config.channels * multiplier for multiplier in config.channel_multipliers)]
        last = len(widths) - 2
        self.conv_in = _space_then_time(in_channels, widths[0])
        self.levels = nn.ModuleList()
        for i, (before, width) in enumerate(pairwise(widths)):
            resample = _Downsample(width, space=i < config.halvings, time=i < config.time_halvings)
            attention = config.resolution // config.patch_size // 2**i in config.attention_resolutions
            own = [before, *[width] * config.blocks]
            self.levels.append(_level(own, attention, config.dropout, resample if i < last else nn.Identity()))
        self.mid = _middle(widths[-1], config.dropout)
        self.norm_out = _FrameNorm(widths[-1])
        self.conv_out = _space_then_time(widths[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    """(B, in_channels, t, h, w) -> (B, out_channels, ...). It is no mirror image of the encoder: time is enlarged from
    the second level on, and space along with it."""

    def __init__(self, in_channels: int, out_channels: int, config: CosmosDVConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        self.conv_in = _space_then_time(in_channels, widths[0])
        self.mid = _middle(widths[0], config.dropout)
        self.levels = nn.ModuleList()
        for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
            time = 0 < i < config.time_halvings + 1
            space = time or (config.time_halvings < config.halvings and i < config.halvings)
            attention = config.resolution // config.patch_size // 2 ** (last - i) in config.attention_resolutions
            own = [before, *[width] * (config.blocks + 1)]
            resample = _Upsample(width, space=space, time=time) if i < last else nn.Identity()
            self.levels.append(_level(own, attention, config.dropout, resample))
        self.norm_out = _FrameNorm(widths[-1])
        self.conv_out = _space_then_time(widths[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def config_from_original(meta: dict[str, Any]) -> CosmosDVConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them.

    Raises:
        ValueError: a network that is none of the published ones.
    """
    kwargs = meta["original"]["kwargs"]
    found = tuple(kwargs[name] for name in ("encoder", "decoder", "num_groups", "legacy_mode", "z_factor"))
    if found != ("FACTORIZED", "FACTORIZED", 1, False, 1):
        raise ValueError(f"expected factorised networks of one group, not the legacy ones, and z_factor 1, got {found}")
    return CosmosDVConfig(frame_stride=kwargs["temporal_compression"], **fields_from_original(kwargs))


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """FSQ has none."""
    return {}


def _block(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.norm{{n}}.norm.*": f"{own}.norm{{n}}.*",
        f"{published}.conv{{n}}.{{m}}.conv3d.*": f"{own}.conv{{n}}.{{m}}.*",
        f"{published}.nin_shortcut.conv3d.*": f"{own}.shortcut.*",
    }


def _attention(published: str, own: str) -> dict[str, str | None]:
    patterns: dict[str, str | None] = {}
    for place, part in enumerate(("space", "time")):
        patterns[f"{published}.{place}.norm.norm.*"] = f"{own}.{part}.norm.*"
        for name in ("q", "k", "v", "proj_out"):
            patterns[f"{published}.{place}.{name}.conv3d.*"] = f"{own}.{part}.{name}.*"
    return patterns


def _side(side: str, levels: str, own: str, resample: str) -> dict[str, str | None]:
    return {
        f"{side}.conv_in.{{}}.conv3d.*": f"{side}.conv_in.{{}}.*",
        **_block(f"{side}.{levels}.{{i}}.block.{{j}}", f"{side}.levels.{own}.blocks.{{j}}"),
        **_attention(f"{side}.{levels}.{{i}}.attn.{{j}}", f"{side}.levels.{own}.attentions.{{j}}"),
        f"{side}.{levels}.{{i}}.{resample}.conv{{n}}.conv3d.*": f"{side}.levels.{own}.resample.conv{{n}}.*",
        **_block(f"{side}.mid.block_1", f"{side}.mid.0"),
        **_attention(f"{side}.mid.attn_1", f"{side}.mid.1"),
        **_block(f"{side}.mid.block_2", f"{side}.mid.2"),
        f"{side}.norm_out.norm.*": f"{side}.norm_out.*",
        f"{side}.conv_out.{{}}.conv3d.*": f"{side}.conv_out.{{}}.*",
    }


KEY_MAP = KeyMap(
    {
        **_side("encoder", "down", "{i}", "downsample"),
        "quant_conv.conv3d.*": "to_latent.*",
        "post_quant_conv.conv3d.*": "from_codes.*",
        **_side("decoder", "up", "{-i}", "upsample"),  # stored finest first
        # constants that TorchScript files list beside the weights
        "encoder.patcher3d.*": None,
        "decoder.unpatcher3d.*": None,
        "encoder.patcher.*": None,
        "decoder.unpatcher.*": None,
        "quantizer.*": None,
        "inv_quant.*": None,
    },
    transforms={f"*.space.{name}.weight": lambda weight: weight.squeeze(-1) for name in ("q", "k", "v", "proj_out")},
)
