"""The binary mapper of the Free Transformer (arXiv 2510.17558): H random bits choose one of 2^H learned vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops.bit_tables import joint_probabilities, sum_by_bit
from zoo.ops.own_gradient import OwnGradient, once_differentiable
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, linear
from zoo.quantizers.bit_indices import bits_to_indices

_CHUNK = 1 << 21  # probabilities held at a time: 8 MB in float32


@dataclass(frozen=True)
class BinaryMapperConfig(QuantizerConfig):
    """`dim`: width of latents and codes; `bits` H: a table of 2^H codes."""

    kind = "binary_mapper"
    own_gradient = True
    dim: int = 64  # type: ignore[assignment]
    bits: int = 10  # the paper's is 16
    free_nats: float = math.log(2)  # of the divergence, per position, below which `kl` is 0

    def __post_init__(self) -> None:
        self.require(self.dim >= 1, "dim >= 1", self.dim)
        self.require(1 <= self.bits <= 24, "1 to 24 bits", self.bits)
        self.require(self.free_nats >= 0, "free_nats >= 0", self.free_nats)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (2**self.bits,)


class BinaryMapper(Quantizer):
    """A projection gives H log odds; training draws each bit, evaluation takes the likelier value.

    The gradient to the log odds is that of the expected code, as if all codes were weighed by their probabilities.
    Loss (training mode only): `kl` = mean(max(0, H log 2 - entropy of the bits - free_nats)), in nats.
    """

    config: BinaryMapperConfig

    def __init__(self, config: BinaryMapperConfig) -> None:
        super().__init__(config)
        self.projection = nn.Linear(config.dim, config.bits)
        self.codebook = nn.Embedding(2**config.bits, config.dim)

    def quantize(self, z: Tensor) -> Quantized:
        logits = linear(self.projection, z)
        probability = logits.sigmoid()
        ones = probability.bernoulli() if self.training else probability > 0.5
        (indices,) = bits_to_indices(ones, 1, most_significant_first=False)
        losses = {}
        if self.training:
            entropy = (F.softplus(logits) - logits * probability).sum(-1)
            excess = F.relu(self.config.bits * math.log(2) - entropy - self.config.free_nats)
            losses["kl"] = excess.sum() / max(1, excess.numel())
        codes = _Lookup.apply(logits.flatten(0, -2), self.codebook.weight.float(), indices.flatten())
        return Quantized(codes.view(z.shape), (indices,), losses)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return F.embedding(indices, self.codebook.weight.float())


class _Lookup(OwnGradient):
    """Rows (N, D) of a table (2^H, D) by index; the log odds (N, H) get the gradient of the expected row."""

    @staticmethod
    def forward(logits: Tensor, table: Tensor, indices: Tensor) -> Tensor:
        return F.embedding(indices, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        logits, table, indices = ctx.saved_tensors
        of_table = torch.zeros_like(table).index_add_(0, indices, gradient)
        of_logits = torch.empty_like(logits)
        rows = max(1, _CHUNK // len(table))
        for start in range(0, len(logits), rows):
            chunk = logits[start : start + rows].T[None]
            one, zero = chunk.sigmoid(), (-chunk).sigmoid()
            weighted = joint_probabilities(one, zero) * (table @ gradient[start : start + rows].T)
            is_one, is_zero = sum_by_bit(weighted)
            of_logits[start : start + rows] = (zero * is_one - one * is_zero)[0].T
        return of_logits, of_table, None


BinaryMapperConfig.quantizer = BinaryMapper
