"""The binary autoencoder (BAE) of ELM: a convolutional autoencoder whose codes are sums of the embeddings of set bits.

Paper: arXiv 2410.16257. Original: Pepper-lll/LMforImageGeneration (no licence is stated).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.vqgan import Decoder, Encoder, levels
from zoo.quantizers import BernoulliConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class BAEConfig(Config):
    """Sizes of the network; the defaults are those of the published 16 bit model."""

    channels: int = 128  # width of the first convolution
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level of the encoder
    decoder_blocks: int = 2
    resolution: int = 256  # with attention_resolutions it places attention, whatever the size of the input
    attention_resolutions: tuple[int, ...] = (16,)
    latent_channels: int = 256
    norm_codes: bool = True  # a group norm of the codes before the decoder
    norm_groups: int = 32
    quantizer: QuantizerConfig = BernoulliConfig(dim=256, bits=16)
    in_channels: int = 3  # of the images

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)

    @property
    def widths(self) -> list[int]:
        """Of the levels, finest first."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def attention(self) -> list[bool]:
        """Whether a level has attention, finest first."""
        return [self.resolution // 2**i in self.attention_resolutions for i in range(len(self.channel_multipliers))]


@register("bae")
class BAE(Tokenizer):
    """Images (B, C, H, W) in [0, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: BAEConfig) -> None:
        stride = 2 ** (len(config.channel_multipliers) - 1)
        spec = InputSpec("image", channels=config.in_channels, value_range=(0.0, 1.0), multiple=stride)
        super().__init__(config, spec, config.quantizer)
        z, dim, groups = config.latent_channels, config.quantizer.dim, config.norm_groups
        down = levels(config.widths, config.blocks, config.attention)
        up = levels(config.widths[::-1], config.decoder_blocks, config.attention[::-1])
        self.encoder = Encoder(config.in_channels, config.channels, down, z, groups, final_activation=False)
        # another quantizer than the published may need another width
        self.to_latent = nn.Identity() if dim == z else nn.Conv2d(z, dim, 1)
        self.from_codes = nn.Identity() if dim == z else nn.Conv2d(dim, z, 1)
        self.norm_codes = nn.GroupNorm(groups, z, eps=1e-6) if config.norm_codes else nn.Identity()
        self.decoder = Decoder(z, up, config.in_channels, groups, final_activation=False)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x)).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.norm_codes(self.from_codes(codes.movedim(-1, 1))))


def config_from_original(meta: dict[str, Any]) -> BAEConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    kwargs = meta["original"]["kwargs"]
    if kwargs["quantizer"] != "binary" or kwargs["use_tanh"]:
        raise ValueError(f"expected Bernoulli bits, got {kwargs['quantizer']}, use_tanh={kwargs['use_tanh']}")
    return BAEConfig(
        in_channels=kwargs.get("n_channels", 3),
        channels=kwargs["nf"],
        channel_multipliers=tuple(kwargs["ch_mult"]),
        blocks=kwargs["res_blocks"],
        decoder_blocks=int(kwargs["res_blocks"] * kwargs["gen_mul"]),
        resolution=kwargs["img_size"],
        attention_resolutions=tuple(kwargs["attn_resolutions"]),
        latent_channels=kwargs["emb_dim"],
        norm_codes=kwargs["norm_first"],
        norm_groups=meta.get("norm_groups", 32),
        quantizer=BernoulliConfig(kwargs["emb_dim"], kwargs["codebook_size"], stochastic=not kwargs["deterministic"]),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original's loss of the quantizer, unweighted."""
    return {"loss.code": quantized.losses["uncertainty"]}


def key_map(config: BAEConfig) -> KeyMap:
    """The original numbers all layers of a side through; which are what depends on the config."""
    last = len(config.channel_multipliers) - 1
    down: list[str] = ["conv_in"]
    for i, attends in enumerate(config.attention):
        down += _level(i, config.blocks, attends, resamples=i < last)
    down += ["mid.0", "mid.1", "mid.2", "norm_out", "conv_out"]
    up: list[str] = ["conv_in", "mid.0", "mid.1", "mid.2"]
    for i, attends in enumerate(reversed(config.attention)):
        up += _level(i, config.decoder_blocks, attends, resamples=i < last)
    up += ["norm_out", "conv_out"]
    generator = ["norm_codes"] if config.norm_codes else []
    generator += [f"decoder.{layer}" for layer in up]
    patterns: dict[str, str | None] = {}
    for side, layers in (("encoder", [f"encoder.{layer}" for layer in down]), ("generator", generator)):
        for i, layer in enumerate(layers):
            patterns[f"{side}.blocks.{i}.*"] = f"{layer}.*"
            # every residual block stores a shortcut, which those of equal widths do not use
            patterns[f"{side}.blocks.{i}.conv_out.*"] = f"{layer}.shortcut.*" if layer in _widening(config) else None
    patterns |= {
        "quantize.proj.0.weight": "quantizer.projection.weight",
        "quantize.proj.0.bias": "quantizer.projection.bias",
        "quantize.embed.weight": "quantizer.embedding",
        "generator.logsigma.*": None,  # not used by the original
        "disc.*": None,  # discriminator and perceptual network of the original's training
        "perceptual.*": None,
    }
    flat = {"quantizer.projection.weight": _as_linear}
    return KeyMap(patterns, prefix="ae.", transforms=flat)


def _level(i: int, blocks: int, attends: bool, resamples: bool) -> list[str]:
    layers = []
    for j in range(blocks):
        layers += [f"levels.{i}.blocks.{j}"] + [f"levels.{i}.attentions.{j}"] * attends
    return layers + [f"levels.{i}.resample"] * resamples


def _widening(config: BAEConfig) -> set[str]:
    """The residual blocks that change the width: the first of a level that is not as wide as what comes before it."""
    widths = config.widths
    down = [
        f"encoder.levels.{i}.blocks.0"
        for i, a, b in zip(range(len(widths)), [config.channels, *widths], widths)
        if a != b
    ]
    coarse = widths[::-1]
    up = [f"decoder.levels.{i}.blocks.0" for i, a, b in zip(range(len(widths)), [coarse[0], *coarse], coarse) if a != b]
    return {*down, *up}


def _as_linear(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing."""
    return key_map(config_from_original(meta))


KEY_MAP = key_map(BAEConfig())  # of all published files, which differ in their bits alone
