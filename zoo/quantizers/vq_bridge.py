"""VQBridge: a small transformer maps the codebook, so that every code moves in every step (FVQ, arXiv 2509.10140).

The paper's pipeline is compress, process, recover: runs of codes become tokens, transformer blocks mix them, and each
token becomes its run of codes again. It is needed in training alone: `to_vector` keeps the codes and drops the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import Metric
from zoo.quantizers.base import Quantizer, QuantizerConfig, linear
from zoo.quantizers.gradients import GradientConfig, StraightThroughConfig
from zoo.quantizers.sim_vq import ImplicitCodebook


@dataclass(frozen=True)
class VQBridgeConfig(QuantizerConfig):
    """`codebook_size` learned vectors of width `dim` behind a transformer over runs of `run` of them."""

    kind = "vq_bridge"
    codebook_size: int = 16384
    dim: int = 8  # type: ignore[assignment]
    run: int = 16
    width: int = 256
    depth: int = 2
    heads: int = 4
    metric: Metric = "euclidean"  # with "cosine" latents and codes are unit vectors everywhere
    gradient: GradientConfig = StraightThroughConfig()
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        sizes = (self.codebook_size, self.dim, self.run, self.width, self.depth, self.heads)
        self.require(min(sizes) >= 1, "sizes >= 1", sizes)
        self.require(self.codebook_size % self.run == 0, f"a multiple of {self.run} codes", self.codebook_size)
        self.require(self.width % self.heads == 0, f"a width that {self.heads} heads divide", self.width)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,)


class VQBridge(ImplicitCodebook):
    """Nearest code among the learned vectors plus what the transformer makes of all of them."""

    def __init__(self, config: VQBridgeConfig) -> None:
        super().__init__(config)
        self.metric, self.gradient, self.run = config.metric, config.gradient, config.run
        self.codebook = nn.Embedding(config.codebook_size, config.dim)
        nn.init.normal_(self.codebook.weight, std=config.dim**-0.5)
        self.compress = nn.Linear(config.run * config.dim, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.depth))
        self.recover = nn.Linear(config.width, config.run * config.dim)

    def codes(self) -> Tensor:
        weight = self.codebook.weight.float()
        tokens = linear(self.compress, weight.view(len(weight) // self.run, -1))
        for block in self.blocks:
            tokens = block(tokens)
        codes = weight + linear(self.recover, tokens).view_as(weight)
        return F.normalize(codes, dim=-1) if self.metric == "cosine" else codes


class _Block(nn.Module):
    """Pre-norm attention and feed-forward over tokens (N, width), in float32."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = linear(self.qkv, F.layer_norm(x, x.shape[-1:])).view(len(x), 3, self.heads, -1).unbind(1)
        mixed = F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in (q, k, v)))
        x = x + linear(self.out, mixed[0].transpose(0, 1).flatten(1))
        return x + linear(self.down, F.gelu(linear(self.up, F.layer_norm(x, x.shape[-1:]))))


VQBridgeConfig.quantizer = VQBridge
