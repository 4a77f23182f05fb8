"""TokenVerse: concepts as offsets of single text tokens in the modulation of a diffusion transformer.

Paper: "TokenVerse: Versatile Multi-concept Personalization in Token Modulation Space", arXiv 2501.12224. There is no
public code; widths that were not read are chosen here. The words stay ordinary: their modulation is what changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.projector import WordModel
from zoo.config import Config
from zoo.registry import register


@dataclass(frozen=True)
class TokenVerseConfig(Config):
    """Sizes of the network that gives offsets; the widths are those of FLUX.1."""

    backbone: str = "black-forest-labs/FLUX.1-dev"
    text_dim: int = 4096  # of the text encoder's states
    width: int = 3072  # of the modulation vector
    hidden_dim: int = 1024
    blocks: int = 57  # of the transformer, each with an offset of its own in the second stage; 0: one for all

    def __post_init__(self) -> None:
        self.require(bool(self.backbone), "the name of a diffusion transformer", self.backbone)
        sizes = (self.text_dim, self.width, self.hidden_dim)
        self.require(min(sizes) > 0 and self.blocks >= 0, "positive widths and no fewer than 0 blocks", self.to_dict())


@register("tokenverse")
class TokenVerse(WordModel):
    """Text states of words (n, text_dim) -> offsets (n, width), or of each block (blocks, n, width).

    It starts with offsets of zero, under which the transformer is as it was.
    """

    config: TokenVerseConfig

    def __init__(self, config: TokenVerseConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Sequential(nn.Linear(config.text_dim, config.hidden_dim), nn.GELU())
        self.shared = _zero(nn.Linear(config.hidden_dim, config.width))
        self.of_blocks = nn.ModuleList(_zero(nn.Linear(config.hidden_dim, config.width)) for _ in range(config.blocks))

    def forward(self, words: Tensor, *, stage: int = 1) -> Tensor:
        """Offsets of words (n, text_dim).

        Args:
            stage: 1: one for all blocks (n, width); 2: for each its own beside it (blocks, n, width).

        Raises:
            ValueError: another stage, or the second of a model without blocks.
        """
        if stage not in (1, 2) or (stage == 2 and not self.of_blocks):
            raise ValueError(f"expected stage 1, or 2 of a model with blocks, got {stage}")
        hidden = self.hidden(words)
        shared = self.shared(hidden)
        return shared if stage == 1 else torch.stack([shared + block(hidden) for block in self.of_blocks])


def modulate_tokens(modulation: Tensor, tokens: int, offsets: Tensor, places: Sequence[int]) -> Tensor:
    """The modulation of each text token (B, tokens, width): that of the prompt (B, width), moved at some.

    Args:
        modulation: (B, width), which image tokens keep as it is.
        tokens: length of the text.
        offsets: (n, width) of n concepts, of one block; they may come from different images.
        places: of the n concepts' words in the text; a place may come more than once.

    Raises:
        ValueError: not as many places as offsets, or one outside the text.
    """
    if len(places) != len(offsets) or not all(0 <= place < tokens for place in places):
        raise ValueError(f"expected {len(offsets)} places in 0..{tokens - 1}, got {list(places)}")
    moved = modulation.new_zeros(tokens, modulation.shape[-1])
    moved = moved.index_add(0, torch.tensor(list(places), device=modulation.device), offsets.to(modulation))
    return modulation[:, None] + moved


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
