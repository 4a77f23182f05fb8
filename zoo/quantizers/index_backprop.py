"""Index back-propagation quantisation: gradients reach all codes through the soft assignment of each latent (IBQ).

Paper: arXiv 2412.02692. Original: TencentARC/SEED-Voken (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import nearest_code
from zoo.ops.own_gradient import OwnGradient, once_differentiable
from zoo.ops.soft_assignment import chunked
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, mean_squared_error
from zoo.quantizers.regularisers import SoftEntropyConfig


@dataclass(frozen=True)
class IndexBackpropagationConfig(QuantizerConfig):
    """A codebook of `codebook_size` vectors of width `dim`, searched by inner product."""

    kind = "index_backpropagation"
    own_gradient = True
    codebook_size: int = 16384
    dim: int = 256  # type: ignore[assignment]
    entropy: SoftEntropyConfig | None = None
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        self.require(self.codebook_size >= 1 and self.dim >= 1, "a size and dim >= 1", (self.codebook_size, self.dim))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


class IndexBackpropagation(Quantizer):
    """IBQ. The code of largest inner product; backward as if it were chosen by softmax_k(z.c_k).

    Losses: `index` = mean((codes - z)^2), whose gradient goes through the soft assignment to the latent and all codes;
    `commitment` = mean((z - sg(codes))^2) and `codebook` = mean((codes - sg(z))^2), through the chosen code alone;
    `entropy` (training mode only, when configured). The original's quantizer loss is index + commitment + 0.25
    codebook.
    """

    config: IndexBackpropagationConfig

    def __init__(self, config: IndexBackpropagationConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Embedding(config.codebook_size, config.dim)

    def quantize(self, z: Tensor) -> Quantized:
        flat, table = z.flatten(0, -2), self.codebook.weight.float()
        indices = nearest_code(flat, table, "dot")
        chosen = F.embedding(indices, table).view_as(z)
        codes = _IndexBackpropagation.apply(flat, table, indices).view_as(z)
        losses = {
            "index": mean_squared_error(codes, z),
            "commitment": mean_squared_error(z, chosen.detach()),
            "codebook": mean_squared_error(chosen, z.detach()),
        }
        statistics: dict[str, Tensor] = {}
        if self.training and self.config.entropy is not None:
            losses["entropy"], statistics = self.config.entropy.loss(flat, table, "dot")
        return Quantized(codes, (indices.view(z.shape[:-1]),), losses, statistics)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return F.embedding(indices, self.codebook.weight.float())


class _IndexBackpropagation(OwnGradient):
    """Forward: codes by index. Backward: of (onehot - sg(p) + p) @ codebook with p = softmax(z @ codebook^T), in chunks
    of latents, so that no N x K table is kept."""

    @staticmethod
    def forward(z: Tensor, table: Tensor, indices: Tensor) -> Tensor:
        return F.embedding(indices, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        z, table, indices = ctx.saved_tensors
        of_table = torch.zeros_like(table).index_add_(0, indices, gradient)
        of_z = []
        for latents, slope in zip(chunked(z, len(table)), chunked(gradient, len(table))):
            probability = (latents @ table.T).softmax(-1)
            of_probability = slope @ table.T
            of_probability -= (probability * of_probability).sum(-1, keepdim=True)
            of_logits = probability.mul_(of_probability)
            of_z.append(of_logits @ table)
            of_table.addmm_(of_logits.T, latents)
        return torch.cat(of_z), of_table, None


IndexBackpropagationConfig.quantizer = IndexBackpropagation
