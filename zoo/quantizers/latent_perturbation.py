"""Latent perturbation: in training some tokens are replaced by near ones, so that the decoder learns to bear errors.

Paper: RobustTok, arXiv 2503.08354 (algorithm 1). The paper has one codebook of vectors; here any discrete tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import Config
from zoo.ops import nearest_codes
from zoo.quantizers.base import Quantized, Quantizer
from zoo.quantizers.binary import Binary
from zoo.quantizers.vector import Vector

MAXIMUM_CODES = 1 << 18  # of a level; all of them are compared with every token


@dataclass(frozen=True)
class PerturbationConfig(Config):
    """How many tokens are replaced, by what, and how that declines; a step is one update of the generator."""

    probability: float = 1.0  # of each token to be drawn again among its neighbours (alpha of the paper)
    share: float = 0.1  # of the images of a batch, the first ones (beta)
    neighbours: int = 100  # nearest codes to draw from, the right one included (delta)
    decline_start: int = 0  # up to this step in full strength ...
    decline_end: int = 1  # ... from this one on at `final_strength`, linearly between
    final_strength: float = 0.5  # factor of probability and neighbours at the end

    def __post_init__(self) -> None:
        shares = (self.probability, self.share, self.final_strength)
        self.require(all(0 <= value <= 1 for value in shares), "probability, share, final_strength in [0, 1]", shares)
        self.require(self.neighbours >= 1, "neighbours >= 1", self.neighbours)
        steps = (self.decline_start, self.decline_end)
        self.require(0 <= steps[0] < steps[1], "0 <= decline_start < decline_end", steps)

    def strength(self, step: int) -> float:
        """Factor of probability and neighbours at a step."""
        done = (step - self.decline_start) / (self.decline_end - self.decline_start)
        return 1 - min(1.0, max(0.0, done)) * (1 - self.final_strength)

    def neighbours_at(self, step: int) -> int:
        """Number of nearest codes to draw from at a step."""
        return max(1, int(self.strength(step) * self.neighbours))


@dataclass(frozen=True)
class Draws:
    """Given random numbers of one level, one a token, row by row: `uniforms` (N,) in [0, 1], `ranks` (N,) from 0."""

    uniforms: Tensor
    ranks: Tensor


def check_perturbation(quantizer: Quantizer) -> None:
    """Raise a ValueError unless the codes of `quantizer` can be perturbed."""
    sizes = quantizer.config.vocab_sizes
    if quantizer.config.scales or max(sizes) > MAXIMUM_CODES:
        raise ValueError(
            f"perturbation: expected levels of one size with at most {MAXIMUM_CODES} codes each, got "
            f"{quantizer.config.kind} with {max(sizes)} codes" + (" in scales" if quantizer.config.scales else "")
        )


@torch.no_grad()
def near_codes(quantizer: Quantizer, z: Tensor, levels: tuple[Tensor, ...], level: int, count: int) -> Tensor:
    """(N, count) indices of the codes of a level that are nearest to each of its N tokens, nearest first.

    Nearest means to the latent for a codebook of vectors and for bits, whose latents and codes share a space, and to
    the token's own code for all other quantizers.

    Args:
        z: latents (B, *positions, D).
        levels: indices (B, *positions) of each level.
        level: which.
        count: 1 to the number of the level's codes.
    """
    size = quantizer.config.vocab_sizes[level]
    rows = [torch.zeros(1, size, dtype=torch.int64, device=z.device) for _ in levels]
    rows[level] = torch.arange(size, device=z.device)[None]
    table = quantizer.indices_to_codes(*rows)[0]
    if len(levels) == 1 and isinstance(quantizer, Vector | Binary):
        cosine = getattr(quantizer, "metric", None) == "cosine"
        points = (F.normalize(z.float(), dim=-1) if cosine else z.float()).flatten(0, -2)
    else:
        points = table[levels[level].flatten()]
    return nearest_codes(points, table, count)


@torch.no_grad()
def perturbed_levels(
    quantizer: Quantizer,
    z: Tensor,
    levels: tuple[Tensor, ...],
    probability: float,
    neighbours: int,
    draws: tuple[Draws, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Indices in which tokens are drawn anew among the nearest codes, each with `probability`; the others stay.

    Args:
        z: latents (B, *positions, D).
        levels: indices (B, *positions) of each level.
        draws: random numbers for each level; None for fresh ones.
    """
    result = []
    for level, (indices, size) in enumerate(zip(levels, quantizer.config.vocab_sizes)):
        near = near_codes(quantizer, z, levels, level, min(neighbours, size))
        given = _draw(near) if draws is None else draws[level]
        drawn = given.uniforms <= probability
        replaced = near.gather(1, torch.where(drawn, given.ranks, 0)[:, None]).view(indices.shape)
        result.append(torch.where(drawn.view(indices.shape), replaced, indices))
    return tuple(result)


def _draw(near: Tensor) -> Draws:
    count, most = near.shape
    return Draws(torch.rand(count, device=near.device), torch.randint(most, (count,), device=near.device))


def perturb(
    quantizer: Quantizer,
    z: Tensor,
    quantized: Quantized,
    config: PerturbationConfig,
    step: int,
    draws: tuple[Draws, ...] | None = None,
) -> Quantized:
    """The quantizer's result with perturbed codes in the first images; the rest, and gradients, are the clean ones.

    Args:
        z: the latents (B, *positions, D) that gave `quantized`.
        step: updates of the generator made so far.
        draws: random numbers for each level of the first images; None for fresh ones.
    """
    count = int(len(z) * config.share)
    if count == 0:
        return quantized
    levels = tuple(level[:count] for level in quantized.levels)
    probability = config.strength(step) * config.probability
    drawn = perturbed_levels(quantizer, z[:count], levels, probability, config.neighbours_at(step), draws)
    with torch.no_grad():
        moved = quantizer.indices_to_codes(*drawn) - quantized.codes[:count]
        move = torch.cat([moved, torch.zeros_like(quantized.codes[count:])])
    return Quantized(quantized.codes + move, quantized.levels, quantized.losses, quantized.statistics)
