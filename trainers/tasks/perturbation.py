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
from zoo.quantizers import Binary, Quantized, Quantizer, Vector

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


def check_perturbation(quantizer: Quantizer) -> None:
    """Raise a ValueError unless the codes of `quantizer` can be perturbed."""
    sizes = quantizer.config.vocab_sizes
    if quantizer.config.scales or max(sizes) > MAXIMUM_CODES:
        raise ValueError(
            f"perturbation: expected levels of one size with at most {MAXIMUM_CODES} codes each, got "
            f"{quantizer.config.kind} with {max(sizes)} codes" + (" in scales" if quantizer.config.scales else "")
        )


@torch.no_grad()
def perturbed_levels(
    quantizer: Quantizer, z: Tensor, levels: tuple[Tensor, ...], probability: float, neighbours: int
) -> tuple[Tensor, ...]:
    """Indices in which tokens are drawn anew among the nearest codes, each with `probability`; the others stay.

    Nearest means to the latent for a codebook of vectors and for bits, whose latents and codes share a space, and to
    the token's own code for all other quantizers.

    Args:
        z: latents (B, *positions, D).
        levels: indices (B, *positions) of each level.
    """
    result = []
    for level, (indices, size) in enumerate(zip(levels, quantizer.config.vocab_sizes)):
        rows = [torch.zeros(1, size, dtype=torch.int64, device=z.device) for _ in levels]
        rows[level] = torch.arange(size, device=z.device)[None]
        table = quantizer.indices_to_codes(*rows)[0]
        if len(levels) == 1 and isinstance(quantizer, Vector | Binary):
            cosine = getattr(quantizer, "metric", None) == "cosine"
            points = (F.normalize(z.float(), dim=-1) if cosine else z.float()).flatten(0, -2)
        else:
            points = table[indices.flatten()]
        count = min(neighbours, size)
        near = nearest_codes(points, table, count)
        drawn = torch.rand(len(points), device=z.device) <= probability
        rank = torch.where(drawn, torch.randint(count, (len(points),), device=z.device), 0)
        replaced = near.gather(1, rank[:, None]).view(indices.shape)
        result.append(torch.where(drawn.view(indices.shape), replaced, indices))
    return tuple(result)


def perturb(quantizer: Quantizer, z: Tensor, quantized: Quantized, config: PerturbationConfig, step: int) -> Quantized:
    """The quantizer's result with perturbed codes in the first images; the rest, and gradients, are the clean ones.

    Args:
        z: the latents (B, *positions, D) that gave `quantized`.
        step: updates of the generator made so far.
    """
    count, strength = int(len(z) * config.share), config.strength(step)
    if count == 0:
        return quantized
    levels = tuple(level[:count] for level in quantized.levels)
    neighbours = max(1, int(strength * config.neighbours))
    drawn = perturbed_levels(quantizer, z[:count], levels, strength * config.probability, neighbours)
    with torch.no_grad():
        moved = quantizer.indices_to_codes(*drawn) - quantized.codes[:count]
        move = torch.cat([moved, torch.zeros_like(quantized.codes[count:])])
    return Quantized(quantized.codes + move, quantized.levels, quantized.losses, quantized.statistics)
