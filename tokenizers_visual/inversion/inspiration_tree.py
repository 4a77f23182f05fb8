"""Inspiration Tree: a concept split into two words that are learned side by side, and each of those again.

Paper: "Concept Decomposition for Visual Exploration and Inspiration" (SIGGRAPH Asia 2023). Original:
google/inspiration_tree (Apache-2.0). The words are `LearnedWords` of two rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def timestep_weights(steps: int = 1000, slope: float = 0.5) -> Tensor:
    """How often each time of diffusion (steps,) is drawn in training: noisy times more often; slope 0: all alike.

    Raises:
        ValueError: a slope by which a weight would be negative.
    """
    if not -1 <= slope <= 1:
        raise ValueError(f"expected a slope in [-1, 1], got {slope}")
    times = torch.arange(steps, dtype=torch.float64)
    return ((1 - slope * (math.pi * times / steps).cos()) / steps).float()


@dataclass(frozen=True)
class SeedScore:
    """How well two words split a concept.

    Attributes:
        similarity: (3, 3), mean cosines between the images of the left word, of the right, and of both; within a set
            over its pairs.
        score: the words' own consistency, and by how much the weaker exceeds the likeness of the two.
    """

    similarity: Tensor
    score: Tensor


def seed_score(left: Tensor, right: Tensor, both: Tensor) -> SeedScore:
    """The score of two words from image features (n, E) of images made from each, and from both.

    The original trains words with the seeds 0, 1000, 1234 and 111, 200 steps each, and goes on with those that score
    best, by 40 images a set and features of CLIP's ViT-B/32.

    Raises:
        ValueError: a set of fewer than two images.
    """
    sets = [F.normalize(features.float(), dim=-1) for features in (left, right, both)]
    if min(map(len, sets)) < 2:
        raise ValueError(f"expected at least two images in each set, got {[len(features) for features in sets]}")
    similarity = torch.stack([torch.stack([_likeness(one, other) for other in sets]) for one in sets])
    own = similarity[0, 0], similarity[1, 1]
    return SeedScore(similarity, own[0] + own[1] + torch.minimum(*own) - similarity[0, 1])


def _likeness(one: Tensor, other: Tensor) -> Tensor:
    cosines = one @ other.T
    if one is not other:
        return cosines.mean()
    rows, columns = torch.triu_indices(len(one), len(one), offset=1, device=one.device)
    return cosines[rows, columns].mean()
