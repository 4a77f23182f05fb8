"""The VQGANs of MaskGIT's re-implementations: open-muse's two networks, and diffusers' VQModel as aMUSEd has it.

Papers: MaskGIT arXiv 2202.04200, Muse arXiv 2301.00704, aMUSEd arXiv 2401.01808. Originals: huggingface/open-muse and
huggingface/diffusers (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tokenizers_visual import taming_vqgan
from zoo.checkpoint import KeyMap
from zoo.config import Config, require_arguments
from zoo.interop.diffusers import KEY_MAP as KEY_MAP_DIFFUSERS
from zoo.interop.diffusers import VQArchitecture
from zoo.layers.maskgit import MaskGITDecoder, MaskGITEncoder
from zoo.layers.vqgan import Decoder, Encoder, levels
from zoo.quantizers import Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.sizes import VQGANSizes, quantizer_of
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class MaskGITVQConfig(Config):
    """Sizes of the network; the defaults are those of open-muse's f16 model."""

    network: Literal["maskgit", "vqgan"] = "maskgit"
    channels: int = 128  # width of the first convolution
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)  # one per level, finest first; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level; the decoder of "vqgan" has one more
    latent_channels: int = 256  # of "vqgan", before the projection to the codes; "maskgit" has none
    attention: tuple[bool, ...] = (False, False, False, False, False)  # of "vqgan", one per level
    middle_attention: bool = False  # of "vqgan"
    norm_groups: int = 32
    dropout: float = 0.0
    value_range: tuple[float, float] = (0.0, 1.0)  # of the images
    quantizer: QuantizerConfig = VectorConfig(codebook_size=1024, dim=256)
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        self.require(len(self.widths) > 0, "at least one level", self.widths)
        self.require(len(self.attention) == len(self.widths), f"attention of {len(self.widths)} levels", self.attention)
        self.require(
            self.network == "vqgan" or not (self.middle_attention or any(self.attention)),
            "no attention in the network maskgit",
            (self.attention, self.middle_attention),
        )


@register("maskgit_vq")
class MaskGITVQ(Tokenizer):
    """Images (B, C, H, W), H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: MaskGITVQConfig) -> None:
        stride = 2 ** (len(config.widths) - 1)
        spec = InputSpec("image", channels=config.in_channels, value_range=config.value_range, multiple=stride)
        super().__init__(config, spec, config.quantizer)
        z, dim, groups, dropout = config.latent_channels, config.quantizer.dim, config.norm_groups, config.dropout
        down, up, blocks = config.widths, config.widths[::-1], config.blocks
        self.to_latent: nn.Module = nn.Identity()
        self.from_codes: nn.Module = nn.Identity()
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.network == "maskgit":
            self.encoder = MaskGITEncoder(
                config.channels,
                down,
                blocks,
                dim,
                groups,
                dropout,
                strided_convolution=False,
                in_channels=config.in_channels,
            )
            self.decoder = MaskGITDecoder(dim, up, blocks, groups, dropout, out_channels=config.in_channels)
        else:
            # open-muse's encoder holds, but does not apply, the attention of levels of a single block
            attends = [has and blocks > 1 for has in config.attention]
            middle = config.middle_attention
            self.encoder = Encoder(
                config.in_channels,
                config.channels,
                levels(down, blocks, attends),
                z,
                groups,
                dropout,
                middle_attention=middle,
            )
            self.to_latent = nn.Conv2d(z, dim, 1)
            self.from_codes = nn.Conv2d(dim, z, 1)
            self.decoder = Decoder(
                z,
                levels(up, blocks + 1, config.attention[::-1]),
                config.in_channels,
                groups,
                dropout,
                middle_attention=middle,
            )

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x)).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes.movedim(-1, 1)))


def config_from_original(meta: dict[str, Any]) -> MaskGITVQConfig:
    """The config of the constructor arguments of one of the classes, as a fixture or a listing states them."""
    kwargs = meta["original"]["kwargs"]
    original = meta["original"].get("class") or kwargs["class"]
    if original.endswith("VQModel"):
        return config_from_diffusers(VQArchitecture.from_kwargs(kwargs))
    if original == "VQVAE":
        fixed = {"quantizer": "vq", "conv_downsample": False, "activation_fn": "swish", "norm_type": "GN"}
        require_arguments(kwargs, fixed, "MaskGIT's tokenizer as published")
        return MaskGITVQConfig(
            channels=kwargs["filters"],
            widths=tuple(kwargs["filters"] * multiplier for multiplier in kwargs["channel_multipliers"]),
            blocks=kwargs["num_res_blocks"],
            attention=(False,) * len(kwargs["channel_multipliers"]),
            quantizer=VectorConfig(kwargs["codebook_size"], kwargs["embedding_dim"]),
        )
    widths = tuple(kwargs["hidden_channels"] * multiplier for multiplier in kwargs["channel_mult"])
    vqgan = original == "VQGANModel"
    resolutions = kwargs["attn_resolutions"] if vqgan else ()
    return MaskGITVQConfig(
        network="vqgan" if vqgan else "maskgit",
        in_channels=kwargs.get("num_channels", 3),
        channels=kwargs["hidden_channels"],
        widths=widths,
        blocks=kwargs["num_res_blocks"],
        latent_channels=kwargs["z_channels"],
        attention=tuple(kwargs["resolution"] // 2**i in resolutions for i in range(len(widths))),
        middle_attention=vqgan and not kwargs["no_attn_mid_block"],
        norm_groups=kwargs.get("norm_num_groups", kwargs.get("norm_groups", 32)),
        dropout=kwargs["dropout"],
        quantizer=VectorConfig(kwargs["num_embeddings"], kwargs.get("quantized_embed_dim", kwargs["z_channels"])),
    )


def sizes_from_tensors(own: Mapping[str, Tensor], stated: MaskGITVQConfig) -> dict[str, Any]:
    """Fields of the config that the tensors of a file tell; raises as `VQGANSizes.of`."""
    sizes = VQGANSizes.of(own, stated.norm_groups)
    vqgan = "to_latent.weight" in own
    return {
        "network": "vqgan" if vqgan else "maskgit",
        "in_channels": sizes.in_channels,
        "channels": sizes.channels,
        "widths": sizes.widths,
        "blocks": sizes.blocks,
        "latent_channels": sizes.latent_channels if vqgan else stated.latent_channels,
        "attention": sizes.attention,
        "middle_attention": "encoder.mid.1.q.weight" in own,
        "quantizer": quantizer_of(own, stated.quantizer),
    }


def config_from_diffusers(architecture: VQArchitecture) -> MaskGITVQConfig:
    """The config of a VQModel.

    Raises:
        ValueError: unequal attention of encoder and decoder, or attention of levels of a single block.
    """
    attention = architecture.attention
    if attention != architecture.decoder_attention or (any(attention) and architecture.blocks == 1):
        found = (attention, architecture.decoder_attention)
        raise ValueError(
            f"expected attention at the same levels of encoder and decoder, of more than one block, got {found} and "
            f"{architecture.blocks} blocks"
        )
    return MaskGITVQConfig(
        network="vqgan",
        channels=architecture.widths[0],
        widths=architecture.widths,
        blocks=architecture.blocks,
        latent_channels=architecture.latent_channels,
        attention=attention,
        middle_attention=architecture.middle_attention,
        norm_groups=architecture.norm_groups,
        value_range=(-1.0, 1.0),
        quantizer=VectorConfig(architecture.codebook_size, architecture.dim),
        in_channels=architecture.channels,
    )


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing: each of the classes has its own names."""
    original, kwargs = meta["original"]["class"], meta["original"]["kwargs"]
    if original == "VQVAE":
        return _flax_key_map(len(kwargs["channel_multipliers"]), kwargs["num_res_blocks"])
    if original == "VQGANModel":
        return KEY_MAP_TAMING_SINGLE if kwargs["num_res_blocks"] == 1 else KEY_MAP_TAMING
    return KEY_MAP if original in ("MaskGitVQGAN", "PretrainedTokenizer") else KEY_MAP_DIFFUSERS


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """All but flax's weigh the codebook term, not the commitment."""
    beta = meta["original"]["kwargs"].get("commitment_cost", 0.25)
    return {"loss.quant": quantized.losses["commitment"] + beta * quantized.losses["codebook"]}


KEY_MAP = KeyMap(  # open-muse's MaskGitVQGAN
    {
        "encoder.conv_in.*": "encoder.conv_in.*",
        "encoder.down.{}.block.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
        "encoder.down.{}.block.{}.*": "encoder.levels.{}.blocks.{}.*",
        "encoder.mid.{}.*": "encoder.mid.{}.*",
        "encoder.norm_out.*": "encoder.norm_out.*",
        "encoder.conv_out.*": "encoder.conv_out.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "decoder.conv_in.*": "decoder.conv_in.*",
        "decoder.mid.{}.*": "decoder.mid.{}.*",
        "decoder.up.{i}.block.{j}.nin_shortcut.*": "decoder.levels.{-i}.blocks.{j}.shortcut.*",  # stored finest first
        "decoder.up.{i}.block.{j}.*": "decoder.levels.{-i}.blocks.{j}.*",
        "decoder.up.{i}.upsample_conv.*": "decoder.levels.{-i}.resample.conv.*",
        "decoder.norm_out.*": "decoder.norm_out.*",
        "decoder.conv_out.*": "decoder.conv_out.*",
    }
)

KEY_MAP_TAMING = KeyMap(taming_vqgan.KEY_MAP.patterns)  # open-muse's VQGANModel
KEY_MAP_TAMING_SINGLE = KeyMap({**KEY_MAP_TAMING.patterns, "encoder.down.{}.attn.0.*": None})  # which it does not apply


def _flax_key_map(levels: int, blocks: int) -> KeyMap:
    """Names of MaskGIT's own files, which count the layers of a kind in the order in which they run."""
    parts = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2", "Conv_2": "shortcut"}
    grid = [f"levels.{level}.blocks.{block}" for level in range(levels) for block in range(blocks)]
    mid = [f"mid.{block}" for block in range(blocks)]
    resamples = [f"levels.{level}.resample.conv" for level in range(levels - 1)]
    layers = {
        "encoder": {
            **{
                f"ResBlock_{i}.{theirs}": f"{place}.{own}"
                for i, place in enumerate(grid + mid)
                for theirs, own in parts.items()
            },
            "Conv_0": "conv_in",
            "GroupNorm_0": "norm_out",
            "Conv_1": "conv_out",
        },
        "decoder": {
            **{
                f"ResBlock_{i}.{theirs}": f"{place}.{own}"
                for i, place in enumerate(mid + grid)
                for theirs, own in parts.items()
            },
            **{f"Conv_{i}": place for i, place in enumerate(("conv_in", *resamples, "conv_out"))},
            "GroupNorm_0": "norm_out",
        },
    }
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    patterns = {
        f"{side}.{theirs}.{leaf}": f"{side}.{own}.{ours}"
        for side, names in layers.items()
        for theirs, own in names.items()
        for leaf, ours in leaves.items()
    }
    kernels = {"*": lambda value: value.permute(3, 2, 0, 1) if value.ndim == 4 else value}  # height, width, in, out
    return KeyMap({**patterns, "quantizer.codebook": "quantizer.codebook.weight"}, prefix="params.", transforms=kernels)


KEY_MAP_FLAX = _flax_key_map(5, 2)  # google-research/maskgit's own files
