"""IBQ's tokenizer: the VQGAN with a dot-product codebook whose every code gets a gradient through the soft index.

Paper: arXiv 2412.02692. Original: TencentARC/SEED-Voken (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenizers_visual import taming_vqgan
from tokenizers_visual.taming_vqgan import TamingVQGAN, TamingVQGANConfig, network_from_original
from zoo.checkpoint import KeyMap
from zoo.quantizers import IndexBackpropagationConfig, Quantized, QuantizerConfig, SoftEntropyConfig
from zoo.registry import register


@dataclass(frozen=True)
class IBQConfig(TamingVQGANConfig):
    """Sizes of the network; the defaults are those of the published model with 16,384 codes."""

    blocks: int = 4  # residual blocks a level; the decoder has one more
    quantizer: QuantizerConfig = IndexBackpropagationConfig(
        codebook_size=16384, dim=256, entropy=SoftEntropyConfig(temperature=0.01, shift=1e-5)
    )


@register("ibq")
class IBQ(TamingVQGAN):
    """Images (B, C, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: IBQConfig) -> None:
        super().__init__(config)


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "use_entropy_loss": False, "sample_minimization_weight": 1.0, "batch_maximization_weight": 1.0,
    "entropy_temperature": 0.01, "beta": 0.25,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> IBQConfig:
    """The config of the original's constructor arguments, as a fixture or a published listing states them."""
    kwargs = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    entropy = None
    if kwargs["use_entropy_loss"]:
        entropy = SoftEntropyConfig(
            temperature=kwargs["entropy_temperature"],
            sample_weight=float(kwargs["sample_minimization_weight"]),
            gamma=float(kwargs["batch_maximization_weight"]),
            shift=1e-5,
        )
    quantizer = IndexBackpropagationConfig(kwargs["n_embed"], kwargs["embed_dim"], entropy)
    return IBQConfig(**network_from_original(kwargs), quantizer=quantizer)


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The quantizer's losses under the original's names; the entropy term is unweighted."""
    losses, beta = quantized.losses, meta["original"]["kwargs"].get("beta", _ORIGINAL_DEFAULTS["beta"])
    named = {"loss.quant": losses["index"] + losses["commitment"] + beta * losses["codebook"]}
    if "entropy" in losses:
        named["loss.entropy"] = losses["entropy"]
        named["statistic.sample_entropy"] = quantized.statistics["sample_entropy"]
        named["statistic.batch_entropy"] = quantized.statistics["codebook_entropy"]
    return named


# the averaged weights, with which the original evaluates, stand beside the raw ones
KEY_MAP = KeyMap(
    {name: own for name, own in taming_vqgan.KEY_MAP.patterns.items() if name != "model_ema.*"}, ema="model_ema."
)
