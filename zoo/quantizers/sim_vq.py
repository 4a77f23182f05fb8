"""SimVQ: the codebook is a learned linear image of frozen random vectors, so that all codes move at once.

Paper: arXiv 2411.02038.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import Metric, nearest_code
from zoo.ops.precision import full_precision
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, linear, mean_squared_error
from zoo.quantizers.codebooks import FrozenCodebookConfig
from zoo.quantizers.gradients import GradientConfig, StraightThroughConfig
from zoo.quantizers.vector import Vector, VectorConfig


@dataclass(frozen=True)
class SimVQConfig(QuantizerConfig):
    """`codebook_size` frozen vectors of width `frozen_dim` (None: `dim`), and a linear map to width `dim`."""

    kind = "sim_vq"
    codebook_size: int = 16384
    dim: int = 128  # type: ignore[assignment]
    frozen_dim: int | None = None
    bias: bool = False
    metric: Metric = "euclidean"  # with "cosine" latents and codes are unit vectors everywhere
    gradient: GradientConfig = StraightThroughConfig()
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        sizes = (self.codebook_size, self.dim, self.frozen_dim)
        self.require(all(size is None or size >= 1 for size in sizes), "sizes >= 1", sizes)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


class ImplicitCodebook(Quantizer):
    """Base of quantizers whose codes are computed from parameters; a subclass writes `codes`.

    Losses: `codebook` = mean((codes - sg(z))^2), whose gradient goes to those parameters; `commitment` = mean((z -
    sg(codes))^2).
    """

    metric: Metric
    gradient: GradientConfig

    def codes(self) -> Tensor:
        """The codebook as it is used: (K, D) float32, unit rows with the cosine metric."""
        raise NotImplementedError

    def quantize(self, z: Tensor) -> Quantized:
        if self.metric == "cosine":
            z = F.normalize(z, dim=-1)
        table = self.codes()
        indices = nearest_code(z.flatten(0, -2), table, self.metric).view(z.shape[:-1])
        codes = F.embedding(indices, table)
        losses = {
            "commitment": mean_squared_error(z, codes.detach()),
            "codebook": mean_squared_error(codes, z.detach()),
        }
        return Quantized(self.gradient.estimate(z, codes, self.training), (indices,), losses)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        with full_precision(indices):
            return F.embedding(indices, self.codes())

    def to_vector(self) -> Vector:
        """A plain quantizer of the same codes, frozen: for inference, since it computes them once and for all."""
        codes = self.codes().detach()
        config = VectorConfig(len(codes), codes.shape[1], self.metric, FrozenCodebookConfig())
        vector = Vector(config).to(codes.device).train(self.training)
        vector.codebook.weight.copy_(codes)
        return vector


class SimVQ(ImplicitCodebook):
    """Nearest code among the linear images of frozen normal vectors. The paper weighs `commitment` less."""

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__(config)
        self.metric, self.gradient = config.metric, config.gradient
        width = config.frozen_dim or config.dim
        self.codebook = nn.Embedding(config.codebook_size, width)
        nn.init.normal_(self.codebook.weight, std=width**-0.5)
        self.codebook.weight.requires_grad_(False)
        self.transform = nn.Linear(width, config.dim, bias=config.bias)

    def codes(self) -> Tensor:
        codes = linear(self.transform, self.codebook.weight)
        return F.normalize(codes, dim=-1) if self.metric == "cosine" else codes


SimVQConfig.quantizer = SimVQ
