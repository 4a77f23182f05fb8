"""DECOR: takes the directions of unwanted tokens out of a prompt's states, by projection.

Paper: arXiv 2412.09169. There is no public code; which tokens are unwanted, and how much of them goes, is the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
