"""The interface of every quantizer: latents in, code vectors and integers out, losses by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.constants import HasConstants
from zoo.ops.precision import full_precision

_MOST_COUNTED = 1 << 20  # codes that have a counter each


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns.

    Attributes:
        codes: (B, *positions, D) code vectors; gradients pass to the latent (straight-through).
        levels: int64 indices, one tensor (B, *positions) per codebook level.
        losses: auxiliary losses by name, unweighted scalars; the task weighs them.
        statistics: detached scalars by name (usage, perplexity, entropies), in training mode only.
    """

    codes: Tensor
    levels: tuple[Tensor, ...]
    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def indices(self) -> Tensor:
        """The indices as one tensor: (B, *positions), or (B, *positions, Q) where there are Q > 1 levels."""
        return self.levels[0] if len(self.levels) == 1 else torch.stack(self.levels, dim=-1)


class QuantizerConfig(Config):
    """Base of the quantizers' configs; `kind` is the quantizer's name.

    A config field of this type takes any quantizer.
    """

    quantizer: ClassVar[type[Quantizer]]
    prefix: ClassVar[bool] = False  # whether the first levels alone are a coarser version of the same codes
    scales: ClassVar[bool] = False  # whether levels differ in their positions, and a code depends on all of them
    own_gradient: ClassVar[bool] = False  # whether parameters learn by the codes' gradient, which then must not be cut

    @property
    def dim(self) -> int:
        """Width D of the latent that the quantizer takes and of the codes that it returns."""
        raise NotImplementedError

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        raise NotImplementedError

    def level_shapes(self, positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Position axes of the indices of each level, for latents (B, *positions, D)."""
        return (positions,) * len(self.vocab_sizes)

    def build(self) -> Quantizer:
        """The quantizer module, freshly initialised."""
        return self.quantizer(self)


class DigitsConfig(QuantizerConfig):
    """Base of the configs of quantizers with one index, made of a digit for each dimension, 0 being the fastest.

    `levels`: how many values each dimension takes; its length is the latent width.
    """

    levels: tuple[int, ...]

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)

    @property
    def basis(self) -> tuple[int, ...]:
        """What a digit of each dimension counts in the index."""
        return tuple(math.prod(self.levels[:i]) for i in range(self.dim))

    def require_levels(self, least: int) -> None:
        """Raise a ConfigError unless each dimension has at least so many values, and all codes have an index."""
        wanted = f"levels of at least {least} value{'s' if least > 1 else ''} each"
        self.require(len(self.levels) > 0 and min(self.levels) >= least, wanted, self.levels)
        self.require(math.prod(self.levels) < 2**31, "fewer than 2^31 codes", self.levels)


class AroundConfig(QuantizerConfig):
    """Base of the configs of quantizers around another one, `inner`: width and levels are its own."""

    inner: QuantizerConfig

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.inner.vocab_sizes

    @property
    def prefix(self) -> bool:  # type: ignore[override]
        return self.inner.prefix

    @property
    def scales(self) -> bool:  # type: ignore[override]
        return self.inner.scales

    def level_shapes(self, positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return self.inner.level_shapes(positions)


class Quantizer(HasConstants):
    """Base of all quantizers. Channels last; computes in float32 whatever the autocast state."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantise latents.

        Args:
            z: (B, *positions, D) floating point.
            mask: (B, *positions) bool, True where a position holds a latent and False where it pads its item. Results
                are those of the unpadded latents; padding gets zero codes and index 0.

        Returns:
            `Quantized`; auxiliary losses that exist only for training appear in training mode alone.

        Raises:
            ValueError: a last dimension other than `config.dim`, or a mask that does not fit.
        """
        if z.shape[-1] != self.config.dim or z.ndim < 2:
            raise ValueError(f"expected latents (..., {self.config.dim}), got {tuple(z.shape)}")
        with full_precision(z):
            if mask is None:
                quantized = self.quantize(z.float())
            else:
                if mask.shape != z.shape[:-1] or mask.dtype != torch.bool:
                    wanted = f"mask: expected bool {tuple(z.shape[:-1])}"
                    raise ValueError(f"{wanted}, got {mask.dtype} {tuple(mask.shape)}")
                if self.config.scales:
                    raise ValueError(f"{type(self).__name__} takes no mask: its codes depend on all positions")
                quantized = self._quantize_masked(z.float(), mask)
        for scalars in (quantized.losses, quantized.statistics):  # some come in float64, for their differences
            scalars.update({name: value.float() for name, value in scalars.items()})
        if self.training:
            quantized.statistics.update(usage_statistics(quantized.levels, self.config.vocab_sizes, mask))
        return quantized

    def quantize(self, z: Tensor) -> Quantized:
        """What a quantizer writes: `forward` on float32 latents (..., D) outside autocast."""
        raise NotImplementedError

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        """Code vectors of indices: one int64 tensor (B, *positions) per level -> (B, *positions, D) float32."""
        raise NotImplementedError

    def first_levels(self, z: Tensor, count: int) -> tuple[Tensor, ...]:
        """The indices (B, *positions) of the first `count` codebooks, where `config.prefix`; in evaluation mode."""
        return self(z).levels[:count]

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        """`indices_to_codes` for latents (B, *positions, D), which the first levels alone may not tell (scales)."""
        return self.indices_to_codes(*levels)

    def _quantize_masked(self, z: Tensor, mask: Tensor) -> Quantized:
        quantized = self.quantize(z[mask])
        codes = torch.zeros_like(z).masked_scatter(mask[..., None], quantized.codes)
        levels = tuple(
            torch.zeros_like(mask, dtype=torch.int64).masked_scatter(mask, level) for level in quantized.levels
        )
        return Quantized(codes, levels, quantized.losses, quantized.statistics)


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """Exactly `codes` in the forward pass, the identity's gradient to `z` in the backward pass (arXiv 1308.3432)."""
    return codes.detach() + (z - z.detach())


class LinearTable(nn.Linear):
    """A linear map whose weights a quantizer reads as a table; what swaps plain ones, as for eight bits, leaves it."""


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear map or convolution in float32, whatever the autocast state and its dtype; hooks and wraps take part."""
    narrow = {name: weight.float() for name, weight in layer.named_parameters() if weight.dtype != torch.float32}
    with full_precision(x):
        return torch.func.functional_call(layer, narrow, (x.float(),)) if narrow else layer(x.float())


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a - b)^2; of no elements 0, where a plain mean would be NaN."""
    return F.mse_loss(a, b) if a.numel() > 0 else (a - b).sum()


def usage_statistics(
    levels: tuple[Tensor, ...], vocab_sizes: tuple[int, ...], mask: Tensor | None = None
) -> dict[str, Tensor]:
    """How the codes of this process's batch are used; means over levels.

    Returns:
        `usage` (share of the codes seen), `perplexity` (exp of the entropy of the indices), `code_entropy` (that
        entropy, in nats) and `dead_codes` (codes not seen).
    """
    seen, entropies = [], []
    for indices, size in zip(levels, vocab_sizes):
        if mask is not None:
            indices = indices[mask]
        counts = _counts(indices.flatten(), size)
        seen.append((counts > 0).sum())
        entropies.append(torch.special.entr(counts.double() / max(1, indices.numel())).sum())
    used, sizes, entropy = torch.stack(seen), seen[0].new_tensor(vocab_sizes[: len(seen)]), torch.stack(entropies)
    statistics = {
        "usage": (used.float() / sizes).mean(),
        "perplexity": entropy.exp().mean(),
        "code_entropy": entropy.mean(),
        "dead_codes": (sizes - used).double().mean(),
    }
    return {name: value.float() for name, value in statistics.items()}


def _counts(indices: Tensor, size: int) -> Tensor:
    """How often each code occurs among indices (N,); of more than a table should have, those that do and zeros."""
    if size > _MOST_COUNTED:
        ordered, size = indices.sort().values, len(indices)
        indices = (ordered.diff(prepend=ordered[:1]) != 0).cumsum(0)
    return indices.new_zeros(size).index_add_(0, indices, torch.ones_like(indices))


def bits_per_code(vocab_size: int) -> int:
    """Bits of one packed index: ceil(log2 K)."""
    return (vocab_size - 1).bit_length()
