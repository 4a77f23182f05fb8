"""Open-MAGVIT2's image tokenizer: a convolutional autoencoder with bits (LFQ); its decoder is told the codes' moments.

Paper: arXiv 2409.04410. Original: TencentARC/SEED-Voken (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.open_magvit2 import Decoder, Encoder
from zoo.quantizers import BinaryConfig, BinaryEntropyConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class OpenMAGVIT2Config(Config):
    """Sizes of the network; the defaults are those of the published 256 px model."""

    channels: int = 128  # width of the first level
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 4  # residual blocks a level, and in the middle
    norm_groups: int = 32
    quantizer: QuantizerConfig = BinaryConfig(bits=18, entropy=BinaryEntropyConfig(temperature=0.01, shift=1e-5))
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)


@register("open_magvit2")
class OpenMAGVIT2(Tokenizer):
    """Images (B, C, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: OpenMAGVIT2Config) -> None:
        stride = 2 ** (len(config.channel_multipliers) - 1)
        spec = InputSpec("image", channels=config.in_channels, value_range=(-1.0, 1.0), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        dim, groups = config.quantizer.dim, config.norm_groups
        self.encoder = Encoder(config.in_channels, [config.channels, *widths], config.blocks, dim, groups)
        self.decoder = Decoder(dim, widths, config.blocks, config.in_channels, groups)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.movedim(-1, 1))


def config_from_original(meta: dict[str, Any]) -> OpenMAGVIT2Config:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    kwargs = meta["original"]["kwargs"]
    network = kwargs["ddconfig"]
    # the config holds the ratio of the two weights; `original_losses` has the first
    gamma = kwargs["batch_maximization_weight"] / kwargs["sample_minimization_weight"]
    return OpenMAGVIT2Config(
        in_channels=network.get("in_channels", 3),
        channels=network["ch"],
        channel_multipliers=tuple(network["ch_mult"]),
        blocks=network["num_res_blocks"],
        norm_groups=kwargs.get("norm_num_groups", 32),
        quantizer=BinaryConfig(network["z_channels"], BinaryEntropyConfig(temperature=0.01, gamma=gamma, shift=1e-5)),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names, unweighted; it has none in evaluation mode."""
    losses, statistics = quantized.losses, quantized.statistics
    if "entropy" not in losses:
        return {}
    return {
        "loss.commit": losses["commitment"],
        "loss.entropy": meta["original"]["kwargs"]["sample_minimization_weight"] * losses["entropy"],
        "statistic.sample_entropy": statistics["sample_entropy"],
        "statistic.batch_entropy": statistics["codebook_entropy"],
    }


KEY_MAP = KeyMap(
    {
        "encoder.conv_in.*": "encoder.conv_in.*",
        "encoder.down.{}.block.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
        "encoder.down.{}.block.{}.*": "encoder.levels.{}.blocks.{}.*",
        "encoder.down.{}.downsample.*": "encoder.levels.{}.resample.*",
        "encoder.mid_block.{}.*": "encoder.mid.{}.*",
        "encoder.norm_out.*": "encoder.norm_out.*",
        "encoder.conv_out.*": "encoder.conv_out.*",
        "decoder.conv_in.*": "decoder.conv_in.*",
        "decoder.mid_block.{}.*": "decoder.mid.{}.*",
        "decoder.adaptive.{i}.*": "decoder.levels.{-i}.adaptive.*",  # stored finest first
        "decoder.up.{i}.block.{j}.nin_shortcut.*": "decoder.levels.{-i}.blocks.{j}.shortcut.*",
        "decoder.up.{i}.block.{j}.*": "decoder.levels.{-i}.blocks.{j}.*",
        "decoder.up.{i}.upsample.conv1.*": "decoder.levels.{-i}.resample.conv.*",
        "decoder.norm_out.*": "decoder.norm_out.*",
        "decoder.conv_out.*": "decoder.conv_out.*",
        "loss.*": None,  # discriminator and perceptual network of the original's training
    },
    ema="model_ema.",  # the averaged weights, with which the original evaluates, stand beside the raw ones
)
