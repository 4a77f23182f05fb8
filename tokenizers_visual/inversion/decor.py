"""DECOR: takes the directions of unwanted tokens out of a prompt's states, by projection.

Paper: arXiv 2412.09169. There is no public code; which tokens are unwanted, and how much of them goes, is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizers_visual.inversion.projector import WordModel, WordsConfig
from zoo.registry import register

RANK_TOLERANCE = 1e-5  # singular values below this share of the largest count as zero


def projector(undesired: Tensor, *, tolerance: float = RANK_TOLERANCE) -> Tensor:
    """The orthogonal projection (D, D) onto the span of unwanted token vectors (k, D); computed in float64.

    The start token, whose norm is far above all others, and padding would fill the span: leave them out.

    Raises:
        ValueError: not (k, D), or none that is not zero.
    """
    if undesired.ndim != 2 or not undesired.any():
        raise ValueError(f"expected unwanted vectors (k, D) other than zero, got {tuple(undesired.shape)}")
    _, values, directions = torch.linalg.svd(undesired.double(), full_matrices=False)
    kept = directions[values > tolerance * values[0]]
    return (kept.T @ kept).to(undesired.dtype)


def project_out(states: Tensor, undesired: Tensor, strength: float = 1.0) -> Tensor:
    """States (..., D) less `strength` times what of them lies in the span of unwanted vectors (k, D); 1 leaves none."""
    return states - strength * states @ projector(undesired).to(states)


def singular_values(states: Tensor) -> Tensor:
    """Of a prompt's states (L, D), the largest first: how few directions hold most of them."""
    return torch.linalg.svdvals(states.double()).to(states.dtype)


@dataclass(frozen=True)
class DecorConfig(WordsConfig):
    """Whose prompts are cleaned; `word_dim` is the width of their states."""

    strength: float = 1.0  # share that is taken out


@register("decor")
class Decor(WordModel):
    """States of prompts (..., D) -> the same without what was to go; a projection that is kept and loaded as a model.

    Until `remove` nothing is taken out.
    """

    config: DecorConfig

    def __init__(self, config: DecorConfig) -> None:
        super().__init__(config)
        self.register_buffer("projection", torch.zeros(config.word_dim, config.word_dim))

    def remove(self, undesired: Tensor) -> None:
        """Set the projection to that of unwanted vectors (k, D); see `projector`."""
        self.projection.copy_(projector(undesired))  # type: ignore[operator]

    def forward(self, states: Tensor) -> Tensor:
        return states - self.config.strength * states @ self.projection
