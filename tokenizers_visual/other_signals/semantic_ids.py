"""Semantic ids: the items of a catalogue get short tuples of codes, coarse to fine, in place of arbitrary numbers.

Paper: Better Generalization with Semantic IDs, arXiv 2306.08121 (8 levels of 2048 codes). Neither code nor weights are
published, and the widths of the network are not told: those here are a choice, the equations the paper's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.quantizers import EmaCodebookConfig, QuantizerConfig, ResidualConfig, VectorConfig
from zoo.registry import register
from zoo.structured import StructuredTokenizer


def residual_codes_of_items(codebook_size: int, dim: int, num_levels: int) -> ResidualConfig:
    """A codebook of its own for each level, which starts at the centres of the first batch and follows its items."""
    level = VectorConfig(codebook_size=codebook_size, dim=dim, codebook=EmaCodebookConfig(start="kmeans"))
    return ResidualConfig(level=level, num_levels=num_levels)


@dataclass(frozen=True)
class SemanticIdsConfig(Config):
    """Sizes of the network."""

    width: int = 768  # of an item's embedding
    hidden: tuple[int, ...] = (512, 256)  # of the encoder's layers; the decoder has them in the other order
    quantizer: QuantizerConfig = residual_codes_of_items(2048, 64, 8)

    def __post_init__(self) -> None:
        self.require(self.width >= 1 and min(self.hidden, default=1) >= 1, "widths >= 1", (self.width, self.hidden))


@register("semantic_ids")
class SemanticIds(StructuredTokenizer):
    """Catalogues of embeddings (N, width), each of any number of items, to as many places of one index a level.

    It learns to give back the embeddings: their mean squared error, and the commitment of the latents to their codes.
    """

    modality = "embeddings"
    config: SemanticIdsConfig  # type: ignore[assignment]

    def __init__(self, config: SemanticIdsConfig) -> None:
        super().__init__(config, config.quantizer)
        widths = (config.width, *config.hidden, config.quantizer.dim)
        self.encoder, self.decoder = _layers(widths), _layers(widths[::-1])

    def check(self, signal: Any) -> None:
        wanted = f"expected a floating point catalogue (N, {self.config.width})"
        if not isinstance(signal, Tensor) or not signal.is_floating_point():
            raise ValueError(f"{wanted}, got {signal.dtype if isinstance(signal, Tensor) else type(signal).__name__}")
        if signal.ndim != 2 or len(signal) == 0 or signal.shape[1] != self.config.width:
            raise ValueError(f"{wanted}, got {tuple(signal.shape)}")
        if not bool(signal.isfinite().all()):
            raise ValueError(f"{wanted}, got NaN or infinity")

    def latent(self, signal: Tensor) -> Tensor:
        return self.encoder(signal.to(self.dtype))

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes)


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear maps with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# -- what a ranking model makes of the ids -------------------------------------------------------------------------


def ngrams(ids: Tensor, size: int, vocabulary: int) -> Tensor:
    """A row of an embedding table for each group of consecutive codes.

    Args:
        ids: (N, L) int64 codes of items, `tokens.indices[0].T`.
        size: codes in a group; L is a multiple of it.
        vocabulary: codes of a level, K.

    Returns:
        (N, L / size) int64, in [0, L / size * K^size): groups at different places have rows of their own.

    Raises:
        ValueError: a size that does not divide the levels, or more rows than int64 holds.
    """
    levels = ids.shape[1]
    if size < 1 or levels % size:
        raise ValueError(f"size: expected a divisor of {levels} levels, got {size}")
    if levels // size * vocabulary**size >= 2**63:
        raise ValueError(f"expected groups of fewer than 2^63 values, got {levels // size} of {vocabulary}^{size}")
    places = vocabulary ** torch.arange(size - 1, -1, -1, device=ids.device)
    grouped = (ids.unflatten(1, (-1, size)) * places).sum(-1)
    return grouped + torch.arange(levels // size, device=ids.device) * vocabulary**size


def prefix_counts(ids: Tensor) -> list[int]:
    """How many different prefixes of 1, 2, ... L codes the items (N, L) have; the last is that of different ids."""
    return [len(ids[:, :length].unique(dim=0)) for length in range(1, ids.shape[1] + 1)]


def collisions(ids: Tensor) -> int:
    """How many items (N, L) share their id with another."""
    counts = ids.unique(dim=0, return_counts=True)[1]
    return int(counts[counts > 1].sum())
