"""Splatting of two-dimensional Gaussians: features summed over a grid of pixels, tile by tile, differentiable.

3D Gaussian Splatting, arXiv 2308.04079, without depth: GaussianImage, arXiv 2403.08551. As in their kernels a Gaussian
reaches the tiles within three of its deviations, and a contribution of less than 1/255 is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops.precision import full_precision
from zoo.ops.recomputed import recomputed

_LEAST_WEIGHT = 1 / 255
_LEAST_ROOT = 0.1  # under the root of the larger eigenvalue, so that round Gaussians reach a little farther


def splat(
    means: Tensor, rotations: Tensor, scales: Tensor, features: Tensor, size: tuple[int, int], *, tile: int = 16
) -> Tensor:
    """The sum over Gaussians of exp(-d^2 / 2) times their features, d being the Mahalanobis distance of a pixel.

    Tiles are computed one after the other and again in the backward pass, so that memory grows with the Gaussians and
    the pixels, not with their product.

    Args:
        means: (B, N, 2) x and y; -1 is the centre of the first pixel, and 1 lies one pixel beyond that of the last.
        rotations: (B, N) in radians, counter-clockwise as the image is seen.
        scales: (B, N, 2) standard deviations along the Gaussian's own axes, in pixels.
        features: (B, N, C).
        size: height and width in pixels.
        tile: side of the tiles in pixels; it decides which pixels a Gaussian reaches at all.

    Returns:
        (B, C, height, width), float32.

    Raises:
        ValueError: shapes that do not fit.
    """
    shape = means.shape[:2]
    if means.shape != (*shape, 2) or scales.shape != means.shape or rotations.shape != shape or tile < 1:
        got = [tuple(x.shape) for x in (means, rotations, scales)]
        raise ValueError(f"expected means (B, N, 2), rotations (B, N), scales (B, N, 2) and a tile >= 1, got {got}")
    if features.ndim != 3 or features.shape[:2] != shape:
        raise ValueError(f"expected features ({shape[0]}, {shape[1]}, C), got {tuple(features.shape)}")
    with full_precision(means):
        means, rotations, scales, features = (x.float() for x in (means, rotations, scales, features))
        height, width = size
        centres = (means + 1) * means.new_tensor([width / 2, height / 2])
        conics, radii, visible = _conics(rotations, scales)
        last = means.new_tensor([-(-width // tile), -(-height // tile)])  # tiles along x and y
        first = ((centres - radii[..., None]) / tile).trunc().clamp_min(0)
        end = torch.minimum(((centres + radii[..., None]) / tile + 1).trunc(), last)
        rows = [
            torch.cat([
                _tile(centres, conics, features, _reached(first, end, visible, column, row), row * tile, column * tile,
                      min(tile, height - row * tile), min(tile, width - column * tile))
                for column in range(-(-width // tile))
            ], dim=-1)
            for row in range(-(-height // tile))
        ]  # fmt: skip
        return torch.cat(rows, dim=-2)


def _conics(rotations: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse covariances (B, N, 3) as xx, xy, yy; radii (B, N) in pixels; and which Gaussians (B, N) have an area."""
    cosines, sines = rotations.cos(), rotations.sin()
    along, across = scales.square().unbind(-1)
    xx = cosines.square() * along + sines.square() * across
    yy = sines.square() * along + cosines.square() * across
    xy = cosines * sines * (across - along)
    determinant = xx * yy - xy.square()
    visible = determinant != 0
    conics = torch.stack([yy, -xy, xx], dim=-1) / torch.where(visible, determinant, 1)[..., None]
    middle = (xx + yy).detach() / 2
    root = (middle.square() - determinant.detach()).clamp_min(_LEAST_ROOT).sqrt()
    return conics, (3 * (middle + root).sqrt()).ceil(), visible


def _reached(first: Tensor, end: Tensor, visible: Tensor, column: int, row: int) -> Tensor:
    """(B, N) which Gaussians reach a tile."""
    place = first.new_tensor([column, row])
    return ((first <= place) & (place < end)).all(-1) & visible


def _tile(
    centres: Tensor, conics: Tensor, features: Tensor, reached: Tensor, top: int, left: int, height: int, width: int
) -> Tensor:
    """(B, C, height, width) of the Gaussians that reach the tile; of fixed sizes, as exported programs have, of all."""
    everyone = torch.arange(reached.shape[1], device=reached.device)
    some = everyone if torch.compiler.is_exporting() or reached.is_meta else everyone[reached.any(0)]
    if len(some) == 0:
        return features.new_zeros(len(features), features.shape[2], height, width)
    rows = torch.arange(top, top + height, device=centres.device, dtype=centres.dtype)
    columns = torch.arange(left, left + width, device=centres.device, dtype=centres.dtype)

    def total(centres: Tensor, conics: Tensor, features: Tensor) -> Tensor:
        dx = (centres[..., 0, None] - columns)[:, :, None]  # (B, N, 1, width)
        dy = (centres[..., 1, None] - rows)[..., None]  # (B, N, height, 1)
        xx, xy, yy = (part[..., None, None] for part in conics.unbind(-1))
        exponent = 0.5 * (xx * dx.square() + yy * dy.square()) + xy * dx * dy
        weights = (-exponent).exp().clamp_max(1)
        counts = (exponent >= 0) & (weights >= _LEAST_WEIGHT) & reached[:, some, None, None]
        return torch.einsum("bnhw,bnc->bchw", weights * counts, features)

    return recomputed(total, centres[:, some], conics[:, some], features[:, some])
