"""Domain-agnostic E4T: predicted words are held near to real tokens, and away from each other, by a contrastive loss.

Paper: arXiv 2307.06925. There is no public code; the loss has the form that is written down here, which has not been
compared with the authors'.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Likeness = Literal["dot", "cosine"]


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
