"""Sums by code, and k-means on them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import code_sums, kmeans, nearest_code


@settings(max_examples=60)
@given(
    st.sampled_from([None, 1, 3]), st.integers(0, 200), st.integers(1, 50), st.integers(1, 20), st.integers(0, 1000),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
def test_sums_by_code_are_those_of_a_one_hot_table(
    groups: int | None, n: int, count: int, d: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (n,) if groups is None else (groups, n)
    x = torch.randn(*shape, d, generator=generator).to(dtype).requires_grad_()
    indices = torch.randint(count, shape, generator=generator)
    sums, counts = code_sums(x, indices, count)
    one_hot = F.one_hot(indices, count)
    assert not sums.requires_grad
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(sums.double(), one_hot.double().mT @ x.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(counts, one_hot.sum(-2))


def test_sums_by_code_take_any_strides() -> None:
    x, indices = torch.randn(3, 2, 40).permute(1, 2, 0), torch.randint(5, (40, 2)).T
    sums, counts = code_sums(x, indices, 5)
    for g in range(2):
        expected = code_sums(x[g].contiguous(), indices[g].contiguous(), 5)
        assert torch.equal(sums[g], expected[0])
        assert torch.equal(counts[g], expected[1])


@pytest.mark.parametrize(
    ("x", "indices", "count", "error", "message"),
    [
        (torch.ones(3, 2), torch.zeros(4, dtype=torch.int64), 5, ValueError, r"got \(3, 2\) and \(4,\)"),
        (torch.ones(3), torch.zeros((), dtype=torch.int64), 5, ValueError, r"expected vectors \(N, D\)"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), 0, ValueError, "at least one code, got 0"),
        (torch.ones(3, 2), torch.tensor([0, 1, 5]), 5, IndexError, r"indices in \[0, 5\), got 0 to 5"),
        (torch.ones(2, 1, 2), torch.tensor([[-1], [1]]), 5, IndexError, r"indices in \[0, 5\), got -1 to 1"),
    ],
)
def test_sums_by_code_refuse_what_does_not_fit(
    x: Tensor, indices: Tensor, count: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        code_sums(x, indices, count)


def error_of(x: Tensor, centres: Tensor) -> float:
    return torch.cdist(x.double(), centres.double()).square().amin(dim=1).mean().item()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_it_finds_clusters_that_lie_apart(init: str) -> None:
    places = torch.randn(6, 5, generator=generator()) * 50
    x = (places[:, None] + torch.randn(6, 40, 5, generator=generator(1))).flatten(0, 1)
    tries = [kmeans(x, 6, iterations=30, generator=generator(seed), init=init) for seed in range(12)]  # type: ignore[arg-type]
    centres, counts = min(tries, key=lambda found: error_of(x, found[0]))
    assert counts.tolist() == [40] * 6
    found = centres[nearest_code(places, centres)]
    torch.testing.assert_close(found, x.view(6, 40, 5).mean(1), rtol=1e-5, atol=1e-4)


@settings(max_examples=40)
@given(
    st.integers(1, 120), st.integers(1, 30), st.integers(1, 6), st.sampled_from(["euclidean", "cosine"]),
    st.sampled_from(["random", "k-means++"]), st.integers(0, 1000),
)  # fmt: skip
def test_a_centre_is_the_mean_of_its_vectors_and_counts_them(
    n: int, count: int, d: int, metric: str, init: str, seed: int
) -> None:
    x = torch.randn(n, d, generator=generator(seed)).round(decimals=0 if d < 3 else 2)  # with repeated vectors
    start = kmeans(x, count, metric, iterations=1, generator=generator(seed), init=init)[0]  # type: ignore[arg-type]
    centres, counts = kmeans(x, count, metric, iterations=1, init=start)  # type: ignore[arg-type]
    vectors = F.normalize(x, dim=-1) if metric == "cosine" else x
    indices = nearest_code(vectors, start, metric)  # type: ignore[arg-type]
    sums, expected = code_sums(vectors, indices, count)
    assert torch.equal(counts, expected)
    means = sums / counts.clamp_min(1)[:, None]
    means = F.normalize(means, dim=-1) if metric == "cosine" else means
    used = counts > 0
    torch.testing.assert_close(centres[used], means[used])
    assert bool((centres[~used, None] == vectors).all(-1).any(-1).all())  # an empty cluster lies on a vector
    assert bool(centres.isfinite().all())


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_the_error_never_grows(init: str) -> None:
    x = torch.randn(400, 3, generator=generator())
    errors = [
        error_of(x, kmeans(x, 20, iterations=rounds, generator=generator(), init=init)[0])  # type: ignore[arg-type]
        for rounds in (1, 2, 4, 8, 100)
    ]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_spread_starts_are_better_than_random_ones() -> None:
    x = torch.cat([torch.randn(500, 2, generator=generator()) * 0.01, torch.randn(20, 2, generator=generator(1)) * 9])
    random, spread = (
        sum(error_of(x, kmeans(x, 15, iterations=1, generator=generator(seed), init=init)[0]) for seed in range(8))
        for init in ("random", "k-means++")
    )
    assert spread < random / 2


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_the_generator_alone_decides(metric: str, init: str) -> None:
    x = torch.randn(200, 4)
    first, again, other = (
        kmeans(x, 12, metric, generator=generator(seed), init=init)
        for seed in (7, 7, 8)  # type: ignore[arg-type]
    )
    torch.manual_seed(99)
    later = kmeans(x, 12, metric, generator=generator(7), init=init)  # type: ignore[arg-type]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[0], later[0])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize("n", [1, 3])
def test_fewer_vectors_than_clusters_leave_empty_clusters_on_vectors(n: int, init: str) -> None:
    x = torch.randn(n, 4)
    centres, counts = kmeans(x, 7, init=init)  # type: ignore[arg-type]
    assert sorted(counts.tolist()) == [0] * (7 - n) + [1] * n
    assert torch.equal(centres[nearest_code(x, centres)], x)
    assert bool((centres[:, None] == x).all(-1).any(-1).all())


def test_lost_clusters_go_to_the_farthest_vectors() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [40.0], [90.0]])
    start = torch.tensor([[0.0], [500.0], [600.0]])
    centres, counts = kmeans(x, 3, iterations=1, init=start)
    assert counts.tolist() == [5, 0, 0]
    assert centres.flatten().tolist() == pytest.approx([26.6, 90.0, 0.0])
    centres, counts = kmeans(x, 3, iterations=10, init=start)
    assert sorted(counts.tolist()) == [1, 1, 3]


def test_half_precision_and_gradients_do_not_reach_it() -> None:
    x = torch.randn(100, 4, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        centres, counts = kmeans(x, 5, generator=generator())
    assert centres.dtype == torch.float32
    assert not centres.requires_grad
    assert counts.sum() == 100
    torch.testing.assert_close(centres, kmeans(x.float(), 5, generator=generator())[0])
    assert kmeans(x.double(), 5)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.ones(0, 3)}, r"expected vectors \(N, D\) with N > 0, got \(0, 3\)"),
        ({"x": torch.ones(3)}, r"expected vectors \(N, D\)"),
        ({"metric": "dot"}, "metric: expected euclidean or cosine, got 'dot'"),
        ({"count": 0}, "at least 1 cluster and 1 iteration, got 0 and 10"),
        ({"iterations": 0}, "at least 1 cluster and 1 iteration, got 2 and 0"),
        ({"x": torch.tensor([[0.0, math.nan]])}, "expected finite vectors"),
        ({"init": "first"}, r"init: expected random, k-means\+\+ or centres \(K, D\), got 'first'"),
        ({"init": torch.ones(3, 3)}, r"init: expected centres \(2, 3\), got \(3, 3\)"),
    ],
)
def test_it_refuses_what_does_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(**({"x": torch.randn(10, 3), "count": 2} | arguments))
