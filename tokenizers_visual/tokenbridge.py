"""TokenBridge: a trained continuous VAE (KL-16 of MAR) whose latents become tokens afterwards, dimension by dimension.

Paper: arXiv 2503.16430. Original: YuqingWang1029/TokenBridge (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenizers_visual import taming_vqgan
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.interop.diffusers import KLArchitecture
from zoo.layers.base_autoencoder import VariationalBaseConfig
from zoo.quantizers import DimensionWiseConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer

_OF_THE_BASE = (  # fields of the config that are those of its base
    "channels", "channel_multipliers", "blocks", "attention", "norm_groups", "scale", "shift", "projections",
)  # fmt: skip


@dataclass(frozen=True)
class TokenBridgeConfig(Config):
    """Sizes of the network; the defaults are those of the published model. The latents are as wide as the codes."""

    channels: int = 128  # width of the first convolution
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    attention: tuple[bool, ...] = (False, False, False, False, True)  # of the encoder, one per level
    norm_groups: int = 32
    scale: float = 0.2325  # factor that brings the latents to about unit variance before quantisation
    shift: float = 0.0  # taken off the latents before
    projections: bool = True  # 1x1 convolutions before and after the latents; the autoencoder of SD3, say, has none
    quantizer: QuantizerConfig = DimensionWiseConfig(dim=16, bits=6, limit=5.0, deviations=3.0)

    def __post_init__(self) -> None:
        self.require(self.scale > 0, "a scale > 0", self.scale)
        self.base()

    def base(self) -> VariationalBaseConfig:
        """The continuous autoencoder."""
        return VariationalBaseConfig(dim=self.quantizer.dim, **{name: getattr(self, name) for name in _OF_THE_BASE})


@register("tokenbridge")
class TokenBridge(Tokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of the stride f -> for each of the D latent dimensions a grid
    of tokens (B, H / f, W / f).

    The latent is the mean of the posterior, so that encoding is deterministic; `base.latent` takes noise for a sample.
    """

    def __init__(self, config: TokenBridgeConfig) -> None:
        base = config.base()
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=base.stride)
        super().__init__(config, spec, config.quantizer)
        self.base = base.build()
        self.scale, self.shift = config.scale, config.shift

    def latent(self, x: Tensor) -> Tensor:
        return self.base.latent(x)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.base.decode(codes / self.scale + self.shift)


def config_from_original(meta: dict[str, Any]) -> TokenBridgeConfig:
    """The config of the original's constructor arguments; what the original hard-codes, a fixture may narrow."""
    kwargs, network = meta["original"]["kwargs"], meta["original"].get("encoder_kwargs", {})
    multipliers = tuple(kwargs["ch_mult"])
    resolution, attended = network.get("resolution", 256), network.get("attn_resolutions", (16,))
    return TokenBridgeConfig(
        channels=network.get("ch", 128),
        channel_multipliers=multipliers,
        blocks=network.get("num_res_blocks", 2),
        attention=tuple(resolution // 2**i in attended for i in range(len(multipliers))),
        norm_groups=meta.get("norm_groups", 32),
        scale=kwargs.get("scale", 0.2325),
        quantizer=DimensionWiseConfig(
            dim=kwargs["embed_dim"],
            bits=kwargs.get("bits", 6),
            limit=kwargs.get("range", 5.0),
            deviations=kwargs.get("std_range", 3.0),
        ),
    )


def config_from_diffusers(architecture: KLArchitecture) -> TokenBridgeConfig:
    """The config of an AutoencoderKL, whose latents get the published steps.

    Raises:
        ValueError: attention in the decoder's levels or none in the middle, or widths that are no multiples of the
            first.
    """
    base = architecture.base()
    quantizer = DimensionWiseConfig(dim=base.dim, bits=6, limit=5.0, deviations=3.0)
    return TokenBridgeConfig(quantizer=quantizer, **{name: getattr(base, name) for name in _OF_THE_BASE})


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """Quantisation after training has none."""
    return {}


KEY_MAP = KeyMap(
    {
        **{
            name: own and f"base.{own}"
            for name, own in taming_vqgan.KEY_MAP.patterns.items()
            if not name.startswith("quantize.")
        },
        "quant_conv.*": "base.to_posterior.*",
        "post_quant_conv.*": "base.from_latent.*",
    }
)
