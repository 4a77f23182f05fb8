"""Multi-scale residual quantisation: an image's residual is coded at ever finer grids (VAR, arXiv 2404.02905)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops.precision import full_precision
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, linear, mean_squared_error, straight_through
from zoo.quantizers.binary import BinaryConfig, BinaryEntropyConfig
from zoo.quantizers.composite import evaluating, mean_by_name, needs_its_gradient
from zoo.quantizers.level_dropout import LevelDropoutConfig
from zoo.quantizers.vector import VectorConfig


@dataclass(frozen=True)
class MultiScaleConfig(QuantizerConfig):
    """A ladder of grids that share one quantizer.

    Attributes:
        level: the quantizer of every scale, of one level; its `dim` is that of the latents.
        ladder: side of the square grid of each scale, from coarse to fine, the last being that of the latents. Latents
            of another grid H x W get, at a scale of side p in a ladder that ends in P, a grid of H p / P x W p / P,
            each rounded to the nearest integer (halves up) and at least 1; the last scale is H x W itself.
        num_convolutions: how many 3x3 convolutions smooth the upsampled codes; each scale takes the one nearest to its
            place in the ladder. 0 gives every scale its own, 1 is shared by all.
        residual_ratio: weight of the convolution's output against its input, from 0 (there is no convolution) to 1.
        dropout: quantizer dropout per item, in training mode (ImageFolder, arXiv 2410.01756).
        unit_latents: the latents are normalised to length 1 first. With signs of `scale` D^-1/2 at every scale this is
            XQ-GAN's residual of binary spherical quantizers (arXiv 2412.01762).
        entropy: of signs, in training mode: of what is left over before each scale, at the grid of the latents, the
            mean over scales. A level's own entropy is that of what it codes, on the grids of all scales together.
    """

    kind = "multi_scale"
    prefix = True
    scales = True
    level: QuantizerConfig = VectorConfig(codebook_size=4096, dim=32)
    ladder: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    num_convolutions: int = 4
    residual_ratio: float = 0.5
    dropout: LevelDropoutConfig | None = None
    unit_latents: bool = False
    entropy: BinaryEntropyConfig | None = None

    def __post_init__(self) -> None:
        rising = all(a <= b for a, b in zip(self.ladder, self.ladder[1:]))
        self.require(
            len(self.ladder) > 0 and self.ladder[0] >= 1 and rising,
            "a ladder of sides >= 1, none smaller than the one before",
            self.ladder,
        )
        self.require(
            len(self.level.vocab_sizes) == 1 and not self.level.scales, "a quantizer of one level", self.level.kind
        )
        self.require(
            not needs_its_gradient(self.level),
            "a level with the plain straight-through gradient (projections go around the whole)",
            self.level.kind,
        )
        self.require(self.num_convolutions >= 0, "num_convolutions >= 0", self.num_convolutions)
        self.require(0 <= self.residual_ratio <= 1, "a residual_ratio in [0, 1]", self.residual_ratio)
        if self.dropout is not None:
            self.require(self.dropout.per_item, "dropout per item", self.dropout)
            self.require(
                self.dropout.minimum <= len(self.ladder),
                f"a least number of 1 to {len(self.ladder)} scales",
                self.dropout.minimum,
            )
        if self.entropy is not None:
            signs = isinstance(self.level, BinaryConfig) and self.level.entropy is None
            self.require(signs, "an entropy of the scales only with binary levels that have none", self.level)
            self.entropy.require_bits(self.dim)

    @property
    def dim(self) -> int:
        return self.level.dim

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.level.vocab_sizes * len(self.ladder)

    def level_shapes(self, positions: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        if len(positions) != 2:
            raise ValueError(f"expected latents on a grid (height, width), got positions {positions}")
        last = self.ladder[-1]
        coarser = [
            tuple(min(side, max(1, (2 * side * step + last) // (2 * last))) for side in positions)
            for step in self.ladder[:-1]
        ]
        return (*coarser, positions)

    def convolution_of_scale(self) -> tuple[int, ...]:
        """Which convolution each scale takes."""
        scales, count = len(self.ladder), self.num_convolutions or len(self.ladder)
        if self.num_convolutions == 0:
            return tuple(range(scales))
        # in float64, as the original: some scales lie exactly between two places, where rounding decides
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        places = numpy.linspace(margin, 1 - margin, count)
        return tuple(int(numpy.argmin(numpy.abs(places - s / max(1, scales - 1)))) for s in range(scales))


class MultiScale(Quantizer):
    """VAR's residual quantizer of latents (B, H, W, D).

    Each scale shrinks what is left over to its grid (means over areas), takes the nearest codes, and enlarges them
    again (bicubic); the sum over scales, each smoothed by its convolution, is the code.

    Losses, means over scales of the sum f so far against the latent z: `commitment` = mean((z - sg(f))^2), `codebook` =
    mean((f - sg(z))^2), whose gradient reaches codebook and convolutions; and, in training mode, what else the level's
    quantizer has (`entropy`), of all scales as one batch, or the `entropy` of the config. With dropout the losses of a
    scale are of the items that use it, and `Quantized.levels` holds all scales of all items, though `codes` leaves out
    those beyond an item's number.
    """

    config: MultiScaleConfig

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__(config)
        self.level = config.level.build()
        self.ratio = config.residual_ratio
        self.convolution_of_scale = config.convolution_of_scale()
        count = (config.num_convolutions or len(config.ladder)) if config.residual_ratio > 0 else 0
        self.convolutions = nn.ModuleList(nn.Conv2d(config.dim, config.dim, 3, padding=1) for _ in range(count))

    def quantize(self, z: Tensor, counts: Tensor | None = None) -> Quantized:
        """`counts`: (B,) how many of the scales each item of a training batch uses; None draws by the dropout."""
        if counts is None and self.training and self.config.dropout is not None:
            counts = self.draw_items(len(z))
        if self.config.unit_latents:
            z = F.normalize(z, dim=-1)
        shapes = self.config.level_shapes(tuple(z.shape[1:-1]))
        residual, total = z.detach(), torch.zeros_like(z)
        inputs, levels, commitments, fits, entropies = [], [], [], [], []
        for s, shape in enumerate(shapes):
            rest = straight_through(z, residual)
            inputs.append(_resize(rest, shape, "area"))
            with evaluating(self.level):  # a running codebook must not move between the scales
                (indices,) = self.level.quantize(inputs[-1]).levels
            step = self._step(s, indices, shapes[-1])
            residual = residual - step.detach()
            levels.append(indices)
            items: slice | Tensor = slice(None)
            if counts is not None:
                step = step * (counts > s).to(step).view(-1, 1, 1, 1)
                items = (counts > s).nonzero().flatten().to(z.device)
            total = total + step
            commitments.append(mean_squared_error(z[items], total[items].detach()))
            fits.append(mean_squared_error(total[items], z[items].detach()))
            if self.training and self.config.entropy is not None:
                entropies.append(self.config.entropy.loss(rest[items] * self.config.level.scale))  # type: ignore[attr-defined]
        losses = {"commitment": torch.stack(commitments).mean(), "codebook": torch.stack(fits).mean()}
        statistics = {}
        if self.training:  # running codebooks move once, after all scales, by all that they coded
            joined = self.level.quantize(torch.cat([scale.flatten(0, -2) for scale in inputs]))
            losses = {**{name: loss for name, loss in joined.losses.items() if name not in losses}, **losses}
            statistics = joined.statistics
        if entropies:
            losses["entropy"] = torch.stack([loss for loss, _ in entropies]).mean()
            statistics = {**statistics, **mean_by_name([entropy for _, entropy in entropies])}
        return Quantized(straight_through(z, total), tuple(levels), losses, statistics)

    def draw_items(self, items: int) -> Tensor:
        """(B,) how many scales each item of a training batch uses, by the dropout."""
        most = len(self.config.ladder)
        if self.config.dropout is None:
            return torch.full((items,), most, device="cpu")
        return self.config.dropout.draw_items(most, items)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        """Code vectors of all scales; or of the first ones alone, where their grids are those of the config's ladder.

        Raises:
            ValueError: first scales of another grid, whose positions `prefix_to_codes` takes.
        """
        last = self.config.ladder[-1]  # type: ignore[attr-defined]
        positions = tuple(levels[-1].shape[1:]) if len(levels) == len(self.config.vocab_sizes) else (last, last)
        return self.prefix_to_codes(positions, *levels)

    def prefix_to_codes(self, positions: tuple[int, ...], *levels: Tensor) -> Tensor:
        """Sum of the first scales: (B, H, W, D) for positions (H, W).

        Raises:
            ValueError: no levels, too many, or grids that are not those of the positions.
        """
        *_, total = self._sums(positions, levels)
        return total

    def next_scale_inputs(self, *levels: Tensor) -> Tensor:
        """What VAR's transformer is fed at scales 2 to S: the sum of all coarser scales, shrunk to the scale's grid.

        Args:
            levels: indices (B, h, w) of all scales.

        Returns:
            (B, N, D): the positions of scale 2, row by row, then those of scale 3, and so on.
        """
        positions = tuple(levels[-1].shape[1:])
        sums = self._sums(positions, levels[:-1])
        shapes = self.config.level_shapes(positions)[1:]
        return torch.cat([_resize(total, shape, "area").flatten(1, 2) for total, shape in zip(sums, shapes)], dim=1)

    def _sums(self, positions: tuple[int, ...], levels: Sequence[Tensor]) -> Iterator[Tensor]:
        """The sum of the first scale, of the first two, and so on: each (B, H, W, D)."""
        shapes = self.config.level_shapes(positions)
        got = tuple(tuple(level.shape[1:]) for level in levels)
        if not got or got != shapes[: len(got)]:
            raise ValueError(f"expected indices of the grids {shapes} or the first of them, got {got}")
        total = torch.zeros((), device=levels[0].device)
        for s, indices in enumerate(levels):
            with full_precision(indices):
                total = total + self._step(s, indices, positions)
            yield total

    def _step(self, s: int, indices: Tensor, positions: tuple[int, ...]) -> Tensor:
        """What scale s adds to the sum: its codes enlarged to the whole grid and smoothed."""
        codes = _resize(self.level.indices_to_codes(indices), positions, "bicubic")
        if codes.numel() == 0 or self.ratio == 0:
            return codes
        convolution = self.convolutions[self.convolution_of_scale[s]]
        smooth = linear(convolution, codes.movedim(-1, 1)).movedim(1, -1)
        return codes * (1 - self.ratio) + smooth * self.ratio


def _resize(x: Tensor, shape: tuple[int, ...], mode: str) -> Tensor:
    """(B, H, W, D) -> (B, *shape, D)."""
    if tuple(x.shape[1:-1]) == shape:
        return x
    if x.numel() == 0:
        return x.new_zeros(len(x), *shape, x.shape[-1])
    return F.interpolate(x.movedim(-1, 1), size=shape, mode=mode).movedim(1, -1)


MultiScaleConfig.quantizer = MultiScale
