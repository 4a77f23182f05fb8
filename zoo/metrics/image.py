"""Image metrics: distance of each reconstruction to its original, and how a codebook is used.

All take RGB in [0, 1] and give one number per image, so that means over any set of batches are exact.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.losses.perceptual import FeatureDistance, lite_distance, lpips
from zoo.metrics import Metric

ImageMetric = Callable[[Tensor, Tensor], Tensor]


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image.

    Args:
        images: (B, 3, H, W) in [0, 1].
        targets: the same shape and range.

    Returns:
        (B,) in dB; infinite for equal images.

    Raises:
        ValueError: if shape or range is wrong.
    """
    _check(images, targets, smallest_side=1)
    return -10 * (images.double() - targets.double()).square().mean((1, 2, 3)).log10().float()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5.

    Args:
        images: (B, 3, H, W) in [0, 1], H and W at least 11.
        targets: the same shape and range.

    Returns:
        (B,), 1 for equal images.

    Raises:
        ValueError: if shape or range is wrong.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(images, targets, smallest_side=11)
    return structural_similarity_index_measure(images.float(), targets.float(), data_range=1.0, reduction="none")


def ms_ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image (Wang et al. 2003): five scales, window of 11 pixels, sigma 1.5.

    Args:
        images: (B, 3, H, W) in [0, 1], H and W at least 176: below that the window does not fit in the fifth scale.
        targets: the same shape and range.

    Returns:
        (B,), 1 for equal images.

    Raises:
        ValueError: if shape or range is wrong.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    _check(images, targets, smallest_side=176)
    return multiscale_structural_similarity_index_measure(
        images.float(), targets.float(), data_range=1.0, reduction="none"
    )


class PerceptualMetric:
    """A feature distance as a metric; its network is built at the first call and follows the images' device."""

    def __init__(self, build: Callable[[], FeatureDistance]) -> None:
        self._build = build
        self._distance: FeatureDistance | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distance of each image: two batches (B, 3, H, W) in [0, 1], H and W at least 32 -> (B,)."""
        _check(images, targets, smallest_side=32)
        if self._distance is None:
            self._distance = self._build()
        return self._distance.to(images.device)(images.float() * 2 - 1, targets.float() * 2 - 1)


def codebook_statistics(counts: Tensor) -> dict[str, float]:
    """How evenly a codebook is used.

    Args:
        counts: (K,), how often each code was used.

    Returns:
        `usage`: share of the codes that were used at all; `perplexity`: 2 ** entropy, between 1 and K;
        `entropy_bits`: entropy of the code distribution in bits; `dead`: codes that were never used.

    Raises:
        ValueError: if the counts are not one row of nonnegative numbers with a positive sum.
    """
    if counts.ndim != 1 or counts.sum() <= 0 or counts.min() < 0:
        raise ValueError(
            f"expected counts (K,) with a positive sum and none negative, got {tuple(counts.shape)} with the sum "
            f"{counts.sum().item()}"
        )
    probabilities = counts.double() / counts.sum()
    entropy = torch.special.entr(probabilities).sum().item()
    dead = int((counts == 0).sum())
    return {
        "usage": 1 - dead / len(counts),
        "perplexity": math.exp(entropy),
        "entropy_bits": entropy / math.log(2),
        "dead": dead,
    }


_METRICS: tuple[tuple[Metric, ImageMetric], ...] = (
    (
        Metric("psnr", "dB", "higher", "-10 log10 of the mean squared error over pixels and channels, RGB in [0, 1]"),
        psnr,
    ),
    (
        Metric(
            "ssim",
            "",
            "higher",
            "SSIM, Gaussian window of 11 pixels and sigma 1.5, K1 0.01, K2 0.03, borders reflected and counted, "
            "mean over pixels and RGB channels in [0, 1]",
        ),
        ssim,
    ),
    (
        Metric(
            "ms_ssim",
            "",
            "higher",
            "MS-SSIM, five scales with exponents 0.0448, 0.2856, 0.3001, 0.2363, 0.1333, each scale as SSIM but its "
            "contrast without borders, RGB in [0, 1], sides of at least 176 pixels",
        ),
        ms_ssim,
    ),
    (
        Metric(
            "lite2_distance",
            "",
            "lower",
            "squared distance of channel-normalised EfficientNet-Lite2 features, summed over five stages, at the "
            "images' own size; not LPIPS and not comparable with it",
        ),
        PerceptualMetric(lambda: lite_distance("lite2")),
    ),
    (
        Metric("lpips_alex", "", "lower", "LPIPS v0.1 with AlexNet, at the images' own size"),
        PerceptualMetric(lambda: lpips("alex")),
    ),
    (
        Metric("lpips_vgg", "", "lower", "LPIPS v0.1 with VGG-16, at the images' own size"),
        PerceptualMetric(lambda: lpips("vgg")),
    ),
)

IMAGE_METRICS: dict[str, tuple[Metric, ImageMetric]] = {
    metric.name: (metric, function) for metric, function in _METRICS
}


def _check(images: Tensor, targets: Tensor, smallest_side: int) -> None:
    for batch in (images, targets):
        if not isinstance(batch, Tensor):
            raise ValueError(f"expected two tensors (B, 3, H, W), got {type(batch).__name__}")
    if images.shape != targets.shape:
        raise ValueError(f"expected two batches of one shape, got {tuple(images.shape)} and {tuple(targets.shape)}")
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < smallest_side or len(images) == 0:
        raise ValueError(
            f"expected images (B, 3, H, W) with sides of at least {smallest_side} pixels, got {tuple(images.shape)}"
        )
    for batch in (images, targets):
        low, high = batch.aminmax()
        if not (batch.is_floating_point() and low >= 0 and high <= 1):
            raise ValueError(
                f"expected floating point values in [0, 1], got {batch.dtype} from {low:.4g} to {high:.4g}; "
                "rescale the images or clamp the reconstructions first"
            )
