"""Encoder and decoder of the VQGAN line (arXiv 2012.09841): levels of residual blocks, attention where a level asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from zoo.layers.attention import SpatialAttention
from zoo.layers.inference import channels_last, norm_silu
from zoo.layers.resnet import Downsample, ResBlock, Upsample


@dataclass(frozen=True)
class Level:
    """One resolution: width, number of residual blocks, attention after each block, and a change of size at the end."""

    width: int
    blocks: int
    attention: bool = False
    resample: bool = False


def levels(widths: Sequence[int], blocks: int, attention: Sequence[bool]) -> list[Level]:
    """Levels in the order in which they run, each but the last with a change of size: finest first for an encoder,
    coarsest first for a decoder.

    Args:
        widths: of each level.
        blocks: residual blocks of every level.
        attention: whether a level has it.
    """
    last = len(widths) - 1
    return [Level(width, blocks, has, i < last) for i, (width, has) in enumerate(zip(widths, attention, strict=True))]


class LevelBlocks(nn.Module):
    """Blocks, each with attention after it where there are `attentions`, and a change of size at the end."""

    def __init__(self, blocks: Iterable[nn.Module], attentions: Iterable[nn.Module], resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions) > 0:
                x = self.attentions[i](x)
        return self.resample(x)


def _blocks(
    channels: int, level: Level, groups: int, dropout: float, resample: type[nn.Module], fused: bool
) -> LevelBlocks:
    widths = [channels] + [level.width] * level.blocks
    return LevelBlocks(
        (ResBlock(a, b, groups, dropout) for a, b in pairwise(widths)),
        (SpatialAttention(level.width, groups, fused=fused) for _ in range(level.blocks * level.attention)),
        resample(level.width) if level.resample else nn.Identity(),
    )


def _middle(channels: int, groups: int, dropout: float, attention: bool, fused: bool) -> nn.Sequential:
    return nn.Sequential(
        ResBlock(channels, channels, groups, dropout),
        SpatialAttention(channels, groups, fused=fused) if attention else nn.Identity(),
        ResBlock(channels, channels, groups, dropout),
    )


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H / f, W / f), f = 2 ** number of levels that resample.

    Args:
        channels: width after the first convolution.
        levels: from the finest to the coarsest.
        middle_attention: attention between the two blocks after the coarsest level.
        fused_attention: how attentions hold their weights, see `SpatialAttention`.
        final_activation: SiLU between the last norm and the last convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        levels: Sequence[Level],
        out_channels: int,
        groups: int = 32,
        dropout: float = 0.0,
        *,
        middle_attention: bool = True,
        fused_attention: bool = False,
        final_activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        widths = [channels, *(level.width for level in levels)]
        self.levels = nn.ModuleList(
            _blocks(width, level, groups, dropout, Downsample, fused_attention) for width, level in zip(widths, levels)
        )
        self.mid = _middle(widths[-1], groups, dropout, middle_attention, fused_attention)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.final_activation = final_activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(channels_last(x))
        for level in self.levels:
            x = level(x)
        x = self.mid(x)
        x = norm_silu(self.norm_out, x, spare=True) if self.final_activation else self.norm_out(x)
        return self.conv_out(x)


class Decoder(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, h * f, w * f), f = 2 ** number of levels that resample.

    Args:
        levels: from the coarsest to the finest.
        middle_attention: attention between the two blocks before the coarsest level.
        fused_attention: how attentions hold their weights, see `SpatialAttention`.
        final_activation: SiLU between the last norm and the last convolution.
    """

    def __init__(
        self,
        in_channels: int,
        levels: Sequence[Level],
        out_channels: int,
        groups: int = 32,
        dropout: float = 0.0,
        *,
        middle_attention: bool = True,
        fused_attention: bool = False,
        final_activation: bool = True,
    ) -> None:
        super().__init__()
        widths = [levels[0].width, *(level.width for level in levels)]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups, dropout, middle_attention, fused_attention)
        self.levels = nn.ModuleList(
            _blocks(width, level, groups, dropout, Upsample, fused_attention) for width, level in zip(widths, levels)
        )
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.final_activation = final_activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(channels_last(x)))
        for level in self.levels:
            x = level(x)
        x = norm_silu(self.norm_out, x, spare=True) if self.final_activation else self.norm_out(x)
        return self.conv_out(x).contiguous()
