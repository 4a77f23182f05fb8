"""Vector quantisation: the nearest code of a learned codebook (VQ-VAE, arXiv 1711.00937)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.ops import Metric, nearest_code, soft_entropy
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, mean_squared_error, straight_through


@dataclass(frozen=True)
class GradientCodebookConfig(Config):
    """The codebook is a parameter that the `codebook` loss pulls to the latents."""

    kind = "gradient"


@dataclass(frozen=True)
class EmaCodebookConfig(Config):
    """The codebook follows the running mean of the latents assigned to each code (VQ-VAE, appendix A.1)."""

    kind = "ema"
    decay: float = 0.99
    smoothing: float = 1e-5  # Laplace smoothing of the counts
    revive_below: float = 0.0  # a code whose running count falls below it is put on a random latent of the batch

    def __post_init__(self) -> None:
        self.require(0 < self.decay < 1, "a decay in (0, 1)", self.decay)
        self.require(self.smoothing > 0, "smoothing > 0", self.smoothing)
        self.require(self.revive_below >= 0, "revive_below >= 0", self.revive_below)


@dataclass(frozen=True)
class SoftEntropyConfig(Config):
    """The entropy term of softmax(-distance / temperature): sample entropy - gamma * codebook entropy.

    The published codes round their logarithms in two ways, needed to match them: `clamp` (MaskBit, 1e-5) is a lower
    bound of every probability inside a logarithm, `shift` (LlamaGen, 1e-5) is added to the mean probabilities there.
    """

    temperature: float = 0.01
    gamma: float = 1.0
    clamp: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        self.require(self.temperature > 0, "a temperature > 0", self.temperature)
        self.require(0 <= self.clamp < 1 and 0 <= self.shift < 1, "clamp and shift in [0, 1)", (self.clamp, self.shift))


@dataclass(frozen=True)
class VectorConfig(QuantizerConfig):
    """A codebook of `codebook_size` vectors of width `dim`."""

    kind = "vector"
    codebook_size: int = 16384
    dim: int = 8  # type: ignore[assignment]
    metric: Metric = "euclidean"  # with "cosine" latents and codes are unit vectors everywhere
    codebook: GradientCodebookConfig | EmaCodebookConfig = GradientCodebookConfig()
    entropy: SoftEntropyConfig | None = None
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        self.require(self.codebook_size >= 1 and self.dim >= 1, "a size and dim >= 1", (self.codebook_size, self.dim))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


class Vector(Quantizer):
    """VQ with a gradient or EMA codebook.

    Losses: `codebook` = mean((codes - sg(z))^2) (gradient codebook only), `commitment` = mean((z - sg(codes))^2),
    `entropy` (training mode only, when configured). With the cosine metric z and codes are normalised first.
    """

    def __init__(self, config: VectorConfig) -> None:
        super().__init__(config)
        self.metric: Metric = config.metric
        self.entropy = config.entropy
        self.codebook = nn.Embedding(config.codebook_size, config.dim)
        nn.init.uniform_(self.codebook.weight, -1 / config.codebook_size, 1 / config.codebook_size)
        if config.metric == "cosine":
            nn.init.normal_(self.codebook.weight)
            with torch.no_grad():
                self.codebook.weight.copy_(F.normalize(self.codebook.weight, dim=-1))
        self.ema = None
        if isinstance(config.codebook, EmaCodebookConfig):
            self.codebook.weight.requires_grad_(False)
            self.ema = EmaUpdate(self.codebook.weight, config.codebook)

    def codes(self) -> Tensor:
        """The codebook as it is used: (K, D) float32, unit rows with the cosine metric."""
        return self._normalise(self.codebook.weight.float())

    def _normalise(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def quantize(self, z: Tensor) -> Quantized:
        z = self._normalise(z)
        flat = z.flatten(0, -2)
        indices = nearest_code(flat, self.codebook.weight, self.metric).view(z.shape[:-1])
        codes = self._normalise(F.embedding(indices, self.codebook.weight.float()))
        losses = {"commitment": mean_squared_error(z, codes.detach())}
        if self.ema is None:
            losses["codebook"] = mean_squared_error(codes, z.detach())
        statistics = {}
        if self.training and self.entropy is not None and len(flat) > 0:
            sample, codebook = soft_entropy(
                flat,
                self.codes().clone(),  # the graph keeps it, and a running codebook moves in place below
                self.entropy.temperature,
                clamp=self.entropy.clamp,
                shift=self.entropy.shift,
            )
            losses["entropy"] = sample - self.entropy.gamma * codebook
            statistics = {"sample_entropy": sample.detach(), "codebook_entropy": codebook.detach()}
        if self.training and self.ema is not None and len(flat) > 0:
            self.ema.update(self.codebook.weight, flat.detach(), indices.flatten())
        return Quantized(straight_through(z, codes), (indices,), losses, statistics)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return self._normalise(F.embedding(indices, self.codebook.weight.float()))


class EmaUpdate(nn.Module):
    """Running counts and sums of the latents assigned to each code; `update` moves the codebook to their means."""

    count: Tensor
    total: Tensor

    def __init__(self, weight: Tensor, config: EmaCodebookConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("count", torch.ones(len(weight)))
        self.register_buffer("total", weight.detach().clone())

    @torch.no_grad()
    def update(self, weight: Tensor, z: Tensor, indices: Tensor) -> None:
        """One step of the codebook `weight` with latents (N, D) and indices (N,), summed over all processes."""
        count = torch.zeros_like(self.count).index_add_(0, indices, torch.ones_like(indices, dtype=self.count.dtype))
        total = torch.zeros_like(self.total).index_add_(0, indices, z)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
            torch.distributed.all_reduce(total)
        self.count.lerp_(count, 1 - self.config.decay)
        self.total.lerp_(total, 1 - self.config.decay)
        self._revive(z)
        mass = self.count.sum()
        smoothed = (self.count + self.config.smoothing) / (mass + len(self.count) * self.config.smoothing) * mass
        weight.copy_(self.total / smoothed[:, None])

    def _revive(self, z: Tensor) -> None:
        dead = (self.count < self.config.revive_below).nonzero().squeeze(1)
        if len(dead) == 0:
            return
        vectors = z[torch.randint(len(z), (len(dead),), device=z.device)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(vectors, src=0)
        self.count[dead] = max(self.config.revive_below, 1.0)
        self.total[dead] = vectors * self.count[dead, None]


VectorConfig.quantizer = Vector
