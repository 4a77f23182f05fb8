"""Domain-agnostic E4T: predicted words are held near to real tokens, and away from each other, by a contrastive loss.

Paper: arXiv 2307.06925, after E4T (arXiv 2302.12228). There is no public code; the loss has the form that is written
down here and has not been compared with the authors', and the sizes of the encoder are chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.projector import Projector, ProjectorConfig
from zoo.registry import register

Likeness = Literal["dot", "cosine"]


@dataclass(frozen=True)
class DomainAgnosticConfig(ProjectorConfig):
    """Sizes of the embedding head."""

    denoiser_dim: int = 0  # width of the denoiser's features beside the image's; 0: none
    hidden_dim: int = 768
    scale: float = 0.1  # of what is added to the word of the class

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.denoiser_dim >= 0, "a denoiser_dim of 0 or more", self.denoiser_dim)
        self.require(self.hidden_dim > 0, "a positive hidden_dim", self.hidden_dim)


@register("domain_agnostic_e4t")
class DomainAgnosticE4T(Projector):
    """Image features (B, E) -> one word each (B, 1, D): the word of the image's class, moved a little.

    `class_word` (D,) is zero until it is set to a token embedding ("face").
    """

    config: DomainAgnosticConfig

    def __init__(self, config: DomainAgnosticConfig) -> None:
        super().__init__(config)
        self.register_buffer("class_word", torch.zeros(config.word_dim))
        self.head = nn.Sequential(
            nn.Linear(config.image_dim + config.denoiser_dim, config.hidden_dim),
            nn.LeakyReLU(),
            nn.Linear(config.hidden_dim, config.word_dim),
        )

    def forward(self, image_features: Tensor, denoiser_features: Tensor | None = None) -> Tensor:
        """Words (B, 1, D).

        Args:
            image_features: (B, E).
            denoiser_features: (B, F), means over positions of the denoiser's encoder; None: zeros.
        """
        if self.config.denoiser_dim:
            if denoiser_features is None:
                denoiser_features = image_features.new_zeros(len(image_features), self.config.denoiser_dim)
            image_features = torch.cat([image_features, denoiser_features], dim=-1)
        return (self.class_word + self.config.scale * self.head(image_features))[:, None]


# -- losses --------------------------------------------------------------------------------------------------------


def nearest_tokens(words: Tensor, table: Tensor, count: int) -> Tensor:
    """Ids (B, count) of the tokens of a table (V, D) that have the largest cosine with words (B, D), best first.

    Raises:
        ValueError: more tokens than the table has.
    """
    if not 1 <= count <= len(table):
        raise ValueError(f"expected 1 to {len(table)} tokens, got {count}")
    return (F.normalize(words.float(), dim=-1) @ F.normalize(table.float(), dim=-1).T).topk(count).indices


def nearest_token_loss(
    words: Tensor, table: Tensor, *, count: int, temperature: float, likeness: Likeness = "dot"
) -> Tensor:
    """Contrastive loss of words (B, D), an item each: its nearest tokens against the words of the other items.

    -log(P / (P + N)), where P sums exp(likeness / temperature) over the tokens and N over the other words; 0 for a
    single item. Tokens are nearest by cosine, whatever the likeness. In float32.

    Args:
        words: (B, D); gradients flow through them, as words and as each other's negatives.
        table: (V, D), constant; leave start, end and padding out.
        count: tokens of each item.
        temperature: of the likeness.
        likeness: dot product, or cosine.

    Returns:
        (B,); its mean is the loss.
    """
    with torch.autocast(words.device.type, enabled=False):
        words, table = words.float(), table.detach().float()
        tokens = table[nearest_tokens(words.detach(), table, count)]  # (B, count, D)
        if likeness == "cosine":
            words, tokens = F.normalize(words, dim=-1), F.normalize(tokens, dim=-1)
        near = (tokens @ words[..., None])[..., 0] / temperature
        others = words @ words.T / temperature
        others = others.masked_fill(torch.eye(len(words), dtype=torch.bool, device=words.device), -torch.inf)
        return torch.cat([near, others], dim=1).logsumexp(1) - near.logsumexp(1)


def norm_loss(words: Tensor) -> Tensor:
    """The squared norms of words (B, D), summed over the batch."""
    return words.float().square().sum()
