"""Textual inversion: words of one concept as learned rows of a text encoder's table, everything else frozen.

Paper: arXiv 2208.01618; CoRe, Inspiration Tree and Discriminative Class Tokens train such rows in their own ways.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.projector import WordModel, WordsConfig
from tokenizers_visual.inversion.words import PseudoWords
from zoo.registry import register


@dataclass(frozen=True)
class LearnedWordsConfig(WordsConfig):
    """How many words are learned, and for which text encoder."""

    words: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.words > 0, "at least one word", self.words)


@register("textual_inversion")
class LearnedWords(WordModel):
    """Words of one concept, (1, n, D), which are all that is trained; they start as small normal numbers."""

    config: LearnedWordsConfig

    def __init__(self, config: LearnedWordsConfig) -> None:
        super().__init__(config)
        self.rows = nn.Parameter(torch.randn(config.words, config.word_dim) * 0.02)

    @torch.no_grad()
    def start_from(self, pair: ClipPair, ids: Tensor) -> None:
        """Set the words to the rows of real ones, one each (n,), or one for all (1,).

        Raises:
            ValueError: another text encoder, or another number of ids.
        """
        self.check_backbone(pair)
        if ids.shape not in ((1,), (self.config.words,)):
            raise ValueError(f"expected one id, or {self.config.words}, got {tuple(ids.shape)}")
        self.rows.copy_(pair.token_embeddings(ids).expand_as(self.rows))

    def forward(self) -> PseudoWords:
        return PseudoWords(self.rows[None], self.config.backbone)


def rescaled(words: Tensor, real: Tensor) -> Tensor:
    """Words (..., D) with the norm of a real word (D,), as CoRe keeps them in training."""
    return nn.functional.normalize(words, dim=-1) * real.norm(dim=-1)
