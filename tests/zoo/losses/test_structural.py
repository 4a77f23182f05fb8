"""MS-SSIM as a loss: the metric's values, fewer scales for small images, gradients that stay finite."""

import pytest
import torch

from zoo.losses import perceptual
from zoo.losses.structural import StructuralDistance
from zoo.metrics.image import ms_ssim


def pair(size: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images in [0, 1], and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, size // 8, size // 8, generator=generator)
    target = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (target + noise * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_it_is_near_one_minus_the_metric(noise: float) -> None:
    """The metric counts reflected borders and averages over the channels in another place."""
    image, target = pair(192, noise)
    found = StructuralDistance()(image * 2 - 1, target * 2 - 1)
    torch.testing.assert_close(found, 1 - ms_ssim(image, target), rtol=0.1, atol=2e-3)


@pytest.mark.parametrize("size", [11, 16, 24, 96, 176])
def test_more_noise_is_farther_at_any_size(size: int) -> None:
    image, target = pair(max(16, size), 0.1)
    image, target = image[..., :size, :size], target[..., :size, :size]
    distance = StructuralDistance()
    near, far = distance(image * 2 - 1, target * 2 - 1), distance((3 * image - 2 * target) * 2 - 1, target * 2 - 1)
    assert bool((near > 0).all())
    assert bool((near < far).all())
    torch.testing.assert_close(distance(target, target), torch.zeros(2), rtol=0, atol=1e-5)


def test_opposite_and_flat_images_have_finite_gradients() -> None:
    _, target = pair(176, 0.0)
    for start in (1 - target, torch.zeros_like(target), target):
        image = (start * 2 - 1).requires_grad_()
        StructuralDistance()(image, target * 2 - 1).sum().backward()
        assert image.grad is not None
        assert bool(image.grad.isfinite().all())


def test_autocast_does_not_reach_it_and_it_has_a_name() -> None:
    image, target = pair(176, 0.1)
    expected = StructuralDistance()(image, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(perceptual.perceptual_distance({"ms_ssim": 1.0})(image, target), expected)


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="sides of at least 11 pixels, got"):
        StructuralDistance()(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))
    with pytest.raises(ValueError, match="one shape"):
        StructuralDistance()(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 21))
