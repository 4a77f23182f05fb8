"""ViLex: an image as up to 75 words between a prompt's start and end, the first of which tell the most.

Paper: "Visual Lexicon: Rich Image Features in Language Space", arXiv 2412.06774. Neither code nor weights are public;
sizes that the paper's summaries do not state are chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.clip import ClipPair, TextOutput
from tokenizers_visual.inversion.projector import Projector, ProjectorConfig
from tokenizers_visual.inversion.words import PseudoWords
from zoo.registry import register


@dataclass(frozen=True)
class ViLexConfig(ProjectorConfig):
    """Sizes of the attention pooling over the patches of a vision transformer, whose width is `image_dim`."""

    words: int = 75  # what is left of CLIP's 77 beside start and end
    heads: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.words > 0, "at least one word", self.words)
        self.require(
            self.heads > 0 and self.image_dim % self.heads == 0, f"heads that divide {self.image_dim}", self.heads
        )


@register("vilex")
class ViLex(Projector):
    """Patches (B, N, W) -> words (B, K, D): K learned queries read the patches. The first k words may be used alone."""

    config: ViLexConfig
    features = "tokens"

    def __init__(self, config: ViLexConfig) -> None:
        from timm.layers import AttentionPoolLatent

        super().__init__(config)
        width = config.image_dim
        self.pool = AttentionPoolLatent(
            width, num_heads=config.heads, mlp_ratio=config.mlp_ratio, latent_len=config.words, pool_type=""
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.word_dim)

    def forward(self, image_features: Tensor) -> Tensor:
        return self.out(self.norm(self.pool(image_features)))


def draw_lengths(batch: int, words: int, generator: torch.Generator | None = None) -> Tensor:
    """How many words each item keeps in a step of training: (batch,), uniform in 1..words."""
    return torch.randint(1, words + 1, (batch,), generator=generator)


def compose_prefixes(
    pair: ClipPair, words: PseudoWords, lengths: Sequence[int] | Tensor, texts: Sequence[str] | None = None
) -> TextOutput:
    """Prompts of the first words of each item, and then its text; what is dropped takes no place.

    Args:
        pair: the text encoder.
        words: (B, K, D).
        lengths: (B,), how many words each item keeps.
        texts: B texts in plain words; None: none.

    Raises:
        ValueError: words of another CLIP, lengths outside 1..K, or more than fits.
    """
    counts = [int(length) for length in lengths]
    given = [""] * len(counts) if texts is None else list(texts)
    most = words.embeddings.shape[1]
    if len(counts) != len(words) or len(given) != len(words) or not all(1 <= count <= most for count in counts):
        raise ValueError(f"expected a length in 1..{most} and a text for each of {len(words)} items, got {counts}")
    parts = [
        pair.embed(f"$ {text}" if text else "$", words[item].truncate(count))
        for item, (count, text) in enumerate(zip(counts, given))
    ]
    return pair.encode_text(torch.cat([ids for ids, _ in parts]), torch.cat([rows for _, rows in parts]))
