"""TA-TiTok: TiTok in a single stage whose decoder also reads the text that describes the image.

Paper: arXiv 2501.07730. Original: bytedance/1d-tokenizer (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_visual import titok
from tokenizers_visual.titok import ProxyConfig, TiTok, TiTokConfig
from zoo.checkpoint import KeyMap
from zoo.layers.query_transformer import TransformerSizes
from zoo.quantizers import GradientCodebookConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import Output
from zoo.tokens import Tokens


@dataclass(frozen=True)
class TATiTokConfig(TiTokConfig):
    """Sizes of the network; the defaults are those of the published model of 128 tokens with a codebook."""

    num_tokens: int = 128
    encoder: TransformerSizes = TransformerSizes(width=768, layers=12, heads=12)
    proxy: ProxyConfig | None = None
    quantizer: QuantizerConfig = VectorConfig(codebook_size=8192, dim=64)
    text_length: int = 77  # positions of the text
    text_width: int = 768  # of its features

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.proxy is None, "no proxy, since training has one stage", self.proxy)
        sizes = (self.text_length, self.text_width)
        self.require(min(sizes) >= 1, "a text_length and text_width >= 1", sizes)


@register("tatitok")
class TATiTok(TiTok):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> tokens (B, num_tokens), which text helps to decode.

    `decode(tokens, text=features)` takes features (B, text_length, text_width), as published those of all positions
    after the last norm of CLIP ViT-L/14-336's text tower, before its projection. Without text the features
    `empty_text` are used; published models do not have them, and there they are zero.
    """

    decode_options = frozenset({"text"})
    config: TATiTokConfig

    def __init__(self, config: TATiTokConfig) -> None:
        super().__init__(config)
        width = config.decoder.width
        self.from_text = nn.Linear(config.text_width, width)
        self.text_positions = nn.Parameter(torch.randn(config.text_length, width) * width**-0.5)
        self.empty_text = nn.Parameter(torch.zeros(config.text_length, config.text_width))

    def reconstruct(self, codes: Tensor, text: Tensor | None = None) -> Tensor:
        """Code vectors (B, num_tokens, D) and features of text (B, text_length, text_width) -> images.

        Raises:
            ValueError: features of another shape.
        """
        shape = (codes.shape[0], *self.empty_text.shape)
        if text is None:
            text = self.empty_text.expand(shape)
        elif not isinstance(text, Tensor) or not text.is_floating_point() or text.shape != shape:
            got = f"{text.dtype} {tuple(text.shape)}" if isinstance(text, Tensor) else type(text).__name__
            raise ValueError(f"text: expected floating point features {shape}, got {got}")
        context = self.from_text(text.to(codes)) + self.text_positions
        return self._decoded(self.decoder(codes, context=context))

    def decode_codes(self, codes: Tensor, tokens: Tokens, *, text: Tensor | None = None, **options: Any) -> Tensor:
        self.check_count(codes)
        return self.reconstruct(codes, text)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Output:
        """One pass for training, with the features of the images' texts."""
        self.spec.check_shape(x)
        latent = self.latent(x)
        quantized = self.quantizer(latent)
        return Output(self.reconstruct(quantized.codes.to(latent.dtype), text), latent, quantized)


def config_from_original(meta: dict[str, Any]) -> TATiTokConfig:
    """The config of the original's, as a fixture or a published listing states it."""
    fields = titok.fields_from_original(meta)
    model = meta["original"]["kwargs"]["config"]["model"]["vq_model"]
    if model.get("clustering_vq"):
        fields["quantizer"] = dataclasses.replace(
            fields["quantizer"], codebook=GradientCodebookConfig(pull_unused=True)
        )
    return TATiTokConfig(
        **fields, text_length=model.get("text_context_length", 77), text_width=model.get("text_embed_dim", 768)
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """As TiTok's."""
    return titok.original_losses(quantized, meta)


def _with_empty_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if "text_positions" not in state or "from_text.weight" not in state:
        return state
    length, width = len(state["text_positions"]), state["from_text.weight"].shape[1]
    return {**state, "empty_text": state["text_positions"].new_zeros(length, width)}


KEY_MAP = KeyMap(
    {
        **titok.KEY_MAP_PIXELS.patterns,
        "decoder.text_guidance_proj.*": "from_text.*",
        "decoder.text_guidance_positional_embedding": "text_positions",
        "quantize.embed_prob": None,  # running use of the codes, needed in training alone
    },
    transforms=titok.KEY_MAP_PIXELS.transforms,
    finish=_with_empty_text,
)

KEY_MAP_TRAINING = dataclasses.replace(  # with the running use of the codes
    KEY_MAP, patterns={**KEY_MAP.patterns, "quantize.embed_prob": "quantizer.pull.share"}
)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing."""
    return (
        KEY_MAP_TRAINING if meta["original"]["kwargs"]["config"]["model"]["vq_model"].get("clustering_vq") else KEY_MAP
    )
