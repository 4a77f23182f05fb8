"""VAR's image tokenizer: a VQGAN whose latents are coded as residuals on ever finer grids.

Paper: arXiv 2404.02905. Original: FoundationVision/VAR (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokenizers_visual import taming_vqgan
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.vqgan import Decoder, Encoder, levels
from zoo.quantizers import MultiScaleConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class VARVQConfig(Config):
    """Sizes of the network; the defaults are those of the published model for 256 px."""

    channels: int = 160  # width of the first convolution
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    latent_channels: int = 32
    projection_size: int = 3  # kernel of the convolutions before and after the quantizer
    norm_groups: int = 32
    dropout: float = 0.0
    quantizer: QuantizerConfig = MultiScaleConfig(level=VectorConfig(codebook_size=4096, dim=32))

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)
        self.require(self.projection_size % 2 == 1, "an odd projection_size", self.projection_size)


@register("var_vq")
class VARVQ(Tokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of the stride f -> tokens of several scales, the last of them a
    grid (B, H / f, W / f). The first scales alone decode to a coarser image.
    """

    def __init__(self, config: VARVQConfig) -> None:
        count = len(config.channel_multipliers)
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=2 ** (count - 1))
        super().__init__(config, spec, config.quantizer)
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        attention = [i == count - 1 for i in range(count)]
        z, dim, groups, dropout = config.latent_channels, config.quantizer.dim, config.norm_groups, config.dropout
        down = levels(widths, config.blocks, attention)
        up = levels(widths[::-1], config.blocks + 1, attention[::-1])
        size, padding = config.projection_size, config.projection_size // 2
        self.encoder = Encoder(3, config.channels, down, z, groups, dropout, fused_attention=True)
        self.to_latent = nn.Conv2d(z, dim, size, padding=padding)
        self.from_codes = nn.Conv2d(dim, z, size, padding=padding)
        self.decoder = Decoder(z, up, 3, groups, dropout, fused_attention=True)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x)).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes.movedim(-1, 1)))


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "vocab_size": 4096, "z_channels": 32, "ch": 128, "dropout": 0.0, "beta": 0.25, "using_znorm": False,
    "quant_conv_ks": 3, "quant_resi": 0.5, "share_quant_resi": 4, "v_patch_nums": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> VARVQConfig:
    """The config of the original's constructor arguments; what the original hard-codes, a fixture may narrow."""
    kwargs = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    network = meta["original"].get("ddconfig_overrides", {})
    dim = kwargs["z_channels"]
    level = VectorConfig(codebook_size=kwargs["vocab_size"], dim=dim)
    if kwargs["using_znorm"]:
        level = VectorConfig(codebook_size=kwargs["vocab_size"], dim=dim, metric="cosine", unit_vectors=False)
    return VARVQConfig(
        channels=kwargs["ch"],
        channel_multipliers=tuple(network.get("ch_mult", (1, 1, 2, 2, 4))),
        blocks=network.get("num_res_blocks", 2),
        latent_channels=dim,
        projection_size=kwargs["quant_conv_ks"],
        norm_groups=meta.get("norm_groups", 32),
        dropout=kwargs["dropout"],
        quantizer=MultiScaleConfig(
            level=level,
            ladder=tuple(kwargs["v_patch_nums"]),
            num_convolutions=kwargs["share_quant_resi"],
            residual_ratio=abs(kwargs["quant_resi"]),
        ),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original weighs the commitment by beta."""
    losses, beta = quantized.losses, meta["original"]["kwargs"].get("beta", _ORIGINAL_DEFAULTS["beta"])
    return {"loss.vq": losses["codebook"] + beta * losses["commitment"]}


KEY_MAP = KeyMap(
    {
        **{name: own for name, own in taming_vqgan.KEY_MAP.patterns.items() if not name.startswith("quantize.")},
        "quantize.embedding.weight": "quantizer.level.codebook.weight",
        "quantize.quant_resi.qresi_ls.{}.*": "quantizer.convolutions.{}.*",
        "quantize.quant_resi.qresi.*": "quantizer.convolutions.0.*",  # one for all scales
        "quantize.quant_resi.{}.*": "quantizer.convolutions.{}.*",  # one for each scale
        "quantize.ema_vocab_hit_SV": None,  # how often the original's training used each code
    }
)
