"""VQToken: the visual features of a clip, clustered on the spot, become a few vectors for a language model.

Paper: arXiv 2503.16980. Original: Hai-chao-Zhang/VQToken (BSD-3-Clause), checked by tests/parity/vqtoken. Its codebook
is of one clip alone: an index means nothing beyond it, and there is no way back to pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.model import Model
from zoo.ops import code_sums, nearest_code
from zoo.registry import register


@dataclass(frozen=True)
class ClipTokens:
    """A clip in terms of its own clusters.

    Attributes:
        indices: (T, N) int64, the cluster of each token of each frame.
        codes: (K, D) the means of the clusters' unit vectors; zero of an empty one.
    """

    indices: Tensor
    codes: Tensor


@dataclass(frozen=True)
class VQTokenConfig(Config):
    """Sizes of the attention, and of the clustering; the defaults are those of the published model."""

    tokens: int = 729  # of a frame
    width: int = 896  # of a token
    heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.1
    clusters: int = 32
    iterations: int = 300  # at most
    tolerance: float = 1e-4  # clustering ends once the centres together move by less

    def __post_init__(self) -> None:
        sizes = (self.tokens, self.width, self.heads, self.feedforward, self.clusters, self.iterations)
        self.require(min(sizes) >= 1, "sizes >= 1", sizes)
        self.require(self.width % self.heads == 0, f"a width that {self.heads} heads divide", self.width)
        self.require(0 <= self.dropout < 1, "a dropout in [0, 1)", self.dropout)


@register("vqtoken")
class VQToken(Model):
    """Features of a clip (T, N, D) to K vectors of its own, and these with the map of clusters to max(T, K) vectors."""

    config: VQTokenConfig  # type: ignore[assignment]

    def __init__(self, config: VQTokenConfig) -> None:
        super().__init__(config)
        self.to_query = nn.Linear(config.tokens, config.width)
        self.layer = nn.TransformerDecoderLayer(config.width, config.heads, config.feedforward, config.dropout)

    def described(self) -> dict[str, Any]:
        return {
            "modality": "features",
            "layout": "sequence",
            "quantizer": "clusters",
            "config": self.config.to_dict(),
        }

    @torch.no_grad()
    def encode(
        self, features: Tensor, *, num_tokens: int | None = None, start: Tensor | None = None, seed: int = 0
    ) -> ClipTokens:
        """Cluster the directions of a clip's features; the same for the same seed.

        Args:
            features: (T, N, D) finite.
            num_tokens: K, by default the config's; `elbow` finds one for a clip.
            start: (K, D) first centres; by default drawn as k-means++ does.
            seed: of that draw.

        Raises:
            ValueError: another shape or type, or values that are not finite.
        """
        config, count = self.config, self.config.clusters if num_tokens is None else num_tokens
        _check(features, (config.tokens, config.width))
        unit = F.normalize(features.float().flatten(0, 1), dim=-1)
        if not 1 <= count <= len(unit):
            raise ValueError(f"num_tokens: expected 1 to {len(unit)}, got {count}")
        centres = spread(unit, count, seed) if start is None else start.to(unit)
        if centres.shape != (count, config.width):
            raise ValueError(f"start: expected {(count, config.width)}, got {tuple(centres.shape)}")
        indices = cluster(unit, centres, config.iterations, config.tolerance)[0]
        sums, counts = code_sums(unit, indices, count)
        return ClipTokens(indices.view(features.shape[:2]), sums / counts.clamp_min(1)[:, None])

    def forward(self, clip: ClipTokens) -> Tensor:
        """(max(T, K), D): frames, given by the numbers of their clusters, attend to the clusters' vectors.

        The shorter of both is repeated to the length of the longer. Numbers of clusters are taken as magnitudes, so
        another order of the same clusters gives another result, as in the original.
        """
        query, memory = self.to_query(clip.indices.to(self.dtype)), clip.codes.to(self.dtype)
        length = max(len(query), len(memory))
        query, memory = (x[torch.arange(length, device=x.device) % len(x)] for x in (query, memory))
        return self.layer(query, memory)


def spread(x: Tensor, count: int, seed: int) -> Tensor:
    """(count, D): rows of x (N, D), each drawn in proportion to its squared distance to the nearest drawn before."""
    generator = torch.Generator().manual_seed(seed)
    rows = [int(torch.randint(len(x), (1,), generator=generator))]
    least = torch.full((len(x),), torch.inf, device=x.device)
    while len(rows) < count:
        least = torch.minimum(least, (x - x[rows[-1]]).square().sum(-1))
        rows.append(int(torch.multinomial(least.cpu() + 1e-6, 1, generator=generator)))
    return x[rows]


def cluster(x: Tensor, centres: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """K-means of unit vectors (N, D) whose centres are plain means; one that loses its vectors stays where it is.

    Returns:
        (indices (N,), of the centres before their last step; centres (K, D) after it).
    """
    indices = torch.empty(0, dtype=torch.int64)
    for _ in range(iterations):
        indices = nearest_code(x, centres, "cosine")
        sums, counts = code_sums(x, indices, len(centres))
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        step, centres = (moved - centres).norm(), moved
        if bool(step < tolerance):
            break
    return indices, centres


@torch.no_grad()
def elbow(model: VQToken, features: Tensor, least: int = 12, most: int = 32, seed: int = 0) -> int:
    """How many clusters a clip needs: where one more begins to help less, the largest second difference of the mean
    cosine distance of features (T, N, D) to their clusters.

    Raises:
        ValueError: features as in `encode`, or fewer than three numbers to choose from.
    """
    if most < least + 2:
        raise ValueError(f"expected at least three numbers of clusters, got {least} to {most}")
    distances = []
    for count in range(least, most + 1):
        clip = model.encode(features, num_tokens=count, seed=seed)
        cosines = F.cosine_similarity(features, clip.codes[clip.indices], dim=-1)
        distances.append(float((1 - cosines).mean()))
    bends = torch.tensor(distances).diff().diff()
    return least + 1 + int(bends.argmax())


def _check(features: Tensor, shape: tuple[int, int]) -> None:
    wanted = f"floating point features (frames, {shape[0]}, {shape[1]})"
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"expected {wanted}, got {got}")
    if features.ndim != 3 or len(features) == 0 or features.shape[1:] != shape:
        raise ValueError(f"expected {wanted}, got {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError("expected finite features, got NaN or infinity")


# -- the original --------------------------------------------------------------------------------------------------


def config_from_original(meta: dict[str, Any]) -> VQTokenConfig:
    """The config of the original's constructor arguments.

    Raises:
        ValueError: several layers of attention.
    """
    kwargs = {"num_heads": 1, "num_layers": 1, "max_iteration": 300, **meta["original"]["kwargs"]}
    if kwargs["num_layers"] != 1:
        raise ValueError(f"expected one layer of attention, got {kwargs['num_layers']}")
    return VQTokenConfig(
        tokens=kwargs["query_dim"],
        width=kwargs["context_dim"],
        heads=kwargs["num_heads"],
        clusters=kwargs["num_clusters"],
        iterations=kwargs["max_iteration"],
    )


KEY_MAP = KeyMap({"to_q_proj.*": "to_query.*", "transformer_decoder.layers.0.*": "layer.*"})
