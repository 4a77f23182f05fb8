"""VQGAN: a convolutional autoencoder with a codebook, the ancestor of most image tokenizers; VQ or Gumbel-softmax.

Paper: arXiv 2012.09841. Original: CompVis/taming-transformers (MIT); latent-diffusion's VQ models have the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config, require_arguments
from zoo.interop.diffusers import VQArchitecture
from zoo.layers.vqgan import Decoder, Encoder, levels
from zoo.quantizers import GumbelConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.sizes import VQGANSizes, quantizer_of
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class TamingVQGANConfig(Config):
    """Sizes of the network; the defaults are those of the published f16 model."""

    channels: int = 128  # width of the first convolution
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level; the decoder has one more
    resolution: int = 256  # with attention_resolutions it places attention, whatever the size of the input
    attention_resolutions: tuple[int, ...] = (16,)
    latent_channels: int = 256
    norm_groups: int = 32
    dropout: float = 0.0
    quantizer: QuantizerConfig = VectorConfig(codebook_size=1024, dim=256)
    in_channels: int = 3  # of the images
    middle_attention: bool = True  # between the two blocks of the coarsest resolution

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)


@register("taming_vqgan")
class TamingVQGAN(Tokenizer):
    """Images (B, C, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: TamingVQGANConfig) -> None:
        count = len(config.channel_multipliers)
        spec = InputSpec("image", channels=config.in_channels, value_range=(-1.0, 1.0), multiple=2 ** (count - 1))
        super().__init__(config, spec, config.quantizer)
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        attention = [config.resolution // 2**i in config.attention_resolutions for i in range(count)]
        z, groups, dropout = config.latent_channels, config.norm_groups, config.dropout
        down = levels(widths, config.blocks, attention)
        up = levels(widths[::-1], config.blocks + 1, attention[::-1])
        middle = config.middle_attention
        self.encoder = Encoder(config.in_channels, config.channels, down, z, groups, dropout, middle_attention=middle)
        self.to_latent = nn.Conv2d(z, config.quantizer.dim, 1)
        self.from_codes = nn.Conv2d(config.quantizer.dim, z, 1)
        self.decoder = Decoder(z, up, config.in_channels, groups, dropout, middle_attention=middle)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x)).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes.movedim(-1, 1)))


def network_from_original(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Fields of `TamingVQGANConfig` other than the quantizer, from the original's constructor arguments.

    Raises:
        ValueError: indices that a file renumbers.
    """
    require_arguments(kwargs, {"remap": None}, "indices of the codebook itself")
    network = kwargs["ddconfig"]
    attends = network.get("attn_type", "vanilla") != "none"
    return {
        "in_channels": network.get("in_channels", 3),
        "channels": network["ch"],
        "channel_multipliers": tuple(network["ch_mult"]),
        "blocks": network["num_res_blocks"],
        "resolution": network["resolution"],
        "attention_resolutions": tuple(network["attn_resolutions"]) if attends else (),
        "middle_attention": attends,
        "latent_channels": network["z_channels"],
        "norm_groups": kwargs.get("norm_num_groups", 32),
        "dropout": network.get("dropout", 0.0),
    }


KL_WEIGHT = 1e-8  # of GumbelVQ, where none is stated


def config_from_original(meta: dict[str, Any]) -> TamingVQGANConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    kwargs = meta["original"]["kwargs"]
    gumbel = meta["original"].get("class") == "GumbelVQ"
    kind = GumbelConfig if gumbel else VectorConfig
    quantizer = kind(codebook_size=kwargs["n_embed"], dim=kwargs["embed_dim"])
    return TamingVQGANConfig(**network_from_original(kwargs), quantizer=quantizer)


def sizes_from_tensors(own: Mapping[str, Tensor], stated: TamingVQGANConfig) -> dict[str, Any]:
    """Fields of the config that the tensors of a file tell; raises as `VQGANSizes.of`."""
    sizes = VQGANSizes.of(own, stated.norm_groups)
    return {
        **sizes.network(stated.resolution),
        "middle_attention": "encoder.mid.1.q.weight" in own,
        "quantizer": quantizer_of(own, stated.quantizer),
    }


def config_from_diffusers(architecture: VQArchitecture) -> TamingVQGANConfig:
    """The config of a VQModel with attention in the middle; raises as `network_from_diffusers`."""
    return TamingVQGANConfig(**network_from_diffusers(architecture))


def network_from_diffusers(architecture: VQArchitecture) -> dict[str, Any]:
    """Fields of the network and its quantizer, of a VQModel with attention in the middle.

    Raises:
        ValueError: none in the middle, unequal attention of encoder and decoder, or widths that are no multiples of
            the first.
    """
    if not architecture.middle_attention or architecture.attention != architecture.decoder_attention:
        found = (architecture.attention, architecture.decoder_attention, architecture.middle_attention)
        raise ValueError(
            f"expected attention in the middle, and at the same levels of encoder and decoder, got {found}"
        )
    count = len(architecture.widths)
    return {
        "channels": architecture.widths[0],
        "channel_multipliers": architecture.multipliers,
        "blocks": architecture.blocks,
        "resolution": 2**count,
        "attention_resolutions": tuple(2 ** (count - i) for i in range(count) if architecture.attention[i]),
        "latent_channels": architecture.latent_channels,
        "norm_groups": architecture.norm_groups,
        "quantizer": VectorConfig(codebook_size=architecture.codebook_size, dim=architecture.dim),
        "in_channels": architecture.channels,
    }


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original weighs the codebook term, not the commitment, by beta = 0.25; of the Gumbel model it returns the
    divergence from uniform use, which exists in training alone."""
    losses = quantized.losses
    if meta["original"].get("class") == "GumbelVQ":
        return (
            {"loss.kl": meta["original"]["kwargs"].get("kl_weight", KL_WEIGHT) * losses["kl"]} if "kl" in losses else {}
        )
    return {"loss.quant": losses["commitment"] + 0.25 * losses["codebook"]}


KEY_MAP = KeyMap(
    {
        "encoder.conv_in.*": "encoder.conv_in.*",
        "encoder.down.{}.block.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
        "encoder.down.{}.block.{}.*": "encoder.levels.{}.blocks.{}.*",
        "encoder.down.{}.attn.{}.*": "encoder.levels.{}.attentions.{}.*",
        "encoder.down.{}.downsample.*": "encoder.levels.{}.resample.*",
        "encoder.mid.block_1.*": "encoder.mid.0.*",
        "encoder.mid.attn_1.*": "encoder.mid.1.*",
        "encoder.mid.block_2.*": "encoder.mid.2.*",
        "encoder.norm_out.*": "encoder.norm_out.*",
        "encoder.conv_out.*": "encoder.conv_out.*",
        "quant_conv.*": "to_latent.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "quantize.proj.weight": "quantizer.logits.weight",
        "quantize.proj.bias": "quantizer.logits.bias",
        "quantize.embed.weight": "quantizer.codebook.weight",
        "post_quant_conv.*": "from_codes.*",
        "decoder.conv_in.*": "decoder.conv_in.*",
        "decoder.mid.block_1.*": "decoder.mid.0.*",
        "decoder.mid.attn_1.*": "decoder.mid.1.*",
        "decoder.mid.block_2.*": "decoder.mid.2.*",
        "decoder.up.{i}.block.{j}.nin_shortcut.*": "decoder.levels.{-i}.blocks.{j}.shortcut.*",  # stored finest first
        "decoder.up.{i}.block.{j}.*": "decoder.levels.{-i}.blocks.{j}.*",
        "decoder.up.{i}.attn.{j}.*": "decoder.levels.{-i}.attentions.{j}.*",
        "decoder.up.{i}.upsample.*": "decoder.levels.{-i}.resample.*",
        "decoder.norm_out.*": "decoder.norm_out.*",
        "decoder.conv_out.*": "decoder.conv_out.*",
        "loss.*": None,  # discriminator and perceptual network of the original's training
        "model_ema.*": None,  # averages, with which latent-diffusion does not decode
        "colorize": None,  # colours in which labels are shown
    },
    transforms={"quantizer.logits.weight": lambda weight: weight.flatten(1)},  # a 1x1 convolution
)


def _key_map_within(stage: str, other: str) -> KeyMap:
    """Of one of the two VQGANs that lie in the file of a transformer of codes."""
    rest = {"transformer.*": None, f"{other}.*": None}
    return replace(KEY_MAP, patterns={**KEY_MAP.patterns, **rest}, prefix=f"{stage}.")


KEY_MAP_FIRST_STAGE = _key_map_within("first_stage_model", "cond_stage_model")  # of images
KEY_MAP_CONDITION = _key_map_within("cond_stage_model", "first_stage_model")  # of maps of labels
