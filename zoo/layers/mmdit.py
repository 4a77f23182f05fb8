"""MMDiT: a diffusion transformer in which an image and its context attend to both (arXiv 2403.03206)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.diffusion_transformer import GridPatches, Modulation, PlainNorm, WaveEmbedding, image_of, modulate
from zoo.layers.transformer import MLP
from zoo.ops.attention import attend


def heads_of(x: Tensor, parts: int, heads: int) -> Tensor:
    """(B, N, parts * width) -> (parts, B, heads, N, width of a head)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def token_places(count: int, device: torch.device) -> Tensor:
    """(count,) float32: the numbers by which Selftok tells tokens apart, all of them beyond the times of a flow."""
    return 1000 + 8 * torch.arange(count, device=device, dtype=torch.float32)


def tanh_mlp(width: int) -> MLP:
    """Four times as wide inside, with the approximation of GELU by tanh."""
    return MLP(width, 4 * width, _TanhGELU)


class _TanhGELU(nn.GELU):
    def __init__(self) -> None:
        super().__init__(approximate="tanh")


class _Stream(nn.Module):
    """One side of a joint block. `ends`: it is read, but not written."""

    def __init__(self, width: int, heads: int, *, ends: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = PlainNorm(width, 1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.modulation = Modulation(width, 2 if ends else 6)
        if not ends:
            self.proj = nn.Linear(width, width)
            self.mlp = tanh_mlp(width)

    def read(self, x: Tensor, parts: Tensor) -> Tensor:
        """(B, N, width) and what modulates it (B or 1, N or 1, 2 or 6, width) -> q, k and v (3, B, heads, N, C)."""
        return heads_of(self.qkv(modulate(self.norm(x), parts[..., 0, :], parts[..., 1, :])), 3, self.heads)

    def write(self, x: Tensor, mixed: Tensor, parts: Tensor) -> Tensor:
        _, _, gate1, shift2, scale2, gate2 = parts.unbind(-2)
        x = x + gate1 * self.proj(mixed)
        return x + gate2 * self.mlp(modulate(self.norm(x), shift2, scale2))


class _JointBlock(nn.Module):
    """Context and image attend to both. The time modulates the image, its place each token; in the last block the
    time modulates both, and the context ends."""

    def __init__(self, width: int, heads: int, *, last: bool) -> None:
        super().__init__()
        self.context, self.image = _Stream(width, heads, ends=last), _Stream(width, heads)
        self.place = None if last else WaveEmbedding(width)

    def forward(self, context: Tensor, x: Tensor, time: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        count = context.shape[1]
        place = time[:, None] if self.place is None else self.place(token_places(count, x.device))[None]
        of_context, of_image = self.context.modulation(place), self.image.modulation(time)[:, None]
        q, k, v = torch.cat([self.context.read(context, of_context), self.image.read(x, of_image)], 3)
        mixed = attend(q, k, v, mask)
        if self.place is not None:
            context = self.context.write(context, mixed[:, :count], of_context)
        return context, self.image.write(x, mixed[:, count:], of_image)


class JointTransformer(nn.Module):
    """Patches of an image and a context (B, tokens, dim) through joint blocks at a time: what an MMDiT has beside what
    makes its patches.

    Args:
        patches: module that makes the patches, which subclasses call.
        width, heads, layers: of the transformer.
        channels: of the image.
        dim: of the context.
        tokens: of the context.
        context_sees_image: whether the context attends to the image, beside itself.
    """

    context_positions: Tensor

    def __init__(
        self,
        patches: nn.Module,
        width: int,
        heads: int,
        layers: int,
        channels: int,
        dim: int,
        tokens: int,
        *,
        context_sees_image: bool = True,
    ) -> None:
        super().__init__()
        self.context_sees_image = context_sees_image
        self.patches = patches
        self.from_context = nn.Linear(dim, width)
        rates = 10_000 ** -(torch.arange(width // 2, dtype=torch.float32) / (width // 2))
        angles = token_places(tokens, rates.device)[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], 1)[None]
        self.register_buffer("context_positions", waves.to(self.from_context.weight.dtype))
        self.time = WaveEmbedding(width)
        self.blocks = nn.ModuleList(_JointBlock(width, heads, last=i == layers - 1) for i in range(layers))
        self.norm_out = PlainNorm(width, 1e-6)
        self.modulation_out = Modulation(width, 2)
        self.to_patches = nn.Linear(width, 4 * channels)

    def joint(self, patches: Tensor, grid: tuple[int, int], times: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """Args:
            patches: (B, N, width), row by row.
            grid: rows and columns of the patches.
            times: (B,), 1 being noise and 0 the signal.
            context: (B, tokens, dim).
            seen: (B, tokens) bool, what is attended to of the context; at least one token.

        Returns:
            An image (B, C, 2 rows, 2 columns).
        """
        time = self.time(1000 * times)
        context = self.from_context(context) + self.context_positions
        count, cells = context.shape[1], patches.shape[1]
        mask = torch.cat([seen, seen.new_ones(seen.shape[0], cells)], 1)[:, None].repeat(1, count + cells, 1)
        if not self.context_sees_image:
            mask[:, :count, count:] = False
        for block in self.blocks:
            context, patches = block(context, patches, time, mask[:, None])
        shift, scale = self.modulation_out(time)[:, None].unbind(2)
        return image_of(self.to_patches(modulate(self.norm_out(patches), shift, scale)), 2, grid)


class MMDiT(JointTransformer):
    """Predicts the velocity (noise - signal) of signals (B, C, H, W), reading a context (B, tokens, dim).

    Args:
        width, heads, layers, channels, dim, tokens, context_sees_image: as of a JointTransformer.
        grid: side of the stored positions, in patches of 2 x 2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        channels: int,
        dim: int,
        tokens: int,
        grid: int,
        *,
        context_sees_image: bool = True,
    ) -> None:
        patches = GridPatches(channels, width, 2, grid)
        super().__init__(patches, width, heads, layers, channels, dim, tokens, context_sees_image=context_sees_image)

    def forward(self, x: Tensor, times: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """Args:
            x: noisy signals (B, C, H, W).
            times: (B,), 1 being noise and 0 the signal.
            context: (B, tokens, dim).
            seen: (B, tokens) bool, what is attended to of the context; at least one token.

        Returns:
            The velocity (B, C, H, W).
        """
        return self.joint(self.patches(x), (x.shape[2] // 2, x.shape[3] // 2), times, context, seen)
