"""LlamaGen's image tokenizer: a convolutional VQGAN with an 8-dimensional codebook on the unit sphere.

Paper: arXiv 2406.06525. Original: FoundationVision/LlamaGen (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.interop.diffusers import VQArchitecture
from zoo.interop.export import DEFAULT_SIDE
from zoo.interop.transformers import TransformersLayout
from zoo.layers.vqgan import Decoder, Encoder, levels
from zoo.quantizers import Quantized, QuantizerConfig, SoftEntropyConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens


@dataclass(frozen=True)
class LlamaGenVQConfig(Config):
    """Sizes of the network; the defaults are those of the published f16 model."""

    channels: int = 128  # width of the first level
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    decoder_channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # in the order of the encoder's, finest first
    blocks: int = 2  # residual blocks a level; the decoder has one more
    latent_channels: int = 256
    norm_groups: int = 32
    dropout: float = 0.0
    quantizer: QuantizerConfig = VectorConfig(codebook_size=16384, dim=8, metric="cosine")

    def __post_init__(self) -> None:
        self.require(
            min(len(self.channel_multipliers), len(self.decoder_channel_multipliers)) > 0,
            "at least one level",
            (self.channel_multipliers, self.decoder_channel_multipliers),
        )


@register("llamagen_vq")
class LlamaGenVQ(Tokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: LlamaGenVQConfig) -> None:
        stride = 2 ** (len(config.channel_multipliers) - 1)
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        down_widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        up_widths = [config.channels * multiplier for multiplier in reversed(config.decoder_channel_multipliers)]
        coarsest = len(down_widths) - 1  # the level with attention
        down = levels(down_widths, config.blocks, [i == coarsest for i in range(len(down_widths))])
        up = levels(up_widths, config.blocks + 1, [i == 0 for i in range(len(up_widths))])
        self.encoder = Encoder(3, config.channels, down, config.latent_channels, config.norm_groups, config.dropout)
        self.to_latent = nn.Conv2d(config.latent_channels, config.quantizer.dim, 1)
        self.from_codes = nn.Conv2d(config.quantizer.dim, config.latent_channels, 1)
        self.decoder = Decoder(config.latent_channels, up, 3, config.norm_groups, config.dropout)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x)).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes.movedim(-1, 1)))


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "codebook_size": 16384, "codebook_embed_dim": 8, "codebook_l2_norm": True, "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0, "encoder_ch_mult": [1, 1, 2, 2, 4], "decoder_ch_mult": [1, 1, 2, 2, 4],
    "z_channels": 256, "dropout_p": 0.0, "ch": 128, "num_res_blocks": 2, "norm_num_groups": 32,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> LlamaGenVQConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    kwargs = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    entropy = SoftEntropyConfig(temperature=0.01, shift=1e-5) if kwargs["entropy_loss_ratio"] else None
    return LlamaGenVQConfig(
        channels=kwargs["ch"],
        channel_multipliers=tuple(kwargs["encoder_ch_mult"]),
        decoder_channel_multipliers=tuple(kwargs["decoder_ch_mult"]),
        blocks=kwargs["num_res_blocks"],
        latent_channels=kwargs["z_channels"],
        norm_groups=kwargs["norm_num_groups"],
        dropout=kwargs["dropout_p"],
        quantizer=VectorConfig(
            codebook_size=kwargs["codebook_size"],
            dim=kwargs["codebook_embed_dim"],
            metric="cosine" if kwargs["codebook_l2_norm"] else "euclidean",
            entropy=entropy,
        ),
    )


def config_from_diffusers(architecture: VQArchitecture) -> LlamaGenVQConfig:
    """The config of a VQModel with attention at the coarsest level and in the middle; its search is Euclidean.

    Raises:
        ValueError: attention elsewhere, widths that are no multiples of the first, or images of other channels than 3.
    """
    coarsest = (False,) * (len(architecture.widths) - 1) + (True,)
    found = (architecture.attention, architecture.decoder_attention, architecture.middle_attention)
    if found != (coarsest, coarsest, True):
        raise ValueError(f"expected attention at the coarsest level and in the middle alone, got {found}")
    if architecture.channels != 3:
        raise ValueError(f"expected images of 3 channels, got {architecture.channels}")
    return LlamaGenVQConfig(
        channels=architecture.widths[0],
        channel_multipliers=architecture.multipliers,
        decoder_channel_multipliers=architecture.multipliers,
        blocks=architecture.blocks,
        latent_channels=architecture.latent_channels,
        norm_groups=architecture.norm_groups,
        quantizer=VectorConfig(codebook_size=architecture.codebook_size, dim=architecture.dim),
    )


def config_from_transformers(fields: dict[str, Any]) -> LlamaGenVQConfig:
    """The config of transformers' JanusVQVAEConfig. Codes are decoded at unit length, and searched by angle here.

    Raises:
        ValueError: a network that LlamaGen's is not.
    """
    expected = {"double_latent": False, "in_channels": 3, "out_channels": 3}
    if wrong := {name: fields[name] for name, value in expected.items() if fields[name] != value}:
        raise ValueError(f"expected {expected}, got {wrong}")
    return LlamaGenVQConfig(
        channels=fields["base_channels"],
        channel_multipliers=tuple(fields["channel_multiplier"]),
        decoder_channel_multipliers=tuple(fields["channel_multiplier"]),
        blocks=fields["num_res_blocks"],
        latent_channels=fields["latent_channels"],
        dropout=float(fields["dropout"]),
        quantizer=VectorConfig(codebook_size=fields["num_embeddings"], dim=fields["embed_dim"], metric="cosine"),
    )


def fields_for_transformers(config: LlamaGenVQConfig) -> dict[str, Any]:
    """Values of transformers' JanusVQVAEConfig, which decodes images of one size alone: 256 pixels a side.

    Raises:
        ValueError: a network or quantizer that JanusVQVAE does not have.
    """
    quantizer, multipliers = config.quantizer, config.channel_multipliers
    plain = config.decoder_channel_multipliers == multipliers and config.norm_groups == 32
    if (
        not isinstance(quantizer, VectorConfig)
        or quantizer.metric != "cosine"
        or not (plain and quantizer.unit_vectors)
    ):
        raise ValueError(f"expected one codebook on the unit sphere, equal widths and 32 norm groups, got {config}")
    return {
        "embed_dim": quantizer.dim,
        "num_embeddings": quantizer.codebook_size,
        "latent_channels": config.latent_channels,
        "base_channels": config.channels,
        "channel_multiplier": list(multipliers),
        "num_res_blocks": config.blocks,
        "dropout": config.dropout,
        "num_patches": DEFAULT_SIDE >> (len(multipliers) - 1),
    }


def weights_for_transformers(model: LlamaGenVQ) -> dict[str, Tensor]:
    """The weights with codes of unit length, of which the nearest by distance is the nearest by angle."""
    codes = model.quantizer.codes().detach()  # type: ignore[operator]
    return {**model.state_dict(), "quantizer.codebook.weight": codes}


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names and weights."""
    kwargs, losses = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}, quantized.losses
    zero = losses["commitment"].new_zeros(())
    return {
        "loss.vq": losses["codebook"],
        "loss.commit": kwargs["commit_loss_beta"] * losses["commitment"],
        "loss.entropy": kwargs["entropy_loss_ratio"] * losses.get("entropy", zero),
    }


KEY_MAP = KeyMap(
    {
        "encoder.conv_in.*": "encoder.conv_in.*",
        "encoder.conv_blocks.{}.res.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
        "encoder.conv_blocks.{}.res.{}.*": "encoder.levels.{}.blocks.{}.*",
        "encoder.conv_blocks.{}.attn.{}.*": "encoder.levels.{}.attentions.{}.*",
        "encoder.conv_blocks.{}.downsample.*": "encoder.levels.{}.resample.*",
        "encoder.mid.{}.*": "encoder.mid.{}.*",
        "encoder.norm_out.*": "encoder.norm_out.*",
        "encoder.conv_out.*": "encoder.conv_out.*",
        "quant_conv.*": "to_latent.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "quantize.codebook_used": None,  # the indices last used, kept by the original's training
        "post_quant_conv.*": "from_codes.*",
        "decoder.conv_in.*": "decoder.conv_in.*",
        "decoder.mid.{}.*": "decoder.mid.{}.*",
        "decoder.conv_blocks.{}.res.{}.nin_shortcut.*": "decoder.levels.{}.blocks.{}.shortcut.*",
        "decoder.conv_blocks.{}.res.{}.*": "decoder.levels.{}.blocks.{}.*",
        "decoder.conv_blocks.{}.attn.{}.*": "decoder.levels.{}.attentions.{}.*",
        "decoder.conv_blocks.{}.upsample.*": "decoder.levels.{}.resample.*",
        "decoder.norm_out.*": "decoder.norm_out.*",
        "decoder.conv_out.*": "decoder.conv_out.*",
    }
)

_JANUS_MID = {"block_1": 0, "attn_1": 1, "block_2": 2}

KEY_MAP_TRANSFORMERS = KeyMap(
    {
        **{
            f"{side}.{name}.*": f"{side}.{name}.*"
            for side in ("encoder", "decoder")
            for name in ("conv_in", "norm_out", "conv_out")
        },
        **{
            f"{side}.mid.{theirs}.*": f"{side}.mid.{ours}.*"
            for side in ("encoder", "decoder")
            for theirs, ours in _JANUS_MID.items()
        },
        "encoder.down.{}.block.{}.nin_shortcut.*": "encoder.levels.{}.blocks.{}.shortcut.*",
        "encoder.down.{}.block.{}.*": "encoder.levels.{}.blocks.{}.*",
        "encoder.down.{}.attn.{}.*": "encoder.levels.{}.attentions.{}.*",
        "encoder.down.{}.downsample.*": "encoder.levels.{}.resample.*",
        "quant_conv.*": "to_latent.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "post_quant_conv.*": "from_codes.*",
        "decoder.up.{}.block.{}.nin_shortcut.*": "decoder.levels.{}.blocks.{}.shortcut.*",
        "decoder.up.{}.block.{}.*": "decoder.levels.{}.blocks.{}.*",
        "decoder.up.{}.attn.{}.*": "decoder.levels.{}.attentions.{}.*",
        "decoder.up.{}.upsample.*": "decoder.levels.{}.resample.*",
    }
)


def _encode_there(peer: Any, x: Tensor) -> Tensor:
    indices: Tensor = peer.encode(x, return_dict=True).image_tokens
    return indices


def _decode_there(peer: Any, tokens: Tokens) -> Tensor:
    image: Tensor = peer.decode(tokens.indices.flatten(1))
    return image


TRANSFORMERS = TransformersLayout(
    "JanusVQVAE",
    "JanusVQVAEConfig",
    KEY_MAP_TRANSFORMERS,
    config_from_transformers,
    fields_for_transformers,
    weights_for_transformers,
    encode=_encode_there,
    decode=_decode_there,
)
