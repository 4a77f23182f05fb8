"""CoRe: keeps a learned word from disturbing its context, by comparing a prompt with that of a real word in its place.

Paper: arXiv 2408.15914. There is no public code; the reductions were chosen here after public summaries of the paper,
and have not been compared with the authors'.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def context_embedding_loss(
    states: Tensor, reference: Tensor, context: Tensor, measure: Literal["cosine", "mse"] = "cosine"
) -> Tensor:
    """How far the text encoder's states of the context move when the learned word stands in a prompt.

    Both words are one token, so that the others keep their places; only those behind the word can move.

    Args:
        states: (B, L, D) of prompts with the learned word.
        reference: the same with the real word; no gradient goes there.
        context: bool (B, L), True at tokens that are neither the word nor start, end or padding.
        measure: one minus the cosine, or the mean squared difference.

    Returns:
        The mean over all tokens of the context.

    Raises:
        ValueError: shapes that do not match, or no context.
    """
    _check(states.shape == reference.shape and states.shape[:2] == context.shape, states, reference, context)
    kept = context.bool()
    states, reference = states[kept], reference.detach()[kept]
    if measure == "mse":
        return F.mse_loss(states, reference)
    return (1 - F.cosine_similarity(states, reference, dim=-1)).mean()


def context_attention_loss(attention: Tensor, reference: Tensor, context: Tensor) -> Tensor:
    """How far the cross-attention to the context moves when the learned word stands in a prompt.

    Args:
        attention: (B, heads, pixels, L), probabilities of prompts with the learned word, of one layer
            (`diffusion.cross_attention_maps`).
        reference: the same with the real word; no gradient goes there.
        context: see `context_embedding_loss`.

    Returns:
        The mean squared difference of the heads' means, over pixels and all tokens of the context.

    Raises:
        ValueError: shapes that do not match, or no context.
    """
    fits = attention.shape == reference.shape and (attention.shape[0], attention.shape[-1]) == tuple(context.shape)
    _check(fits, attention, reference, context)
    difference = (attention.mean(1) - reference.detach().mean(1)).square().mean(1)  # (B, L)
    return difference[context.bool()].mean()


def _check(fits: bool, one: Tensor, other: Tensor, context: Tensor) -> None:
    if not fits:
        shapes = tuple(one.shape), tuple(other.shape), tuple(context.shape)
        raise ValueError(f"expected two tensors of equal shape and their context (B, L), got {shapes}")
    if not context.any():
        raise ValueError("expected at least one token of context, got none")
