"""Codebooks of vector quantizers: how they start, and what moves them.

VQ-VAE, arXiv 1711.00937 (gradient, running means: appendix A.1); SoundStream, arXiv 2107.03312 (k-means start, revival
of dead codes); Straightening out the straight-through estimator, arXiv 2305.08842 (affine reparametrisation, a step of
the codebook before its use). All statistics are those of the joined batch of all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.ops import Metric, kmeans, nearest_code
from zoo.ops.collective import sum_over_ranks, world_size
from zoo.ops.joined_batch import joined_code_sums, joined_sample, joined_seed

_LEAST_COUNT = 1e-5  # that a running sum is divided by where counts are not smoothed
_START_VECTORS = 256  # per code, at most: more do not make k-means better


@dataclass(frozen=True, kw_only=True)
class CodebookConfig(Config):
    """Base of the codebooks' configs; a config field of this type takes any.

    `start="kmeans"` puts the codes on the centres of the latents of the first training batch.
    """

    start: Literal["random", "kmeans"] = "random"
    kmeans_iterations: int = 10

    def check(self) -> None:
        self.require(self.kmeans_iterations >= 1, "at least 1 iteration of k-means", self.kmeans_iterations)


@dataclass(frozen=True)
class GradientCodebookConfig(CodebookConfig):
    """The codebook is a parameter that the `codebook` loss pulls to the latents."""

    kind = "gradient"
    revive_below: float = 0.0  # a code whose running count falls below it is put on a random latent of the batch
    decay: float = 0.99  # of the running counts
    pull_unused: bool = False  # each step moves a code to its nearest latent of the batch, a rare code nearly all of it

    def __post_init__(self) -> None:
        self.check()
        self.require(self.revive_below >= 0, "revive_below >= 0", self.revive_below)
        self.require(0 < self.decay < 1, "a decay in (0, 1)", self.decay)
        both = self.pull_unused and self.revive_below > 0
        self.require(not both, "pull_unused or revive_below, not both", (self.pull_unused, self.revive_below))


@dataclass(frozen=True)
class EmaCodebookConfig(CodebookConfig):
    """The codebook follows the running mean of the latents assigned to each code."""

    kind = "ema"
    decay: float = 0.99
    smoothing: float = 1e-5  # Laplace smoothing of the counts; 0: none, the divisors being at least 1e-5 (Mimi)
    revive_below: float = 0.0  # a code whose running count falls below it is put on a random latent of the batch

    def __post_init__(self) -> None:
        self.check()
        self.require(0 < self.decay < 1, "a decay in (0, 1)", self.decay)
        self.require(self.smoothing >= 0, "smoothing >= 0", self.smoothing)
        self.require(self.revive_below >= 0, "revive_below >= 0", self.revive_below)


@dataclass(frozen=True)
class DirectionCodebookConfig(CodebookConfig):
    """For the cosine metric: each step moves a code by 1 - decay of the way to the direction of the latents assigned to
    it (the mean of their unit vectors, at unit length), a code without any to its own direction. Used by 4M.
    """

    kind = "directions"
    decay: float = 0.99
    revive_below: float = 0.0  # a code whose running count falls below it is put on a random latent of the batch

    def __post_init__(self) -> None:
        self.check()
        self.require(0 < self.decay < 1, "a decay in (0, 1)", self.decay)
        self.require(self.revive_below >= 0, "revive_below >= 0", self.revive_below)


@dataclass(frozen=True)
class InPlaceCodebookConfig(CodebookConfig):
    """Each training pass first moves the codebook by a gradient step on the `codebook` loss, then uses it."""

    kind = "in_place"
    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        self.check()
        self.require(self.learning_rate > 0, "a learning_rate > 0", self.learning_rate)
        self.require(0 <= self.momentum < 1, "a momentum in [0, 1)", self.momentum)


@dataclass(frozen=True)
class FrozenCodebookConfig(CodebookConfig):
    """The codebook stays as it is: given, or found by its start."""

    kind = "frozen"

    def __post_init__(self) -> None:
        self.check()


@dataclass(frozen=True)
class AffineConfig(Config):
    """Codes are used shifted and scaled, per dimension, from their own running mean and variance to the latents'."""

    latent_decay: float = 0.99
    codebook_decay: float = 0.9

    def __post_init__(self) -> None:
        decays = (self.latent_decay, self.codebook_decay)
        self.require(all(0 <= decay < 1 for decay in decays), "decays in [0, 1)", decays)


class Codebook(nn.Module):
    """`weight` (K, D), and the start and steps that its config asks for."""

    started: Tensor
    velocity: Tensor

    def __init__(self, config: CodebookConfig, size: int, dim: int, metric: Metric) -> None:
        super().__init__()
        self.config, self.metric = config, metric
        weight = torch.empty(size, dim)
        if metric == "cosine":
            weight = F.normalize(nn.init.normal_(weight), dim=-1)
        else:
            nn.init.uniform_(weight, -1 / size, 1 / size)
        self.weight = nn.Parameter(weight, requires_grad=isinstance(config, GradientCodebookConfig))
        if config.start == "kmeans":
            self.register_buffer("started", torch.tensor(False))
        if isinstance(config, InPlaceCodebookConfig):
            self.register_buffer("velocity", torch.zeros(size, dim))

    @torch.no_grad()
    def start(self, z: Tensor) -> Tensor | None:
        """Put the codes on the k-means centres of latents (N, D), once, if so configured; not on the meta device.

        Returns:
            The number (K,) of latents of each centre when it did so, else None.
        """
        if self.config.start != "kmeans" or z.is_meta or bool(self.started):
            return None
        size = len(self.weight)
        vectors = joined_sample(z, _START_VECTORS * size)
        if len(vectors) == 0:
            return None
        generator = torch.Generator(vectors.device).manual_seed(joined_seed(vectors.device))
        metric: Literal["euclidean", "cosine"] = "cosine" if self.metric == "cosine" else "euclidean"
        iterations = self.config.kmeans_iterations
        centres, counts = kmeans(vectors, size, metric, iterations=iterations, generator=generator)
        if world_size() > 1:  # on a GPU sums may differ in their last bits
            torch.distributed.broadcast(centres, src=0)
            torch.distributed.broadcast(counts, src=0)
        self.weight.copy_(centres)
        self.started.fill_(True)
        return counts

    @torch.no_grad()
    def step(self, z: Tensor) -> None:
        """Gradient descent on the mean squared distance of latents (N, D) to their codes, if so configured."""
        if not isinstance(self.config, InPlaceCodebookConfig):
            return
        sums, counts = joined_code_sums(z, nearest_code(z, self.weight, self.metric), len(self.weight))
        total = counts.sum()
        slope = (counts[:, None] * self.weight - sums) * (2 / (total.clamp_min(1) * self.weight.shape[1]))
        self.velocity.copy_(torch.where(total > 0, self.config.momentum * self.velocity + slope, self.velocity))
        self.weight.sub_(torch.where(total > 0, self.config.learning_rate * self.velocity, 0))


class RunningStatistics(nn.Module):
    """Running counts of the latents assigned to each code and, for a codebook that follows them, running sums."""

    count: Tensor
    total: Tensor

    def __init__(
        self, config: GradientCodebookConfig | EmaCodebookConfig | DirectionCodebookConfig, weight: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("count", torch.ones(len(weight)))
        if isinstance(config, EmaCodebookConfig):
            self.register_buffer("total", weight.detach().clone())

    @torch.no_grad()
    def restart(self, weight: Tensor, counts: Tensor) -> None:
        """Begin anew with codes (K, D) that stand for `counts` (K,) latents each."""
        self.count.copy_(counts.clamp_min(1))
        if isinstance(self.config, EmaCodebookConfig):
            self.total.copy_(weight * self.count[:, None])

    @torch.no_grad()
    def update(self, weight: Tensor, z: Tensor, indices: Tensor) -> None:
        """One step with latents (N, D) and their indices (N,): moves the codes (K, D) and revives dead ones, which the
        meta device cannot tell.
        """
        if isinstance(self.config, DirectionCodebookConfig):
            z = F.normalize(z, dim=-1)
        sums, counts = joined_code_sums(z, indices, len(weight))
        some = counts.sum() > 0  # a batch without latents changes nothing
        rate = (1 - self.config.decay) * some.float()
        self.count.lerp_(counts.to(self.count.dtype), rate.to(self.count.dtype))
        if isinstance(self.config, EmaCodebookConfig):
            self.total.lerp_(sums.to(self.total.dtype), rate.to(self.total.dtype))
            mass, smoothing = self.count.sum(), self.config.smoothing
            smoothed = (self.count + smoothing) / (mass + len(weight) * smoothing) * mass
            divisor = smoothed if smoothing > 0 else self.count.clamp_min(_LEAST_COUNT)
            weight.copy_(torch.where(some, self.total / divisor[:, None], weight))
        if isinstance(self.config, DirectionCodebookConfig):
            towards = F.normalize(torch.where(counts[:, None] > 0, sums.to(weight.dtype), weight), dim=-1)
            weight.lerp_(towards, rate.to(weight.dtype))
        if self.config.revive_below > 0 and not z.is_meta:
            self._revive(weight, z)

    def _revive(self, weight: Tensor, z: Tensor) -> None:
        dead = (self.count < self.config.revive_below).nonzero().squeeze(1)
        if len(dead) == 0:
            return
        vectors = joined_sample(z, len(dead))
        if len(vectors) < len(dead):  # never two codes on one latent: the least used first, the others when they can
            dead = dead[self.count[dead].argsort(stable=True)[: len(vectors)]]
        weight[dead] = vectors.to(weight.dtype)
        self.count[dead] = max(self.config.revive_below, 1.0)
        if isinstance(self.config, EmaCodebookConfig):
            self.total[dead] = weight[dead] * self.count[dead, None]


class PullOfUnused(nn.Module):
    """Online clustering of codes (CVQ-VAE, arXiv 2307.15139): a code goes a part of the way to its nearest latent.

    The part is exp(-10 K share / (1 - decay) - 0.001), `share` being the running share of the latents that the code
    gets of K codes; so codes in use stay where they are.
    """

    share: Tensor

    def __init__(self, config: GradientCodebookConfig, size: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("share", torch.zeros(size))

    @torch.no_grad()
    def update(self, weight: Tensor, z: Tensor, indices: Tensor, metric: Metric) -> None:
        """One step of codes (K, D) after latents (N, D) took those of their indices (N,); not on the meta device."""
        if z.is_meta:
            return
        size, decay = len(weight), self.config.decay
        counts = joined_code_sums(z, indices, size)[1]
        latents = joined_sample(z, _START_VECTORS * size)
        if len(latents) == 0:
            return
        self.share.lerp_((counts.float() / counts.sum()).to(self.share.dtype), 1 - decay)
        part = (-10 * size * self.share / (1 - decay) - 1e-3).exp()[:, None].to(weight.dtype)
        nearest = latents[nearest_code(weight, latents, metric)].to(weight.dtype)
        weight.lerp_(nearest, part)


class Affine(nn.Module):
    """Running mean and variance, per dimension, of latents and of codes; the first batch sets them."""

    started: Tensor
    latent_mean: Tensor
    latent_variance: Tensor
    codebook_mean: Tensor
    codebook_variance: Tensor

    def __init__(self, config: AffineConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("started", torch.tensor(False))
        for name in ("latent", "codebook"):
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_variance", torch.ones(dim))

    @torch.no_grad()
    def update(self, z: Tensor, weight: Tensor) -> None:
        """Take in latents (N, D), N over all processes, and codes (K, D)."""
        wide = torch.float32 if z.device.type == "mps" else torch.float64
        finite = z.isfinite().all(dim=1, keepdim=True)
        kept = torch.where(finite, z, 0).to(wide)
        moments = torch.stack([finite.sum(0, dtype=wide).expand(z.shape[1]), kept.sum(0), kept.square().sum(0)])
        sum_over_ranks(moments)
        count = moments[0].clamp_min(1)
        mean = moments[1] / count
        variance = (moments[2] / count - mean.square()).clamp_min(0)
        codes = weight.to(wide)
        some = moments[0, 0] > 0
        for name, first, second, decay in (
            ("latent", mean, variance, self.config.latent_decay),
            ("codebook", codes.mean(0), codes.var(0, correction=0), self.config.codebook_decay),
        ):
            rate = torch.where(self.started, some.float() * (1 - decay), some.float())
            for moment, value in (("mean", first), ("variance", second)):
                running = getattr(self, f"{name}_{moment}")
                running.lerp_(value.to(running.dtype), rate.to(running.dtype))
        self.started.logical_or_(some)

    def codes(self, weight: Tensor) -> Tensor:
        """Codes (K, D) as they are used."""
        return (weight - self.codebook_mean) * self._scale() + self.latent_mean

    def latents(self, z: Tensor) -> Tensor:
        """Latents (N, D) where the codes are kept: the inverse of `codes`."""
        return (z - self.latent_mean) / self._scale() + self.codebook_mean

    def _scale(self) -> Tensor:
        return (self.latent_variance.clamp_min(1e-5) / self.codebook_variance.clamp_min(1e-5)).sqrt()
