"""The soft assignment of vectors to the codes of a codebook: a softmax over codes, a chunk of vectors at a time."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.recomputed import recomputed

Score = Literal["squared_distance", "distance", "dot"]

_CHUNK = 1 << 19  # scores held at a time: 2 MB in float32, which a cache holds


def assignment_logits(z: Tensor, codes: Tensor, temperature: float, score: Score = "squared_distance") -> Tensor:
    """Logits of the assignment of vectors (N, D) to codes (K, D), up to a term that is the same for all codes.

    Args:
        z: (N, D) floating point.
        codes: (K, D).
        temperature: T > 0.
        score: the softmax is of -|z - c|^2 / T ("squared_distance"), -|z - c| / T ("distance") or z.c / T ("dot").

    Returns:
        (N, K).
    """
    products = z @ codes.T
    if score == "dot":
        return products / temperature
    if score == "squared_distance":
        return (2 * products - codes.square().sum(-1)) / temperature
    squares = z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * products
    return squares.clamp_min(1e-8).sqrt() / -temperature  # no finite slope at distance 0


def chunked(z: Tensor, count: int) -> tuple[Tensor, ...]:
    """Vectors (N, D) in parts that have few enough rows for a table of `count` scores each."""
    elements = _CHUNK if z.device.type == "cpu" else _CHUNK << 5  # enough work for a GPU
    return z.split(max(1, elements // count))


def soft_cross_entropy(
    z: Tensor, codes: Tensor, indices: Tensor, temperature: float, score: Score = "squared_distance"
) -> Tensor:
    """Mean over vectors of -log softmax_k(score of code k / T) at the code of their index, in nats; of none 0.

    Args:
        z: (N, D) latents. Gradients flow to it and to the codes.
        codes: (K, D).
        indices: (N,) int64 in [0, K).
        temperature: T > 0.
        score: as of `assignment_logits`.

    Returns:
        A scalar.

    Raises:
        ValueError: a shape, temperature or score that does not fit.
    """
    check_assignment(z, codes, temperature, score)
    if indices.shape != z.shape[:1]:
        raise ValueError(f"expected indices ({len(z)},), got {tuple(indices.shape)}")

    def total(chunk: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(assignment_logits(chunk, codes, temperature, score), wanted, reduction="sum")

    z, codes = z.float(), codes.float()
    parts = zip(chunked(z, len(codes)), chunked(indices, len(codes)))
    return torch.stack([recomputed(total, *part) for part in parts]).sum() / max(1, len(z))


@torch.no_grad()
def sample_codes(z: Tensor, codes: Tensor, temperature: float, score: Score = "squared_distance") -> Tensor:
    """Indices (N,) drawn from the soft assignment of vectors (N, D) to codes (K, D), by torch's global generator.

    Raises:
        ValueError: a shape, temperature or score that does not fit.
    """
    check_assignment(z, codes, temperature, score)
    z, codes = z.float(), codes.float()
    drawn = []
    for chunk in chunked(z, len(codes)):
        logits = assignment_logits(chunk, codes, temperature, score)
        noise = torch.empty_like(logits).exponential_().log_()  # the largest of logits - log E is a draw (Gumbel)
        drawn.append((logits - noise).argmax(dim=1))
    return torch.cat(drawn)


def check_assignment(z: Tensor, codes: Tensor, temperature: float, score: Score) -> None:
    """Raise a ValueError unless z is (N, D), codes (K, D) with K > 0, T > 0 and the score a known one."""
    if z.ndim != 2 or codes.ndim != 2 or z.shape[1] != codes.shape[1] or len(codes) == 0:
        raise ValueError(f"expected (N, D) and (K, D) with K > 0, got {tuple(z.shape)} and {tuple(codes.shape)}")
    if temperature <= 0:
        raise ValueError(f"expected a temperature > 0, got {temperature}")
    if score not in get_args(Score):
        raise ValueError(f"score: expected one of {', '.join(get_args(Score))}, got {score!r}")
