"""PreciseControl: a face's W+ code of StyleGAN and the diffusion time to two words; edits of the code edit the words.

Paper: arXiv 2408.05083. Original: rishubhpar/PreciseControl (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.projector import WordModel, WordsConfig
from tokenizers_visual.inversion.words import PseudoWords
from zoo.checkpoint import KeyMap
from zoo.layers.positions import waves
from zoo.registry import register


@dataclass(frozen=True)
class PreciseControlConfig(WordsConfig):
    """Sizes of the mapper; the defaults are the published ones."""

    backbone: str = "stabilityai/stable-diffusion-2-1-base"
    word_dim: int = 1024
    styles: int = 18  # of a W+ code, in the order of StyleGAN's layers
    style_dim: int = 512
    heads: int = 8
    head_dim: int = 64
    depth: int = 4  # layers of the mapper behind the attention
    words: int = 2
    timed: bool = True  # words depend on the diffusion time
    anchor: Literal["residual", "norm"] = "residual"  # how a general word ("face") holds the words
    scale: float = 0.1  # of the residual

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.styles, self.style_dim, self.heads, self.head_dim, self.depth, self.words)
        self.require(min(sizes) > 0, "positive sizes", sizes)


class StyleLayer(nn.Module):
    """Linear, then a leaky ReLU, also in the last of them; with `residual` x + that of a layer norm of x."""

    def __init__(self, in_dim: int, out_dim: int, *, residual: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim) if residual else nn.Identity()
        self.linear = nn.Linear(in_dim, out_dim)
        self.residual = residual
        nn.init.normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.linear(self.norm(x)), 0.2)
        return x + y if self.residual else y


@register("precise_control")
class PreciseControl(WordModel):
    """W+ codes (B, styles, style_dim), with e4e's average in them, and times (B,) -> words (B, n, D)."""

    config: PreciseControlConfig

    def __init__(self, config: PreciseControlConfig) -> None:
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__(config)
        width, out = config.style_dim, config.words * config.word_dim
        self.attention = BasicTransformerBlock(
            width, config.heads, config.head_dim, activation_fn="geglu", double_self_attention=True
        )
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if config.timed else None
        entries = width * (config.styles + bool(config.timed))
        self.layers = nn.Sequential(
            *(StyleLayer(entries if i == 0 else out, out, residual=i > 0) for i in range(config.depth))
        )

    def forward(self, codes: Tensor, times: Tensor | None = None) -> Tensor:
        """Words (B, n, D) before they are anchored to a general word.

        Raises:
            ValueError: codes of another shape, or no times where the words depend on them.
        """
        if codes.shape[1:] != (self.config.styles, self.config.style_dim):
            expected = f"(B, {self.config.styles}, {self.config.style_dim})"
            raise ValueError(f"expected W+ codes {expected}, got {tuple(codes.shape)}")
        hidden = self.attention(codes).flatten(1)
        if self.time is not None:
            if times is None:
                raise ValueError("expected times (B,), on which these words depend, got none")
            hidden = torch.cat([hidden, self.time(waves(times, self.config.style_dim).to(hidden))], dim=-1)
        return self.layers(hidden).unflatten(-1, (self.config.words, -1))

    def anchored(self, raw: Tensor, general: Tensor) -> Tensor:
        """Words (B, n, D) as the text encoder takes them: near to a general word (D,), or as long as it."""
        if self.config.anchor == "residual":
            return general + self.config.scale * raw
        return raw / (raw.norm(dim=-1, keepdim=True) + 1e-5) * general.norm()

    @torch.no_grad()
    def project(
        self, codes: Tensor, general: Tensor, times: Tensor | None = None, *, edit: Tensor | None = None
    ) -> PseudoWords:
        """The words of codes at times, in evaluation mode and without gradients.

        Args:
            codes: (B, styles, style_dim).
            general: (D,), the token embedding of a word for all of them ("face").
            times: (B,) of diffusion, 0..999.
            edit: a direction added to the codes, (B, styles, style_dim) or one for all.
        """
        with self._evaluating():
            raw = self(codes if edit is None else codes + edit, times)
            return PseudoWords(self.anchored(raw, general), self.config.backbone)


def norm_loss(raw: Tensor) -> Tensor:
    """Mean norm of the words before they are anchored; the original weighs it by 1e-7."""
    return raw.norm(dim=-1).mean()


def expand(embeddings: Tensor, places: Sequence[Tensor], words: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A prompt's token embeddings with several words in each placeholder's stead; its end moves and is cut.

    Args:
        embeddings: (L, D).
        places: for each identity the places of its placeholders, (occurrences,).
        words: (identities, n, D).

    Returns:
        (L, D), and for each identity the places (occurrences, n) of its words.

    Raises:
        ValueError: words that would not fit.
    """
    count = words.shape[1]
    owner = {int(place): identity for identity, part in enumerate(places) for place in part}
    rows: list[Tensor] = []
    found: list[list[list[int]]] = [[] for _ in places]
    for place, row in enumerate(embeddings):
        identity = owner.get(place)
        if identity is not None:
            found[identity].append(list(range(len(rows), len(rows) + count)))
        rows += [row] if identity is None else list(words[identity % len(words)])
    if any(group and group[-1][-1] >= len(embeddings) for group in found):
        raise ValueError(f"expected room for {count} words at each placeholder in {len(embeddings)} tokens, got less")
    taken = [torch.tensor(group, dtype=torch.int64).reshape(-1, count) for group in found]
    return torch.stack(rows[: len(embeddings)]), taken


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "num_styles": 18, "w_dim": 512, "attn_heads": 8, "attn_dim_head": 64, "depth": 4, "num_embeds_per_token": 2,
    "context_dim": 768, "use_timestep_embedder": True,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> PreciseControlConfig:
    """The config of the original's constants and arguments."""
    kwargs = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    return PreciseControlConfig(
        word_dim=kwargs["context_dim"],
        styles=kwargs["num_styles"],
        style_dim=kwargs["w_dim"],
        heads=kwargs["attn_heads"],
        head_dim=kwargs["attn_dim_head"],
        depth=kwargs["depth"],
        words=kwargs["num_embeds_per_token"],
        timed=kwargs["use_timestep_embedder"],
        anchor="norm" if kwargs.get("use_norm_reg") else "residual",
    )


KEY_MAP = KeyMap(
    {
        "self_attn.*": "attention.*",
        "time_embed.*": "time.*",
        "final_mlp.net.{}.weight": "layers.{}.linear.weight",
        "final_mlp.net.{}.bias": "layers.{}.linear.bias",
        "final_mlp.net.{}.fn.norm.*": "layers.{}.norm.*",
        "final_mlp.net.{}.fn.weight": "layers.{}.linear.weight",
        "final_mlp.net.{}.fn.bias": "layers.{}.linear.bias",
    },
    prefix="stylegan_mlp.",
)
