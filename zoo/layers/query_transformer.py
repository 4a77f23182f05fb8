"""Transformers between an image and a row of latent vectors: queries that read patches, a grid that reads latents.

TiTok, arXiv 2406.07550. Neither side has causal order; positions are learned, so the image's size is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.transformer import MLP, TransformerBlock, through


@dataclass(frozen=True)
class TransformerSizes(Config):
    """Sizes of one transformer; its MLPs are four times as wide."""

    width: int = 768
    layers: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        self.require(min(self.width, self.layers, self.heads) >= 1, "sizes >= 1", self)
        self.require(self.width % self.heads == 0, "a width that the heads divide", (self.width, self.heads))


class Transformer(nn.Module):
    """Norm, pre-norm blocks with full attention, norm: (B, L, width) -> the same. All norms are layer norms."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, sizes.heads, MLP(width, 4 * width)) for _ in range(sizes.layers)
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Tensor, *, kept: slice, mask: Tensor | None = None) -> Tensor:
        """Args:
            x: (B, L, width).
            kept: positions of the sequence that are wanted.
            mask: bool, broadcast to (B, heads, L, L), True where a query sees a key.

        Returns:
            (B, kept positions, width).
        """
        # the last block's other positions serve nobody
        return self.norm_out(through(self.blocks, self.norm_in(x), mask=mask, kept=kept))


class QueryEncoder(nn.Module):
    """Images (B, 3, S, S) -> (B, N, width): N learned queries among the patches, after a class token."""

    def __init__(self, image_size: int, patch_size: int, queries: int, sizes: TransformerSizes) -> None:
        super().__init__()
        width, grid = sizes.width, image_size // patch_size
        self.patches = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_token = learned(width)
        self.positions = learned(1 + grid**2, width)
        self.queries = learned(queries, width)
        self.query_positions = learned(queries, width)
        self.transformer = Transformer(sizes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        head = self.class_token.expand(x.shape[0], 1, -1)
        queries = (self.queries + self.query_positions).expand(x.shape[0], -1, -1)
        sequence = torch.cat([torch.cat([head, patches], 1) + self.positions, queries], 1)
        return self.transformer(sequence, kept=slice(-queries.shape[1], None))


class QueryDecoder(nn.Module):
    """Latent vectors (B, k, D), k <= N -> a map (B, width, grid, grid): a grid of one mask token reads the latents.

    The sequence is a class token, the grid, the latents, and what else is given to read.
    """

    def __init__(self, grid: int, dim: int, queries: int, sizes: TransformerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.grid = grid
        self.embed = nn.Linear(dim, width)
        self.class_token = learned(width)
        self.mask_token = learned(width)
        self.positions = learned(1 + grid**2, width)
        self.query_positions = learned(queries, width)
        self.transformer = Transformer(sizes)

    def forward(self, codes: Tensor, lengths: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Args:
            codes: (B, k, D).
            lengths: (B,) how many of the k belong to the item, where items differ; nothing sees the others.
            context: (B, n, width) further positions to read.

        Raises:
            ValueError: more latents than there are positions for.
        """
        count, most, cells = codes.shape[1], len(self.query_positions), self.grid**2
        if not 1 <= count <= most:
            raise ValueError(f"expected 1 to {most} tokens, got {count}")
        latents = self.embed(codes) + self.query_positions[:count]
        grid = torch.cat([self.class_token[None], self.mask_token.expand(cells, -1)]) + self.positions
        parts = [grid.expand(codes.shape[0], -1, -1).to(latents.dtype), latents]
        if context is not None:
            parts.append(context.to(latents.dtype))
        mask = None
        if lengths is not None:
            seen = torch.arange(count, device=codes.device) < lengths.to(codes.device)[:, None]
            others = seen.new_ones(codes.shape[0], 1).expand(-1, sum(part.shape[1] for part in parts) - count)
            mask = torch.cat([others[:, : 1 + cells], seen, others[:, 1 + cells :]], 1)[:, None, None]
        hidden = self.transformer(torch.cat(parts, 1), kept=slice(1, 1 + cells), mask=mask)
        return hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid))


def learned(*shape: int) -> nn.Parameter:
    """Tokens or positions (..., width), started as normal numbers over the root of the width."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)
