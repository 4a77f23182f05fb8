"""MaskBit's tokenizers: one convolutional network without attention, "VQGAN+", with bits (LFQ) or a codebook (VQ).

Paper: arXiv 2409.16211. Original: markweberdev/maskbit (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.maskgit import MaskGITDecoder, MaskGITEncoder
from zoo.quantizers import (
    BinaryConfig,
    BinaryEntropyConfig,
    Quantized,
    QuantizerConfig,
    SoftEntropyConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class MaskBitConfig(Config):
    """Sizes of the network; the defaults are those of the published 14 bit model."""

    channels: int = 128  # width of the first level
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level of the encoder
    decoder_blocks: int | None = None  # the same of the decoder; None: as many as the encoder
    strided_convolution: bool = True  # the encoder halves the size by a strided convolution, else by averaging
    norm_groups: int = 32
    quantizer: QuantizerConfig = BinaryConfig(bits=14, entropy=BinaryEntropyConfig(temperature=0.01, floor=1e-5))
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)


@register("maskbit")
class MaskBit(Tokenizer):
    """Images (B, C, H, W) in [0, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: MaskBitConfig) -> None:
        stride = 2 ** (len(config.channel_multipliers) - 1)
        spec = InputSpec("image", channels=config.in_channels, value_range=(0.0, 1.0), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        dim, groups = config.quantizer.dim, config.norm_groups
        self.encoder = MaskGITEncoder(
            config.channels,
            widths,
            config.blocks,
            dim,
            groups,
            strided_convolution=config.strided_convolution,
            in_channels=config.in_channels,
        )
        blocks = config.decoder_blocks or config.blocks
        self.decoder = MaskGITDecoder(dim, widths[::-1], blocks, groups, out_channels=config.in_channels)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.movedim(-1, 1))


def config_from_original(meta: dict[str, Any]) -> MaskBitConfig:
    """The config of the original's `vq_model` section, as a fixture or a published listing states it."""
    kwargs = meta["original"]["kwargs"]
    temperature, gamma = kwargs["entropy_loss_temperature"], kwargs["entropy_gamma"]
    weighed = kwargs["entropy_loss_weight"] != 0
    quantizer: QuantizerConfig
    if kwargs["quantizer_type"] == "lookup-free":
        entropy = BinaryEntropyConfig(temperature, gamma, floor=1e-5) if weighed else None
        quantizer = BinaryConfig(kwargs["token_size"], entropy)
    else:
        quantizer = VectorConfig(
            codebook_size=kwargs["codebook_size"],
            dim=kwargs["token_size"],
            metric="cosine" if kwargs.get("use_l2_normalisation") else "euclidean",
            entropy=SoftEntropyConfig(temperature, gamma, clamp=1e-5) if weighed else None,
        )
    return MaskBitConfig(
        in_channels=kwargs.get("num_channels", 3),
        channels=kwargs["hidden_channels"],
        channel_multipliers=tuple(kwargs["channel_mult"]),
        blocks=kwargs["num_res_blocks"],
        decoder_blocks=kwargs.get("num_res_blocks_decoder"),
        strided_convolution=kwargs["sample_with_conv"],
        norm_groups=kwargs.get("norm_num_groups", 32),
        quantizer=quantizer,
    )


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing: the MaskGIT weights store the decoder the other way round."""
    return KEY_MAP_LEGACY if meta["original"]["kwargs"].get("legacy") else KEY_MAP


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names and weights; `loss.quantizer` is their sum."""
    kwargs, losses, statistics = meta["original"]["kwargs"], quantized.losses, quantized.statistics
    zero = losses["commitment"].new_zeros(())
    weighed = {
        "loss.commitment": kwargs["commitment_cost"] * losses["commitment"],
        "loss.codebook": losses.get("codebook", zero),
        "loss.entropy": kwargs["entropy_loss_weight"] * losses.get("entropy", zero),
    }
    return {
        "loss.quantizer": torch.stack(list(weighed.values())).sum(),
        **weighed,
        "statistic.per_sample_entropy": statistics.get("sample_entropy", zero),
        "statistic.avg_entropy": kwargs["entropy_gamma"] * statistics.get("codebook_entropy", zero),
    }


_SHARED = {
    "encoder.conv_in.*": "encoder.conv_in.*",
    "encoder.down.{}.res_blocks.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
    "encoder.down.{}.res_blocks.{}.*": "encoder.levels.{}.blocks.{}.*",
    "encoder.down.{}.down_conv.*": "encoder.levels.{}.resample.conv.*",
    "encoder.mid.res_blocks.{}.*": "encoder.mid.{}.*",
    "encoder.norm_out.*": "encoder.norm_out.*",
    "encoder.conv_out.*": "encoder.conv_out.*",
    "quantize.embedding.weight": "quantizer.codebook.weight",
    "quantize.bits_to_indices": None,  # powers of two
    "quantize.codebook": None,  # all sign vectors, which are computed
    "decoder.conv_in.*": "decoder.conv_in.*",
    "decoder.mid.res_blocks.{}.*": "decoder.mid.{}.*",
    "decoder.norm_out.*": "decoder.norm_out.*",
    "decoder.conv_out.*": "decoder.conv_out.*",
}

KEY_MAP = KeyMap(
    {
        **_SHARED,
        "decoder.up.{}.res_blocks.{}.nin_shortcut.*": "decoder.levels.{}.blocks.{}.shortcut.*",
        "decoder.up.{}.res_blocks.{}.*": "decoder.levels.{}.blocks.{}.*",
        "decoder.up.{}.upsample_conv.*": "decoder.levels.{}.resample.conv.*",
    }
)

KEY_MAP_LEGACY = KeyMap(
    {
        **_SHARED,
        "decoder.up.{i}.res_blocks.{j}.nin_shortcut.*": "decoder.levels.{-i}.blocks.{j}.shortcut.*",  # finest first
        "decoder.up.{i}.res_blocks.{j}.*": "decoder.levels.{-i}.blocks.{j}.*",
        "decoder.up.{i}.upsample_conv.*": "decoder.levels.{-i}.resample.conv.*",
    }
)
