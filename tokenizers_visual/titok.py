"""TiTok: an image as a short row of tokens, by transformers whose queries read patches and whose grid reads tokens.

Paper: arXiv 2406.07550; the models trained in a single stage: arXiv 2501.07730. Original: bytedance/1d-tokenizer
(Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.maskgit import MaskGITDecoder
from zoo.layers.posterior import Posterior
from zoo.layers.query_transformer import QueryDecoder, QueryEncoder, TransformerSizes
from zoo.quantizers import DimensionWiseConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens


@dataclass(frozen=True)
class ProxyConfig(Config):
    """The MaskGIT VQGAN whose codes the first stage of training predicts and whose decoder the second one refines."""

    codebook_size: int = 1024
    dim: int = 256
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2
    norm_groups: int = 32

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)


@dataclass(frozen=True)
class TiTokConfig(Config):
    """Sizes of the network; the defaults are those of the published model of 32 tokens."""

    image_size: int = 256  # pixels a side; the learned positions allow no other
    patch_size: int = 16
    decoder_patch_size: int | None = None  # None: the encoder's
    num_tokens: int = 32
    encoder: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    decoder: TransformerSizes = TransformerSizes(width=1024, layers=24, heads=16)
    proxy: ProxyConfig | None = ProxyConfig()  # of models trained in two stages; None: the decoder gives pixels
    variational: bool = False  # the encoder gives means and variances; tokens are those of the means
    quantizer: QuantizerConfig = VectorConfig(codebook_size=4096, dim=12, metric="cosine")

    def __post_init__(self) -> None:
        for patch in (self.patch_size, self.output_patch_size):
            fits = patch >= 1 and self.image_size % patch == 0
            self.require(fits, "an image_size that is a multiple of patch_size", (self.image_size, patch))
        self.require(self.num_tokens >= 1, "num_tokens >= 1", self.num_tokens)
        if self.proxy is not None:
            stride = 2 ** (len(self.proxy.channel_multipliers) - 1)
            patch = self.output_patch_size
            self.require(stride == patch, f"levels of the proxy for patch_size {patch}", stride)

    @property
    def output_patch_size(self) -> int:
        """Pixels a side of what one position of the decoder's grid becomes."""
        return self.patch_size if self.decoder_patch_size is None else self.decoder_patch_size


@register("titok")
class TiTok(Tokenizer):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> tokens (B, num_tokens)."""

    layout = "sequence"
    config: TiTokConfig

    def __init__(self, config: TiTokConfig) -> None:
        size, patch, count = config.image_size, config.output_patch_size, config.num_tokens
        spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), size=(size, size), multiple=config.patch_size)
        super().__init__(config, spec, config.quantizer)
        dim, width = config.quantizer.dim, config.decoder.width
        self.encoder = QueryEncoder(size, config.patch_size, count, config.encoder)
        self.to_latent = nn.Linear(config.encoder.width, 2 * dim if config.variational else dim)
        self.decoder = QueryDecoder(size // patch, dim, count, config.decoder)
        if config.proxy is None:
            self.to_pixels = nn.Conv2d(width, 3 * patch**2, 1)
            self.smooth = nn.Conv2d(3, 3, 3, padding=1)
        else:
            proxy = config.proxy
            self.to_logits = nn.Sequential(
                nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, proxy.codebook_size, 1)
            )
            self.proxy_codebook = nn.Embedding(proxy.codebook_size, proxy.dim)
            widths = [proxy.channels * multiplier for multiplier in proxy.channel_multipliers]
            self.pixel_decoder = MaskGITDecoder(proxy.dim, widths[::-1], proxy.blocks, proxy.norm_groups)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.num_tokens,)

    def latent(self, x: Tensor) -> Tensor:
        """Of a variational model the posterior's mean, in training a sample of it."""
        if not self.config.variational:
            return self.features(x)
        posterior = self.posterior(x)
        return posterior.sample() if self.training else posterior.mean

    def posterior(self, x: Tensor) -> Posterior:
        """Images -> the posterior of the latents (B, num_tokens, D), of a variational model.

        Raises:
            ValueError: a model that has none.
        """
        if not self.config.variational:
            raise ValueError(f"{self.name} has no posterior: expected a config with variational=True, got False")
        return Posterior.of(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Images -> what is quantised (B, num_tokens, D), or the parameters of its posterior (B, num_tokens, 2 D)."""
        hidden = self.encoder(x)
        if self.config.proxy is not None:
            # the models of two stages read the memory of (B, tokens, width) as (B, width, tokens)
            hidden = hidden.reshape(x.shape[0], hidden.shape[2], hidden.shape[1]).transpose(1, 2)
        return self.to_latent(hidden)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self._decoded(self.decoder(codes))

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        self.check_count(codes)
        return super().decode_codes(codes, tokens, **options)

    def check_count(self, codes: Tensor) -> None:
        """Raise a ValueError unless there is a code (B, num_tokens, D) of every token."""
        if codes.shape[1] != self.config.num_tokens:
            raise ValueError(f"expected {self.config.num_tokens} tokens, got {codes.shape[1]}")

    def _decoded(self, features: Tensor) -> Tensor:
        """The decoder's map (B, width, h, w) -> images."""
        if self.config.proxy is None:
            patch = self.config.output_patch_size
            pixels = self.to_pixels(features).unflatten(1, (patch**2, 3)).transpose(1, 2).flatten(1, 2)
            return self.smooth(F.pixel_shuffle(pixels, patch))
        probabilities = self.to_logits(features).softmax(1)
        mixed = torch.einsum("bkhw,kd->bdhw", probabilities, self.proxy_codebook.weight.to(probabilities.dtype))
        return self.pixel_decoder(mixed)

    def proxy_logits(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Code vectors (B, tokens, D) -> logits (B, K, h, w) of the proxy's codes, which the first stage trains; of
        each item only the first `lengths` (B,) are seen, where items differ.

        Raises:
            ValueError: a model whose decoder gives pixels.
        """
        if self.config.proxy is None:
            raise ValueError(f"{self.name} has no proxy: expected a config with a proxy, got None")
        return self.to_logits(self.decoder(codes, lengths))


_SIZES = {
    "small": TransformerSizes(512, 8, 8),
    "base": TransformerSizes(768, 12, 12),
    "large": TransformerSizes(1024, 24, 16),
}


def fields_from_original(meta: dict[str, Any]) -> dict[str, Any]:
    """Fields of `TiTokConfig` from the original's config, as a fixture or a published listing states it."""
    kwargs = meta["original"]["kwargs"]["config"]
    model, size = kwargs["model"]["vq_model"], kwargs["dataset"]["preprocessing"]["crop_size"]
    patch, decoder_patch = model["vit_enc_patch_size"], model["vit_dec_patch_size"]
    two_stages = model.get("is_legacy", True)
    if model.get("finetune_decoder", True) and not two_stages:
        raise ValueError("expected finetune_decoder with the legacy layout alone, as published")
    return {
        "image_size": size,
        "patch_size": patch,
        "decoder_patch_size": None if decoder_patch == patch else decoder_patch,
        "num_tokens": model["num_latent_tokens"],
        "encoder": _sizes(model["vit_enc_model_size"], meta),
        "decoder": _sizes(model["vit_dec_model_size"], meta),
        "proxy": _proxy(meta, model.get("pixel_codebook_size", 1024)) if two_stages else None,
        "variational": model.get("quantize_mode", "vq") == "vae",
        "quantizer": _quantizer(model),
    }


def _sizes(name: str, meta: dict[str, Any]) -> TransformerSizes:
    stated = meta["original"].get("model_sizes", {})
    return TransformerSizes(**stated[name]) if name in stated else _SIZES[name]


def _proxy(meta: dict[str, Any], codebook_size: int) -> ProxyConfig:
    stated = meta["original"].get("pixel_decoder")
    if stated is None:
        return ProxyConfig(codebook_size)
    return ProxyConfig(
        codebook_size,
        dim=stated["z_channels"],
        channels=stated["hidden_channels"],
        channel_multipliers=tuple(stated["channel_mult"]),
        blocks=stated["num_res_blocks"],
        norm_groups=stated.get("norm_groups", 32),
    )


def _quantizer(model: dict[str, Any]) -> QuantizerConfig:
    if model.get("quantize_mode", "vq") == "vae":
        return DimensionWiseConfig(model["token_size"])
    metric = "cosine" if model["use_l2_norm"] else "euclidean"
    return VectorConfig(model["codebook_size"], model["token_size"], metric=metric)  # type: ignore[arg-type]


def config_from_original(meta: dict[str, Any]) -> TiTokConfig:
    """The config of the original's, as a fixture or a published listing states it."""
    return TiTokConfig(**fields_from_original(meta))


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names and weights; `loss.quantizer` is their sum."""
    cost = meta["original"]["kwargs"]["config"]["model"]["vq_model"].get("commitment_cost", 0.25)
    if "codebook" not in quantized.losses:
        return {}
    commitment, codebook = cost * quantized.losses["commitment"], quantized.losses["codebook"]
    return {"loss.commitment": commitment, "loss.codebook": codebook, "loss.quantizer": commitment + codebook}


def _side(side: str) -> dict[str, str | None]:
    inner = f"{side}.transformer"
    return {
        f"{side}.class_embedding": f"{side}.class_token",
        f"{side}.positional_embedding": f"{side}.positions",
        f"{side}.latent_token_positional_embedding": f"{side}.query_positions",
        f"{side}.ln_pre.*": f"{inner}.norm_in.*",
        f"{inner}.{{}}.ln_1.*": f"{inner}.blocks.{{}}.norm1.*",
        f"{inner}.{{}}.attn.in_proj_weight": f"{inner}.blocks.{{}}.attention.qkv.weight",
        f"{inner}.{{}}.attn.in_proj_bias": f"{inner}.blocks.{{}}.attention.qkv.bias",
        f"{inner}.{{}}.attn.out_proj.*": f"{inner}.blocks.{{}}.attention.proj.*",
        f"{inner}.{{}}.ln_2.*": f"{inner}.blocks.{{}}.norm2.*",
        f"{inner}.{{}}.mlp.c_fc.*": f"{inner}.blocks.{{}}.mlp.fc1.*",
        f"{inner}.{{}}.mlp.c_proj.*": f"{inner}.blocks.{{}}.mlp.fc2.*",
        f"{side}.ln_post.*": f"{inner}.norm_out.*",
    }


_SHARED = {
    "latent_tokens": "encoder.queries",
    "encoder.patch_embed.*": "encoder.patches.*",
    **_side("encoder"),
    "encoder.conv_out.*": "to_latent.*",
    "quantize.embedding.weight": "quantizer.codebook.weight",
    "decoder.decoder_embed.*": "decoder.embed.*",
    "decoder.mask_token": "decoder.mask_token",
    **_side("decoder"),
}
_FLAT = {"*.class_token": torch.flatten, "*.mask_token": torch.flatten, "to_latent.weight": lambda w: w.flatten(1)}

KEY_MAP = KeyMap(  # models trained in two stages
    {
        **_SHARED,
        "decoder.ffn.{}.*": "to_logits.{}.*",
        "pixel_quantize.embedding.weight": "proxy_codebook.weight",
        "pixel_decoder.conv_in.*": "pixel_decoder.conv_in.*",
        "pixel_decoder.mid.{}.*": "pixel_decoder.mid.{}.*",
        "pixel_decoder.up.{i}.block.{j}.nin_shortcut.*": "pixel_decoder.levels.{-i}.blocks.{j}.shortcut.*",
        "pixel_decoder.up.{i}.block.{j}.*": "pixel_decoder.levels.{-i}.blocks.{j}.*",  # stored finest first
        "pixel_decoder.up.{i}.upsample_conv.*": "pixel_decoder.levels.{-i}.resample.conv.*",
        "pixel_decoder.norm_out.*": "pixel_decoder.norm_out.*",
        "pixel_decoder.conv_out.*": "pixel_decoder.conv_out.*",
    },
    transforms=_FLAT,
)

KEY_MAP_PIXELS = KeyMap(  # models trained in one stage
    {**_SHARED, "decoder.ffn.0.*": "to_pixels.*", "decoder.conv_out.*": "smooth.*"}, transforms=_FLAT
)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing: the two kinds of heads share names."""
    two_stages = meta["original"]["kwargs"]["config"]["model"]["vq_model"].get("is_legacy", True)
    return KEY_MAP if two_stages else KEY_MAP_PIXELS
