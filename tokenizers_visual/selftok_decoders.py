"""Selftok's decoders: a flow from noise that sees the fewer tokens the cleaner it is, and a renderer in one step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.diffusion_transformer import euler, interpolate
from zoo.layers.mmdit import JointTransformer, MMDiT


@dataclass(frozen=True)
class FlowConfig(Config):
    """Sizes of the decoder; the defaults are those of the published models."""

    head_width: int = 64
    layers: int = 24  # and heads
    positions: int = 192  # side of the stored grid, of which smaller ones take the middle
    context_sees_image: bool = True
    stage_ends: tuple[int, ...] = (200, 400, 600, 800, 1000)  # of the time, in thousandths
    stage_tokens: tuple[int, ...] = (192, 184, 72, 48, 16)  # that each stage adds to what is seen
    steps: int = 50  # of sampling, unless decode is told another number
    null_probability: float = 0.0  # of an item to be trained without its tokens

    def __post_init__(self) -> None:
        ends = (0, *self.stage_ends)
        self.require(all(a < b for a, b in pairwise(ends)), "rising stage_ends > 0", self.stage_ends)
        self.require(
            len(self.stage_ends) == len(self.stage_tokens) > 0, "as many stage_tokens as stage_ends", self.stage_tokens
        )
        self.require(min(self.layers, self.steps) >= 1, "layers and steps >= 1", (self.layers, self.steps))
        self.require(0 <= self.null_probability < 1, "a null_probability in [0, 1)", self.null_probability)
        blind = self.null_probability > 0 and not self.context_sees_image
        self.require(not blind, "a context that sees the image where tokens are dropped", self.context_sees_image)

    @property
    def width(self) -> int:
        return self.head_width * self.layers

    def last_seen(self, times: Tensor) -> Tensor:
        """Times (B,), 0 to 1000 -> the last token (B,) that is seen then; all before it are seen too."""
        starts, bases = (0, *self.stage_ends[:-1]), (0, *accumulate(self.stage_tokens[:-1]))
        last = torch.zeros_like(times)
        for start, end, base, count in zip(starts, self.stage_ends, bases, self.stage_tokens):
            last = torch.where(times >= start, count / (end - start) * (times - start) + base, last)
        return last.long().clamp(0, sum(self.stage_tokens) - 1)


@dataclass(frozen=True)
class RendererConfig(Config):
    """Sizes of the renderer; the defaults are those of the published model of 512 tokens."""

    kind = "renderer"

    head_width: int = 64
    layers: int = 24  # and heads
    shared_mask_token: bool = True  # whether one stands for every patch, or each patch has its own

    def __post_init__(self) -> None:
        self.require(min(self.head_width, self.layers) >= 1, "head_width and layers >= 1", self)

    @property
    def width(self) -> int:
        return self.head_width * self.layers


class Flow(MMDiT):
    """The decoder, which knows what it sees at each time."""

    def __init__(self, config: FlowConfig, channels: int, dim: int, tokens: int) -> None:
        super().__init__(
            config.width,
            config.layers,
            config.layers,
            channels,
            dim,
            tokens,
            config.positions,
            context_sees_image=config.context_sees_image,
        )
        self.config = config

    def seen(self, times: Tensor) -> Tensor:
        """Times (B,) in [0, 1] -> which tokens (B, tokens) are seen then, bool."""
        last = self.config.last_seen((1000 * times).floor())
        return torch.arange(sum(self.config.stage_tokens), device=times.device) <= last[:, None]

    def sample(self, noise: Tensor, context: Tensor, steps: int | None = None) -> Tensor:
        """Noise (B, C, S, S) and a context (B, tokens, dim) -> signals.

        Raises:
            ValueError: steps below 1.
        """

        def velocity(x: Tensor, time: float) -> Tensor:
            times = torch.full((x.shape[0],), time, device=x.device)
            return self(x, times, context, self.seen(times))

        return euler(velocity, noise, self.config.steps if steps is None else steps)

    def flow(
        self, signal: Tensor, noise: Tensor, times: Tensor, context: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Signals with noise of times (B,) in (0, 1), and the velocities there, told the seen tokens (B, tokens)."""
        noised = interpolate(signal, noise, times)
        return noised, self(noised, times, context * seen[..., None], seen)


class _Canvas(nn.Module):
    """Learned patches (1, N, width) that a renderer starts from, where a flow has those of a noisy signal."""

    def __init__(self, width: int, count: int, *, shared_mask_token: bool) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(1, 1 if shared_mask_token else count, width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(count, width) * width**-0.5)

    def forward(self) -> Tensor:
        return self.mask_token + self.positions


class Renderer(JointTransformer):
    """The decoder of one step: a context (B, tokens, dim), all of it seen, -> signals (B, C, size, size).

    The time that modulates it is that of noise, and the context does not see the image.
    """

    def __init__(self, config: RendererConfig, channels: int, dim: int, tokens: int, size: int) -> None:
        side, width, layers = size // 2, config.width, config.layers
        canvas = _Canvas(width, side * side, shared_mask_token=config.shared_mask_token)
        super().__init__(canvas, width, layers, layers, channels, dim, tokens, context_sees_image=False)
        self.config, self.grid = config, (side, side)

    def forward(self, context: Tensor) -> Tensor:
        count = context.shape[0]
        seen = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        patches = self.patches().expand(count, -1, -1)
        return self.joint(patches, self.grid, torch.ones(count, device=context.device), context, seen)
