"""Metrics of whole sets of images: Frechet distance (arXiv 1706.08500), Inception score (arXiv 1606.03498), codebooks.

Their states are sums in float64 or int64, so that they add up exactly over batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.metrics.image import codebook_statistics
from zoo.tokens import integers


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Squared Frechet distance of two normal distributions, in float64.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With C = R R^T, the last trace is the sum of the singular values
    of R1^T R2, which are real and nonnegative also where the covariances are singular, so that no small multiple of the
    identity has to be added.

    Args:
        mean, other_mean: (D,).
        covariance, other_covariance: (D, D), symmetric.

    Returns:
        A number, at least 0 but for rounding.
    """
    roots = []
    for matrix in (covariance, other_covariance):
        values, vectors = torch.linalg.eigh(matrix.double())
        sure = values > len(values) * torch.finfo(torch.float64).eps * values[-1]  # the rest is rounding
        roots.append(vectors[:, sure] * values[sure].sqrt())
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    distance = (mean.double() - other_mean.double()).square().sum()
    return distance + covariance.double().trace() + other_covariance.double().trace() - 2 * shared


class FrechetDistance(Metric):
    """Frechet distance between the features of originals and of reconstructions.

    Args:
        dim: D of the features.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    counts: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(2, dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(2, dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Count features (B, D) of both sets.

        Raises:
            ValueError: another shape, or features that are not finite.
        """
        dim, sets = self.sums.shape[1], (originals, reconstructions)
        for features in sets:
            _require_features(features, dim, "features")
        for side, features in enumerate(sets):
            features = features.double()
            self.counts[side] += len(features)
            self.sums[side] += features.sum(0)
            self.products[side] += features.T @ features

    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and unbiased covariance of each set.

        Raises:
            ValueError: fewer than two images in a set.
        """
        if self.counts.min() < 2:
            raise ValueError(f"expected at least 2 images in each set, got {self.counts.tolist()}")
        moments = []
        for count, total, product in zip(self.counts, self.sums, self.products):
            mean = total / count
            moments.append((mean, (product - torch.outer(total, mean)) / (count - 1)))
        return moments

    def compute(self) -> Tensor:
        """The distance over all images so far, of all processes, as a float64 number."""
        (mean, covariance), (other_mean, other_covariance) = self.moments()
        return frechet_distance(mean, covariance, other_mean, other_covariance)


class InceptionScore(Metric):
    """exp of the mean divergence between each image's class distribution and that of its split, mean over the splits.

    Image i of the data set belongs to split i mod `splits`, so that the score does not depend on batches or processes.

    Args:
        classes: C of the logits.
        splits: parts of the set, 10 in the literature.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor
    entropies: Tensor
    sums: Tensor

    def __init__(self, classes: int, splits: int = 10) -> None:
        super().__init__()
        self.splits = splits
        self.add_state("counts", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("entropies", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(splits, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, positions: Tensor) -> None:
        """Count images.

        Args:
            logits: (B, C).
            positions: (B,), integer positions of the images in the data set.

        Raises:
            ValueError: other shapes, logits that are not finite, or positions that are no integers.
        """
        _require_features(logits, self.sums.shape[1], "logits")
        positions = integers(positions)
        if positions.shape != (len(logits),):
            raise ValueError(f"expected {len(logits)} positions, got {tuple(positions.shape)}")
        logs = logits.double().log_softmax(1)
        probabilities = logs.exp()
        splits = positions.to(logits.device) % self.splits
        self.counts.index_add_(0, splits, torch.ones_like(splits))
        self.entropies.index_add_(0, splits, -(probabilities * logs).sum(1))
        self.sums.index_add_(0, splits, probabilities)

    def compute(self) -> Tensor:
        """The score over all images so far, of all processes; splits without images do not count.

        Raises:
            ValueError: no images.
        """
        used = self.counts > 0
        if not used.any():
            raise ValueError("expected at least one image, got none")
        counts = self.counts[used].double()
        marginal = torch.special.entr(self.sums[used] / counts[:, None]).sum(1)
        return (marginal - self.entropies[used] / counts).exp().mean()


class CodebookUse(Metric):
    """Usage, perplexity, entropy and dead codes of each level of a tokenizer, from the counts of all its indices.

    Args:
        vocab_sizes: codes of each level.
        maximum: levels of more codes are not counted.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, vocab_sizes: Sequence[int], maximum: int = 1 << 24) -> None:
        super().__init__()
        self.levels = len(vocab_sizes)
        self.counted = tuple(level for level, size in enumerate(vocab_sizes) if size <= maximum)
        for level in self.counted:
            self.add_state(f"counts_{level}", torch.zeros(vocab_sizes[level], dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, levels: Sequence[Tensor]) -> None:
        """Count the indices of each level, of any shape.

        Raises:
            ValueError: another number of levels, no integers, or an index outside its vocabulary.
        """
        if len(levels) != self.levels:
            raise ValueError(f"expected indices of {self.levels} levels, got {len(levels)}")
        found = {level: integers(levels[level]).flatten() for level in self.counted}
        for level, indices in found.items():
            size = len(getattr(self, f"counts_{level}"))
            least, largest = (int(bound) for bound in indices.aminmax()) if len(indices) else (0, 0)
            if not 0 <= least <= largest < size:
                raise ValueError(f"level {level}: expected indices in [0, {size}), got {least} to {largest}")
        for level, indices in found.items():
            counts = getattr(self, f"counts_{level}")
            counts += torch.bincount(indices.to(counts.device), minlength=len(counts))

    def joined_counts(self) -> dict[int, Tensor]:
        """Level -> (K,) how often each of its codes was used, in all processes."""
        with self.sync_context():
            return {level: getattr(self, f"counts_{level}").clone() for level in self.counted}

    def compute(self) -> dict[int, dict[str, float]]:
        """Level -> `codebook_statistics` of it."""
        return {level: codebook_statistics(getattr(self, f"counts_{level}")) for level in self.counted}


class MeanOverImages(Metric):
    """Mean of one number per image, in float64."""

    is_differentiable = False
    full_state_update = False
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Count values (B,)."""
        self.count += values.numel()
        self.total += values.double().sum()

    def compute(self) -> Tensor:
        """The mean over all images so far, of all processes; NaN without any."""
        return self.total / self.count


def _require_features(features: Tensor, dim: int, name: str) -> None:
    """Raise a ValueError, with expected and got, unless these are finite numbers (B, dim)."""
    if not isinstance(features, Tensor):
        raise ValueError(f"expected finite {name} (B, {dim}), got {type(features).__name__}")
    if features.ndim != 2 or features.shape[1] != dim or not features.isfinite().all():
        raise ValueError(f"expected finite {name} (B, {dim}), got {tuple(features.shape)}")
