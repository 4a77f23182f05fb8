"""The pre-norm transformer block of vision transformers (arXiv 2010.11929), and attention for streams.

Rotary positions: RoFormer, arXiv 2104.09864. Layer scale: CaiT, arXiv 2103.17239.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.in_place import added, may_overwrite, silu
from zoo.layers.inference import in_slices, is_plain
from zoo.layers.packed import Linear, can_be_packed, silu_gated
from zoo.layers.streaming import Stream
from zoo.ops.attention import attend

RotaryPairs = Literal["neighbours", "halves"]


class SelfAttention(nn.Module):
    """Full attention over the positions of (B, N, C), in `heads` heads, scaled by the inverse root of their width."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.proj = Linear(width, width, bias=bias)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, kept: slice = slice(None)) -> Tensor:
        """(B, N, C) -> the same, of the `kept` positions alone.

        `mask`: bool, broadcast to (B, heads, N, N), True where a query sees a key.
        """
        q, k, v = self.split(x)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., kept, :]
        return self.proj(attend(q[:, :, kept], k, v, mask))

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> queries, keys and values (3, B, heads, N, C / heads)."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def join(self, mixed: Tensor) -> Tensor:
        """The heads' results (B, heads, N, C / heads) -> (B, N, C)."""
        return self.proj(mixed.transpose(1, 2).flatten(2))


@dataclass
class AttentionState:
    """What a stream has seen: rotated keys and values (B, heads, n, C / heads) in the window, and their number ever."""

    keys: Tensor | None = None
    values: Tensor | None = None
    position: int = 0


class CausalAttention(SelfAttention):
    """Attention to the position itself and the `window - 1` before it, with rotary positions; no biases.

    Pair i of a head's channels turns by the angle position x base^(-2 i / width of a head). Time and memory grow with
    N x window.
    """

    def __init__(
        self, width: int, heads: int, window: int, *, base: float = 10_000.0, pairs: RotaryPairs = "neighbours"
    ) -> None:
        super().__init__(width, heads, bias=False)
        self.window, self.base, self.pairs = window, base, pairs

    def forward(  # type: ignore[override]  # its window is its mask
        self, x: Tensor, state: AttentionState | None = None
    ) -> Tensor:
        """(B, N, C) -> the same. With a `state` x goes on where the last call ended, and the state is updated."""
        qkv = self.split(x)
        start = 0 if state is None else state.position
        (q, k), v = rotate(qkv[:2], start, self.base, self.pairs), qkv[2]
        if state is not None:
            if state.keys is not None and state.values is not None:
                k, v = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
            kept = min(self.window - 1, k.shape[2])
            state.keys, state.values = (part[:, :, part.shape[2] - kept :].detach() for part in (k, v))
            state.position += x.shape[1]
        return self.join(windowed_attention(q, k, v, self.window))


def rotate(x: Tensor, start: int, base: float = 10_000.0, pairs: RotaryPairs = "neighbours") -> Tensor:
    """Rotary positions start, start + 1, ... on (..., N, C), in float32.

    `pairs`: channels 2 i and 2 i + 1 are pair i ("neighbours"), or i and i + C / 2 ("halves"); weights tell which.
    """
    half = x.shape[-1] // 2
    rate = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * rate
    axis, shape = (-1, (half, 2)) if pairs == "neighbours" else (-2, (2, half))
    one, other = x.float().unflatten(-1, shape).unbind(axis)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([one * cos - other * sin, one * sin + other * cos], dim=axis)
    return turned.flatten(-2).to(x.dtype)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention of queries (B, heads, N, C), the last of the keys' positions (B, heads, M, C), to their window.

    A query sees the key of its own position and of the `window - 1` before it. Blocks of `window` queries look at two
    blocks of keys, so that no mask of N x M is made.
    """
    count, earlier = q.shape[2], k.shape[2] - q.shape[2]
    if k.shape[2] <= 2 * window:
        distance = torch.arange(count, device=q.device)[:, None] + earlier - torch.arange(k.shape[2], device=q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < window))
    kept = max(0, earlier - window)
    k, v, earlier = k[:, :, kept:], v[:, :, kept:], earlier - kept
    k, v = (F.pad(part, (0, 0, window - earlier, -count % window)) for part in (k, v))
    blocks = F.pad(q, (0, 0, 0, -count % window)).unflatten(2, (-1, window))  # (B, heads, blocks, window, C)
    keys, values = (part.unfold(2, 2 * window, window).transpose(-1, -2) for part in (k, v))
    place = torch.arange(2 * window, device=q.device)
    distance = torch.arange(window, device=q.device)[:, None] + window - place
    first = torch.arange(blocks.shape[2], device=q.device)[:, None, None] * window + place < window - earlier
    mask = (distance >= 0) & (distance < window) & ~first
    mixed = F.scaled_dot_product_attention(blocks, keys, values, attn_mask=mask)
    return mixed.flatten(2, 3)[:, :, :count]


class MLP(nn.Module):
    """Linear, activation, linear: (..., C) -> (..., C)."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU, *, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden, bias=bias)
        self.activation = activation()
        self.fc2 = Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.activation, nn.GELU) and is_plain(self.fc1, Linear):
            return self.fc2(self.fc1(x, gelu=self.activation.approximate))
        return self.fc2(self.activation(self.fc1(x)))


class GatedMLP(nn.Module):
    """fc2(SiLU(fc1 x) * fc3 x) (SwiGLU, arXiv 2002.05202): (..., C) -> (..., C)."""

    def __init__(self, width: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden, bias=bias)
        self.fc2 = Linear(hidden, width, bias=bias)
        self.fc3 = Linear(width, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if all(is_plain(layer, Linear) and can_be_packed(x, layer.weight) for layer in (self.fc1, self.fc3)):
            return self.fc2(silu_gated(x, self.fc1, self.fc3))
        gate, value = silu(self.fc1(x)), self.fc3(x)
        return self.fc2(gate.mul_(value) if may_overwrite() else gate * value)


class LayerScale(nn.Module):
    """Each channel times a learned factor, small at the start: (..., C) -> the same."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class RMSNorm(nn.RMSNorm):
    """Root mean square norm over the last axis, computed in the precision of its weight, whatever autocast made of the
    input; where no gradient is asked for, on a CPU, in half of torch's passes over memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.eps is None or x.dtype != torch.float32 or not can_be_packed(x, self.weight):
            return super().forward(x)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        return torch.mul(x, mean_square.add_(self.eps).rsqrt_()).mul_(self.weight)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), for (B, N, C).

    `attention`: the module to use, or the number of heads of full attention. `layer_scale`: the start of the factors
    on both branches; None for no factors. `drop_rate`: how often a branch rests in training, see
    `add_stochastic_depth`.
    """

    drop_rate = 0.0

    def __init__(
        self,
        width: int,
        attention: nn.Module | int,
        mlp: nn.Module,
        *,
        eps: float = 1e-5,
        norm: type[nn.LayerNorm] | type[RMSNorm] = nn.LayerNorm,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm(width, eps=eps)
        self.attention = SelfAttention(width, attention) if isinstance(attention, int) else attention
        self.norm2 = norm(width, eps=eps)
        self.mlp = mlp
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, kept: slice | None = None) -> Tensor:
        """`state`: of a stream or of positions, for an attention that takes one; `mask` and `kept`: as those of
        `SelfAttention`.
        """
        arguments = () if state is None else (state,)
        options = {name: value for name, value in (("mask", mask), ("kept", kept)) if value is not None}
        rest = x if kept is None else x[:, kept]
        x = added(self._kept(self.scale1(self.attention(self.norm1(x), *arguments, **options))), rest)
        return added(self._kept(self.scale2(self.mlp(self.norm2(x)))), x)

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_rate == 0:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.drop_rate
        return branch * kept / (1 - self.drop_rate)


def through(
    blocks: Iterable[nn.Module], x: Tensor, state: Any = None, *, mask: Tensor | None = None, kept: slice | None = None
) -> Tensor:
    """x (B, N, C) after a stack of transformer blocks, whose MLPs are four times as wide.

    `state`, which all items share, `mask`, and `kept` of what the last one gives: as those of `TransformerBlock`.
    """
    *others, last = blocks

    def run(x: Tensor, own: Tensor | None) -> Tensor:
        given = mask if own is None else own
        for block in others:
            x = block(x, state, mask=given)
        return last(x, state, mask=given, kept=kept)  # type: ignore[no-any-return]

    gated = isinstance(getattr(last, "mlp", None), GatedMLP)
    hidden = 8 if gated else 4  # what a gated one multiplies is there at the same time
    own = mask if mask is not None and mask.ndim == 4 and len(mask) > 1 else None
    return in_slices(run, x, hidden * x.shape[1] * x.shape[2], own)


def add_stochastic_depth(model: nn.Module, rate: float) -> None:
    """In training, each item passes a block's branches by at random, and the others count for more (arXiv 1603.09382).

    In each stack of transformer blocks the probability rises linearly from 0 in the first to `rate` in the last.

    Raises:
        ValueError: a rate outside [0, 1), or a model without such blocks.
    """
    stacks = [[part for part in stack.children() if isinstance(part, TransformerBlock)] for stack in model.modules()]
    if not 0 <= rate < 1:
        raise ValueError(f"stochastic_depth: expected a value in [0, 1), got {rate}")
    if not any(stacks):
        raise ValueError("stochastic_depth: expected a model with transformer blocks, got none")
    for stack in stacks:
        for place, block in enumerate(stack):
            block.drop_rate = rate * place / max(1, len(stack) - 1)


class CausalTransformer(nn.Module):
    """Blocks of attention to the last `window` positions, without biases but in the norms: (B, C, T) -> the same.

    `layer_scale`: the start of the factors on the branches. Mimi, arXiv 2410.00037.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        window: int,
        *,
        base: float,
        layer_scale: float,
        pairs: RotaryPairs = "neighbours",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerBlock(
                width,
                CausalAttention(width, heads, window, base=base, pairs=pairs),
                MLP(width, hidden, bias=False),
                layer_scale=layer_scale,
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2)

    def stream(self) -> Stream:
        """The blocks piece by piece; each keeps the keys and values of its window."""
        return TransformerStream(self)


class TransformerStream(Stream):
    """A causal transformer that keeps what later positions attend to."""

    def __init__(self, transformer: CausalTransformer) -> None:
        self.layers = transformer.layers
        self.states = [AttentionState() for _ in self.layers]

    def step(self, x: Tensor, last: bool = False) -> Tensor:
        if x.shape[-1] == 0:
            return x
        x = x.transpose(1, 2)
        for layer, state in zip(self.layers, self.states):
            x = layer(x, state)
        return x.transpose(1, 2)
