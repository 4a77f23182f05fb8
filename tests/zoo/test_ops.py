"""The fast kernels against their plain definitions in float64."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import METRICS, binary_entropy, mean_assignment, nearest_code, soft_entropy

METRIC = st.sampled_from(METRICS)


def scores(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """(N, K) in float64; the largest is the nearest."""
    x, codebook = x.double(), codebook.double()
    if metric == "euclidean":
        return -(x[:, None] - codebook[None]).square().sum(-1)
    if metric == "cosine":
        x, codebook = (v / v.norm(dim=-1, keepdim=True).clamp_min(1e-300) for v in (x, codebook))
    return (x[:, None] * codebook[None]).sum(-1)


def assert_nearest(x: Tensor, codebook: Tensor, metric: str) -> None:
    """The index is that of the largest score, or of one that float64 itself can hardly tell from it."""
    indices = nearest_code(x, codebook, metric)  # type: ignore[arg-type]
    assert indices.shape == x.shape[:-1]
    assert indices.dtype == torch.int64
    if len(x) == 0:
        return
    table = scores(x, codebook, metric)
    best, expected = table.max(dim=1)
    got = table.gather(1, indices[:, None])[:, 0]
    magnitude = table.abs().amax(dim=1) + x.double().square().sum(-1)
    assert bool((best - got <= 1e-13 * magnitude).all())
    gap = best[:, None] - table
    clear = ((gap > 1e-12 * magnitude[:, None]) | (gap == 0)).all(dim=1)  # no other score is nearly the best
    assert torch.equal(indices[clear], expected[clear])


SIZES = st.tuples(
    st.sampled_from([0, 1, 2, 7, 63, 200]), st.integers(1, 300), st.sampled_from([1, 2, 3, 8, 17, 256, 1024])
)


@settings(max_examples=120)
@given(SIZES, METRIC, st.integers(0, 1000), st.sampled_from([1e-20, 1e-6, 1.0, 1e4, 1e18]))
def test_nearest_code_is_the_nearest(size: tuple[int, int, int], metric: str, seed: int, scale: float) -> None:
    n, k, d = size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * scale
    codebook = torch.randn(k, d, generator=generator) * scale
    assert_nearest(x, codebook, metric)


@settings(max_examples=60)
@given(SIZES, METRIC, st.integers(0, 1000), st.sampled_from([torch.float16, torch.bfloat16, torch.float64]))
def test_nearest_code_takes_every_floating_type(
    size: tuple[int, int, int], metric: str, seed: int, dtype: torch.dtype
) -> None:
    n, k, d = size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).to(dtype)
    codebook = torch.randn(k, d, generator=generator).to(dtype)
    assert_nearest(x, codebook, metric)
    assert_nearest(x, codebook.float(), metric)  # the codebook is often of another type than the latents


@settings(max_examples=80)
@given(SIZES, METRIC, st.integers(0, 1000), st.sampled_from([1e-7, 1e-6, 1e-5]))
def test_near_ties_are_told_apart(size: tuple[int, int, int], metric: str, seed: int, gap: float) -> None:
    """All codes lie within a few float32 roundings of one another."""
    n, k, d = size
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(1, d, generator=generator) + gap * torch.randn(k, d, generator=generator)
    x = torch.randn(n, d, generator=generator)
    assert_nearest(x, codebook, metric)


@settings(max_examples=120)
@given(SIZES, METRIC, st.integers(0, 1000))
def test_of_equal_codes_the_lowest_index_is_taken(size: tuple[int, int, int], metric: str, seed: int) -> None:
    n, k, d = size
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn(max(1, k // 7), d, generator=generator)
    which = torch.randint(0, len(distinct), (k,), generator=generator)
    x = torch.randn(n, d, generator=generator)
    indices = nearest_code(x, distinct[which], metric)  # type: ignore[arg-type]
    first = torch.stack([(which == code).nonzero()[0, 0] for code in range(len(distinct)) if (which == code).any()])
    assert bool(torch.isin(indices, first).all())
    assert_nearest(x, distinct[which], metric)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_ties_go_to_the_lowest_index(metric: str) -> None:
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    assert nearest_code(x, codebook, metric).tolist() == [0, 0, 1, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS)
def test_an_item_alone_and_in_any_batch_has_one_index(metric: str) -> None:
    codebook = torch.randn(1, 16) + 1e-6 * torch.randn(300, 16)
    x = torch.randn(200, 16)
    together = nearest_code(x, codebook, metric)  # type: ignore[arg-type]
    alone = torch.cat([nearest_code(row[None], codebook, metric) for row in x])  # type: ignore[arg-type]
    assert torch.equal(together, alone)


@pytest.mark.parametrize("tile", [1, 5, 300, 1000, 1 << 20])
def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    x, codebook = torch.randn(50, 6), torch.randn(37, 6)
    expected = scores(x, codebook, "euclidean").argmax(dim=1)
    monkeypatch.setattr(import_module("zoo.ops.nearest_code"), "_TILE", tile)
    assert torch.equal(nearest_code(x, codebook), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_strides_and_groups(metric: str) -> None:
    x, codebook = torch.randn(6, 40).T, torch.randn(6, 2 * 33).T[::2]
    assert not x.is_contiguous()
    assert_nearest(x, codebook, metric)
    grouped, codebooks = torch.randn(3, 20, 4), torch.randn(3, 11, 4)
    indices = nearest_code(grouped, codebooks, metric)  # type: ignore[arg-type]
    assert indices.shape == (3, 20)
    for g in range(3):
        assert torch.equal(indices[g], nearest_code(grouped[g], codebooks[g], metric))  # type: ignore[arg-type]
    assert nearest_code(grouped[:, :0], codebooks, metric).shape == (3, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_not_finite_get_index_0_and_harm_no_other(metric: str) -> None:
    x, codebook = torch.randn(30, 5), torch.randn(40, 5)
    expected = nearest_code(x, codebook, metric)  # type: ignore[arg-type]
    for row, value in ((3, math.nan), (4, math.inf), (5, -math.inf)):
        x[row, 2] = value
        expected[row] = 0
    assert torch.equal(nearest_code(x, codebook, metric), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS)
def test_products_beyond_float32_are_still_compared(metric: str) -> None:
    x = torch.tensor([[1e25, -2e25], [-1e30, 1e30], [3e38, 3e38]])
    codebook = torch.tensor([[1e25, 1e25], [-1e25, 1e25], [1e25, -1e25], [3e38, 3e38]])
    assert_nearest(x, codebook, metric)


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
def test_one_far_code_does_not_blur_the_others(metric: str) -> None:
    codebook = torch.randn(50, 8, dtype=torch.float64) * 1e-6 + 1
    codebook[20] = -1e9
    assert_nearest(torch.randn(100, 8).abs(), codebook, metric)
    distinct = scores(torch.ones(1, 8), codebook, metric)[0].argmax()
    assert nearest_code(torch.ones(1, 8), codebook, metric).item() == distinct  # type: ignore[arg-type]


def test_reduced_matmul_precision_of_the_session_does_not_reach_it() -> None:
    x, codebook = torch.randn(200, 256), torch.randn(300, 256)
    expected = scores(x, codebook, "euclidean").argmax(dim=1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest_code(x, codebook), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_does_not_reach_it_and_no_graph_leaves_it() -> None:
    x, codebook = torch.randn(200, 64, requires_grad=True), torch.randn(300, 64, requires_grad=True)
    expected = scores(x, codebook, "euclidean").argmax(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(x, codebook), expected)


@pytest.mark.parametrize(
    ("x", "codebook", "metric", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), "manhattan", "metric: expected one of euclidean, cosine, dot, got 'manh"),
        (torch.ones(2, 3), torch.ones(4, 2), "dot", r"expected \(N, D\) and \(K, D\)"),
        (torch.ones(3), torch.ones(4, 3), "dot", r"expected \(N, D\) and \(K, D\)"),
        (torch.ones(1, 2, 3), torch.ones(4, 3), "dot", r"expected \(N, D\) and \(K, D\)"),
        (torch.ones(1, 2, 3), torch.ones(2, 4, 3), "dot", "as many codebooks as groups of vectors, got 2 and 1"),
        (torch.ones(2, 3), torch.ones(0, 3), "dot", "expected at least one code"),
        (torch.ones(1, 2, 3), torch.ones(1, 0, 3), "dot", "expected at least one code"),
    ],
)
def test_nearest_code_refuses_what_does_not_fit(x: Tensor, codebook: Tensor, metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_code(x, codebook, metric)  # type: ignore[arg-type]


# -- entropies ---------------------------------------------------------------------------------------------------------


def entropies(probability: Tensor, floor: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean entropy of the rows of (N, K), and entropy of their mean, in the dtype given."""
    tiny = 1e-300

    def entropy(p: Tensor, least: float, shift: float = 0.0) -> Tensor:
        return -(p * (p.clamp(min=least or tiny) + shift).log()).sum(-1)

    return entropy(probability, floor).mean(), entropy(probability.mean(0), floor, shift)


def binary_definition(z: Tensor, temperature: float, floor: float) -> tuple[Tensor, Tensor]:
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=z.dtype)] * z.shape[1]).view(-1, z.shape[1])
    return entropies((2 * z @ signs.T / temperature).softmax(-1), floor)


def assert_same_value_and_gradient(ours, definition, *inputs: Tensor, tolerance: float = 2e-5) -> None:
    """Both entropies, and the gradient of a sum of them that tells them apart."""
    singles = [x.clone().requires_grad_() for x in inputs]
    doubles = [x.double().requires_grad_() for x in inputs]
    got, expected = ours(*singles), definition(*doubles)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    slopes = torch.autograd.grad(got[0] - 0.7 * got[1], singles)
    for a, b in zip(slopes, torch.autograd.grad(expected[0] - 0.7 * expected[1], doubles)):
        scale = b.abs().max().clamp_min(1e-2)
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=50 * tolerance)


@settings(max_examples=60)
@given(
    st.integers(1, 10), st.integers(1, 20), st.sampled_from([0.05, 0.5, 3.0]), st.sampled_from([0.0, 1e-5, 1e-2]),
    st.integers(0, 1000),
)  # fmt: skip
def test_binary_entropy_is_its_definition(d: int, n: int, temperature: float, floor: float, seed: int) -> None:
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 0.5
    assert_same_value_and_gradient(
        lambda z: binary_entropy(z, temperature, floor), lambda z: binary_definition(z, temperature, floor), z
    )


@pytest.mark.parametrize("floor", [0.0, 1e-5])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_binary_entropy_of_certain_bits_is_finite(floor: float, scale: float) -> None:
    """At the temperature of the published trainings nearly every bit is certain: entropies near 0, gradients finite."""
    z = (torch.randn(50, 8) * scale).requires_grad_()
    sample, codebook = binary_entropy(z, 0.01, floor)
    expected = binary_definition(z.double(), 0.01, floor)
    torch.testing.assert_close(sample.double(), expected[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(codebook.double(), expected[1], rtol=1e-3, atol=1e-5)
    (slope,) = torch.autograd.grad(sample - codebook, z)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("chunk", [1, 8, 100, 1 << 22])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize("d", [1, 5, 8])
def test_chunks_of_binary_entropy_do_not_show(
    monkeypatch: pytest.MonkeyPatch, chunk: int, floor: float, d: int
) -> None:
    monkeypatch.setattr(import_module("zoo.ops.binary_entropy"), "_CHUNK", chunk)
    assert_same_value_and_gradient(
        lambda z: binary_entropy(z, 0.5, floor), lambda z: binary_definition(z, 0.5, floor), torch.randn(13, d)
    )


@pytest.mark.parametrize("d", [1, 2, 3, 6, 7])
def test_mean_assignment_counts_bits_from_the_least_significant(d: int) -> None:
    indices = torch.arange(2**d)
    certain = ((indices[:, None] >> torch.arange(d)) & 1) * 200.0 - 100
    for index in (0, 1, 2**d - 1):
        assert mean_assignment(certain[index, None]).argmax() == index
    logits = torch.randn(5, d, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mean_assignment(logits).sum().item(), 1.0)
    assert torch.autograd.gradcheck(mean_assignment, logits)


@pytest.mark.parametrize(
    ("z", "temperature", "message"),
    [
        (torch.ones(3), 1.0, r"expected latents \(N, D\)"),
        (torch.ones(0, 3), 1.0, "with N > 0"),
        (torch.ones(2, 0), 1.0, "expected 1 to 24 bits .*, got 0"),
        (torch.ones(2, 25), 1.0, "expected 1 to 24 bits .*, got 25"),
        (torch.ones(2, 3), 0.0, "expected a temperature > 0, got 0"),
    ],
)
def test_binary_entropy_refuses_what_does_not_fit(z: Tensor, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary_entropy(z, temperature)


def soft_definition(z: Tensor, codes: Tensor, temperature: float, clamp: float, shift: float) -> tuple[Tensor, Tensor]:
    distance = (z[:, None] - codes[None]).square().sum(-1)
    return entropies((-distance / temperature).softmax(-1), clamp, shift)


@settings(max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(1, 20), st.sampled_from([0.3, 1.0, 10.0]),
    st.sampled_from([0.0, 1e-5, 1e-2]), st.sampled_from([0.0, 1e-5]), st.integers(0, 1000),
)  # fmt: skip
def test_soft_entropy_is_its_definition(
    k: int, d: int, n: int, temperature: float, clamp: float, shift: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, codes = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    assert_same_value_and_gradient(
        lambda z, codes: soft_entropy(z, codes, temperature, clamp=clamp, shift=shift),
        lambda z, codes: soft_definition(z, codes, temperature, clamp, shift),
        z,
        codes,
        tolerance=5e-5,
    )


@pytest.mark.parametrize("chunk", [1, 70, 200, 1 << 22])
def test_chunks_of_soft_entropy_do_not_show(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(import_module("zoo.ops.soft_entropy"), "_CHUNK", chunk)
    assert_same_value_and_gradient(
        lambda z, codes: soft_entropy(z, codes, 0.5, shift=1e-5),
        lambda z, codes: soft_definition(z, codes, 0.5, 0.0, 1e-5),
        torch.randn(13, 4),
        torch.randn(35, 4),
    )


@pytest.mark.parametrize("clamp", [0.0, 1e-5])
def test_soft_entropy_of_certain_codes_is_finite(clamp: float) -> None:
    z, codes = torch.randn(20, 8).mul(100).requires_grad_(), torch.randn(30, 8).mul(100).requires_grad_()
    sample, codebook = soft_entropy(z, codes, 0.01, clamp=clamp)
    assert abs(sample.item()) < 1e-6
    assert 0 <= codebook.item() <= math.log(20)
    for slope in torch.autograd.grad(sample - codebook, (z, codes)):
        assert bool(slope.isfinite().all())


@pytest.mark.parametrize(
    ("z", "codes", "temperature", "message"),
    [
        (torch.ones(3), torch.ones(2, 3), 1.0, r"expected \(N, D\) and \(K, D\)"),
        (torch.ones(2, 3), torch.ones(2, 4), 1.0, r"got \(2, 3\) and \(2, 4\)"),
        (torch.ones(0, 3), torch.ones(2, 3), 1.0, "with N > 0"),
        (torch.ones(2, 3), torch.ones(2, 3), -1.0, "expected a temperature > 0, got -1"),
    ],
)
def test_soft_entropy_refuses_what_does_not_fit(z: Tensor, codes: Tensor, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_entropy(z, codes, temperature)
