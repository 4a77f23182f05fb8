"""MoVQ: a VQGAN whose decoder takes the codes again in every norm, as Kandinsky 2 and open-muse have it.

Paper: arXiv 2209.09002. Originals: ai-forever/Kandinsky-2, huggingface/open-muse and huggingface/diffusers, whose
VQModel it is with norms of the kind "spatial" (all Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokenizers_visual import taming_vqgan
from tokenizers_visual.taming_vqgan import network_from_diffusers, network_from_original
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.interop.diffusers import KEY_MAP as KEY_MAP_DIFFUSERS
from zoo.interop.diffusers import MoVQArchitecture
from zoo.layers.movq import MoVQDecoder
from zoo.layers.vqgan import Encoder, levels
from zoo.quantizers import Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.sizes import VQGANSizes, quantizer_of
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class MoVQConfig(Config):
    """Sizes of the network; the defaults are those of Kandinsky 2's."""

    channels: int = 128  # width of the first convolution
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    resolution: int = 256  # with attention_resolutions it places attention, whatever the size of the input
    attention_resolutions: tuple[int, ...] = (32,)
    latent_channels: int = 4
    norm_groups: int = 32  # of the encoder
    decoder_norm_groups: int = 32
    dropout: float = 0.0
    quantizer: QuantizerConfig = VectorConfig(codebook_size=16384, dim=4)
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)


@register("movq")
class MoVQ(Tokenizer):
    """Images (B, C, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: MoVQConfig) -> None:
        count = len(config.channel_multipliers)
        spec = InputSpec("image", channels=config.in_channels, value_range=(-1.0, 1.0), multiple=2 ** (count - 1))
        super().__init__(config, spec, config.quantizer)
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        attention = [config.resolution // 2**i in config.attention_resolutions for i in range(count)]
        down = levels(widths, config.blocks, attention)
        up = levels(widths[::-1], config.blocks + 1, attention[::-1])
        z, dim, colours = config.latent_channels, config.quantizer.dim, config.in_channels
        self.encoder = Encoder(colours, config.channels, down, z, config.norm_groups, config.dropout)
        self.to_latent = nn.Conv2d(z, dim, 1)
        self.from_codes = nn.Conv2d(dim, z, 1)
        self.decoder = MoVQDecoder(z, up, colours, dim, config.decoder_norm_groups, config.dropout)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x)).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        codes = codes.movedim(-1, 1)
        return self.decoder(self.from_codes(codes), codes)


def config_from_original(meta: dict[str, Any]) -> MoVQConfig:
    """The config of the constructor arguments of one of the classes, as a fixture or a listing states them.

    Raises:
        ValueError: attention at levels of a single block, which open-muse holds and does not apply in its encoder.
    """
    kwargs = meta["original"]["kwargs"]
    if meta["original"]["class"].endswith("VQModel"):
        return config_from_diffusers(MoVQArchitecture.from_kwargs(kwargs))
    if "ddconfig" not in kwargs:  # open-muse's
        blocks, attention = kwargs["num_res_blocks"], kwargs["attn_resolutions"]
        if blocks == 1 and attention:
            raise ValueError(f"expected more than one block a level where there is attention, got {attention}")
        shared = ("resolution", "num_res_blocks", "attn_resolutions", "z_channels", "dropout")
        kwargs = {
            "ddconfig": {
                **{name: kwargs[name] for name in shared},
                "in_channels": kwargs.get("num_channels", 3),
                "ch": kwargs["hidden_channels"],
                "ch_mult": kwargs["channel_mult"],
            },
            "n_embed": kwargs["num_embeddings"],
            "embed_dim": kwargs["quantized_embed_dim"],
            "norm_num_groups": kwargs.get("norm_num_groups", 32),
        }
    network = network_from_original(kwargs)
    del network["middle_attention"]
    quantizer = VectorConfig(codebook_size=kwargs["n_embed"], dim=kwargs["embed_dim"])
    return MoVQConfig(**network, decoder_norm_groups=network["norm_groups"], quantizer=quantizer)


def sizes_from_tensors(own: Mapping[str, Tensor], stated: MoVQConfig) -> dict[str, Any]:
    """Fields of the config that the tensors of a file tell; raises as `VQGANSizes.of`."""
    sizes = VQGANSizes.of(own, stated.norm_groups, stated.decoder_norm_groups)
    return {**sizes.network(stated.resolution), "quantizer": quantizer_of(own, stated.quantizer)}


def config_from_diffusers(architecture: MoVQArchitecture) -> MoVQConfig:
    """The config of a VQModel with spatial norms and attention in the middle; raises as `network_from_diffusers`."""
    return MoVQConfig(**network_from_diffusers(architecture), decoder_norm_groups=architecture.decoder_norm_groups)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing."""
    return KEY_MAP_DIFFUSERS if meta["original"]["class"].endswith("VQModel") else KEY_MAP


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The originals weigh the codebook term, not the commitment, by beta = 0.25."""
    return {"loss.quant": quantized.losses["commitment"] + 0.25 * quantized.losses["codebook"]}


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[..., None, None] if weight.ndim == 2 else weight  # open-muse's attention has linear maps


KEY_MAP = KeyMap(
    {
        **taming_vqgan.KEY_MAP.patterns,
        **{  # averages, with which the original does not decode
            f"ema_{part}.*": None for part in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")
        },
    },
    transforms={
        f"*.{place}.{name}.weight": _as_convolution
        for place in ("mid.1", "attentions.*")
        for name in ("[qkv]", "proj_out")
    },
)
