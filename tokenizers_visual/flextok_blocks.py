"""The transformer blocks of FlexTok (arXiv 2502.13967): layer norms without weights, which time may modulate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.in_place import added, may_overwrite
from zoo.layers.inference import in_slices
from zoo.layers.packed import Linear
from zoo.layers.transformer import GatedMLP
from zoo.ops.attention import attend


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:])


def _added(x: Tensor, factor: Tensor, y: Tensor, parts: Sequence[int]) -> Tensor:
    """x + factor y for y (B, L, C), each of the first parts of the sequence, L long together, with its row of factors
    (B, parts, C); x is (B, L, C) or such rows. The result may take the memory of y.
    """
    lengths = 1 if x.shape == factor.shape else list(parts)
    pieces = list(zip(x.split(lengths, 1), factor.split(1, 1), y.split(list(parts), 1), strict=False))
    if may_overwrite() and x.dtype == factor.dtype == y.dtype:
        for piece in pieces:
            torch.addcmul(*piece, out=piece[2])
        return y
    return torch.cat([torch.addcmul(*piece) for piece in pieces], 1)


class _Attention(nn.Module):
    """Attention of normalised queries and keys, scaled by 8 / width of a head; no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, seen: int | None = None, kept: slice = slice(None)) -> Tensor:
        parts = (self.q(x[:, kept]), self.k(x), self.v(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        q, k, v = (part.transpose(1, 2) for part in (plain_norm(q), plain_norm(k), v))
        return self.proj(attend(q, k, v, seen, scale=8 / q.shape[-1]))


class Block(nn.Module):
    """The pre-norm block, its norms without weights; with `modulations` (per part of the sequence) by a condition."""

    def __init__(self, width: int, heads: int, modulations: int = 0) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.mlp = GatedMLP(width, 2 * 4 * width // 3)
        self.modulation = nn.Linear(width, modulations * 6 * width) if modulations else None

    def forward(
        self,
        x: Tensor,
        seen: int | None = None,
        kept: slice = slice(None),
        condition: Tensor | None = None,
        parts: Sequence[int] = (),
    ) -> Tensor:
        """(B, L, width) -> the same, of the `kept` positions alone.

        Args:
            seen: how many first positions all see, while others are seen from their own on; None: all are.
            kept: with a condition, the first part, or all.
            condition: (B, width).
            parts: lengths of the parts of the sequence.
        """
        if self.modulation is None or condition is None:
            x = added(self.attention(plain_norm(x), seen, kept), x[:, kept])
            return added(self.mlp(plain_norm(x)), x)
        rows = self.modulation(F.silu(condition)).unflatten(-1, (-1, 6, x.shape[-1]))  # (B, modulations, 6, width)
        gate1, gate2, shift1, scale1, shift2, scale2 = rows.unbind(2)
        parts = parts if rows.shape[1] > 1 else (x.shape[1],)
        mixed = self.attention(_added(shift1, 1 + scale1, plain_norm(x), parts), seen, kept)
        parts = parts if mixed.shape[1] == x.shape[1] else (mixed.shape[1],)
        x = _added(x[:, kept], gate1, mixed, parts)
        return _added(x, gate2, self.mlp(_added(shift2, 1 + scale2, plain_norm(x), parts)), parts)


def through(
    blocks: Iterable[nn.Module], x: Tensor, kept: slice, condition: Tensor | None = None, **options: Any
) -> Tensor:
    """The `kept` positions of x (B, L, C) after blocks, which take the `condition` (B, C) and the options."""
    *others, last = blocks

    def run(x: Tensor, condition: Tensor | None) -> Tensor:
        for block in others:
            x = block(x, condition=condition, **options)
        return last(x, kept=kept, condition=condition, **options)  # type: ignore[no-any-return]

    hidden = 6  # the two that a gated MLP multiplies are 8 / 3 as wide
    return in_slices(run, x, hidden * x.shape[1] * x.shape[2], condition)
