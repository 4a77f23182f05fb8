"""Multi-scale structural similarity as a training loss (Wang, Simoncelli and Bovik 2003)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.constants import HasConstants
from zoo.ops.precision import full_precision

WINDOW, SIGMA = 11, 1.5
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from the finest
FLOOR = 1e-3  # of the similarity of a scale: below it the power has no usable gradient


class StructuralDistance(HasConstants):
    """1 - MS-SSIM of each image: (B, C, H, W) and (B, C, H, W) in [-1, 1], sides of at least 11 -> (B,) in float32.

    Windows lie inside the image at every scale. Images with sides below 176 have fewer scales than five; their
    exponents then keep the sum of 1. In float32 under autocast too. `zoo.metrics.image.ms_ssim` is the metric.
    """

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_constant("window", _gaussian)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distance of each image to its target.

        Raises:
            ValueError: shapes that differ or are no images, or a side below 11 pixels.
        """
        if images.shape != targets.shape or images.ndim != 4 or min(images.shape[2:]) < WINDOW:
            wanted = f"two batches (B, C, H, W) of one shape with sides of at least {WINDOW} pixels"
            raise ValueError(f"expected {wanted}, got {tuple(images.shape)} and {tuple(targets.shape)}")
        with full_precision(images):
            return 1 - self._similarity((images.float() + 1) / 2, (targets.float() + 1) / 2)

    def _similarity(self, x: Tensor, y: Tensor) -> Tensor:
        scales = min(len(EXPONENTS), (min(x.shape[2:]) // WINDOW).bit_length())
        exponents = [exponent / sum(EXPONENTS[:scales]) for exponent in EXPONENTS[:scales]]
        similarity = torch.ones((), device=x.device)
        for scale, exponent in enumerate(exponents):
            if scale > 0:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
            mean_x, mean_y, square_x, square_y, product = self._blurred(torch.stack([x, y, x * x, y * y, x * y]))
            contrast = (2 * (product - mean_x * mean_y) + 0.03**2) / (
                square_x - mean_x.square() + square_y - mean_y.square() + 0.03**2
            )
            if scale == scales - 1:
                contrast = contrast * (2 * mean_x * mean_y + 0.01**2) / (mean_x.square() + mean_y.square() + 0.01**2)
            similarity = similarity * contrast.mean((2, 3)).clamp(min=FLOOR) ** exponent  # (B, C)
        return similarity.mean(1)

    def _blurred(self, x: Tensor) -> Tensor:
        """(N, B, C, H, W) -> weighted means of all windows, (N, B, C, H - 10, W - 10).

        As matrix products, which on a CPU take half the time of convolutions by channel.
        """
        return self._windows(x.shape[-2]) @ (x @ self._windows(x.shape[-1]).T)

    def _windows(self, side: int) -> Tensor:
        """(side - 10, side): each row one window's weights along an axis."""
        windows = side - WINDOW + 1
        return F.pad(self.window, (0, windows)).repeat(windows)[: windows * side].view(windows, side)


def _gaussian() -> Tensor:
    weights = torch.exp(-(torch.arange(WINDOW) - WINDOW // 2).square() / (2 * SIGMA**2))
    return weights / weights.sum()
