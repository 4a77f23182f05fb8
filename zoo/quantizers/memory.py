"""Memory codes: Gumbel-softmax quantisation whose classifier and codes are two maps of one table of memories.

Paper: NWT, arXiv 2106.04283, whose heads `GroupedConfig` puts side by side; used by 4M-21 (arXiv 2406.09406).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.quantizers.base import Quantizer, linear
from zoo.quantizers.gumbel import ClassifierConfig, Gumbel


@dataclass(frozen=True)
class MemoryConfig(ClassifierConfig):
    """`codebook_size` memories of width `dim`."""

    kind = "memory"
    dim: int = 64  # type: ignore[assignment]
    quantizer: ClassVar[type[Quantizer]]


class Memory(Gumbel):
    """Logits of a latent are its inner products with the keys of the memories, over the root of `dim`; its code is the
    value of the one that is chosen. Losses and modes are those of `Gumbel`.
    """

    def build_tables(self, codebook_size: int, dim: int) -> None:
        self.memories = nn.Parameter(torch.randn(codebook_size, dim))
        self.keys = nn.Linear(dim, dim, bias=False)
        self.values = nn.Linear(dim, dim, bias=False)

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = linear(self.keys, self.memories), linear(self.values, self.memories)
        return keys * self.config.dim**-0.5, keys.new_zeros(len(keys)), values


MemoryConfig.quantizer = Memory
