"""The nearest code against its plain definition in float64, on both CPU paths."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nearest_definition import assert_nearest, choose, scores
from torch import Tensor

from zoo.ops import METRICS, nearest_code, residual_codes

METRIC = st.sampled_from(METRICS)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose(request.param, monkeypatch)
    return request.param


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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("count", "dim"), [(47, 16), (48, 15), (49, 3), (511, 5), (512, 9), (513, 2), (1600, 129), (3001, 1), (8200, 24)]
)
def test_edges_of_tiles_do_not_show(count: int, dim: int, metric: str) -> None:
    assert_nearest(torch.randn(41, dim), torch.randn(count, dim), metric)


@pytest.mark.parametrize(("values", "codes"), [(1, 64), (40, 128), (600, 64), (5000, 192)])
def test_sizes_of_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch, values: int, codes: int) -> None:
    x, codebook = torch.randn(50, 6), torch.randn(337, 6)
    expected = scores(x, codebook, "euclidean").argmax(dim=1)
    module = import_module("zoo.ops.nearest_code_torch")
    monkeypatch.setattr(module, "_TILE_SCORES", {"cpu": values})
    monkeypatch.setattr(module, "_TILE_CODES", codes)
    monkeypatch.setattr(module, "_BLOCK", values)
    monkeypatch.setattr(import_module("zoo.ops.nearest_code_compiled"), "_CONVERTED", values)
    assert torch.equal(nearest_code(x, codebook), expected)
    assert torch.equal(nearest_code(x.double(), codebook), expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_does_not_show(threads: int) -> None:
    x, codebook = torch.randn(2500, 12), torch.randn(700, 12)
    expected = nearest_code(x, codebook)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(nearest_code(x, codebook), expected)
        assert torch.equal(nearest_code(x[:7], codebook), expected[:7])
    finally:
        torch.set_num_threads(before)


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
def test_codes_that_are_not_finite_are_never_chosen(metric: str) -> None:
    x, codebook = torch.randn(30, 5), torch.randn(600, 5)
    places = [0, 7, 300, 599]
    kept = torch.ones(600, dtype=torch.bool).index_fill(0, torch.tensor(places), False)
    expected = kept.nonzero()[nearest_code(x, codebook[kept], metric), 0]  # type: ignore[arg-type]
    for place, value in zip(places, (math.nan, math.inf, -math.inf, math.nan)):
        codebook[place, 1] = value
    assert torch.equal(nearest_code(x, codebook, metric), expected)  # type: ignore[arg-type]
    none = nearest_code(x, torch.full((4, 5), math.nan), metric)  # type: ignore[arg-type]
    assert none.tolist() == [0] * 30


@pytest.mark.parametrize("metric", METRICS)
def test_zeros_are_vectors_like_others(metric: str) -> None:
    x, codebook = torch.randn(20, 7), torch.randn(40, 7)
    x[3] = 0
    codebook[5] = 0
    codebook[20] = -0.0
    assert_nearest(x, codebook, metric)


@pytest.mark.parametrize(
    ("dtype", "step"), [(torch.float32, 2.0**-23), (torch.float64, 1e-9), (torch.float64, 2.0**-52)]
)
def test_a_code_is_its_own_nearest_code_however_near_the_others(dtype: torch.dtype, step: float) -> None:
    codebook = (1 + torch.randint(0, 3, (300, 6)) * step).to(dtype).unique(dim=0)
    codebook = codebook[torch.randperm(len(codebook))]
    assert nearest_code(codebook, codebook).tolist() == list(range(len(codebook)))


def test_values_of_float64_that_float32_cannot_hold_are_told_apart() -> None:
    codebook = 1 + torch.randn(300, 6, dtype=torch.float64) * 1e-9
    x = 1 + torch.randn(50, 6, dtype=torch.float64) * 1e-9
    expected = scores(x, codebook, "euclidean").argmax(dim=1)
    assert len(expected.unique()) > 10
    assert torch.equal(nearest_code(x, codebook), expected)
    x, codes = torch.randn(40, 6, dtype=torch.float64), torch.randn(90, 6, dtype=torch.float64)
    assert_nearest(x * 1e-60, codes.float(), "euclidean")
    for scale in (1e-60, 1e60):
        assert torch.equal(nearest_code(x * scale, codes * scale), nearest_code(x, codes))


@pytest.mark.parametrize("metric", METRICS)
def test_the_two_paths_agree(monkeypatch: pytest.MonkeyPatch, metric: str, path: str) -> None:
    x = torch.randn(300, 20).round(decimals=1)  # with ties
    codebook = torch.randn(900, 20).round(decimals=1)
    indices = nearest_code(x, codebook, metric)  # type: ignore[arg-type]
    choose({"compiled": "torch", "torch": "compiled"}[path], monkeypatch)
    assert torch.equal(nearest_code(x, codebook, metric), indices)  # type: ignore[arg-type]


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


def test_it_is_one_operator_of_a_compiled_graph() -> None:
    x, codebook = torch.randn(40, 6, requires_grad=True), torch.randn(30, 6, requires_grad=True)

    def codes(x: Tensor, codebook: Tensor) -> Tensor:
        levels = residual_codes(x, [codebook, codebook])
        return codebook[nearest_code(x, codebook)] + codebook[levels[:, 1]]

    compiled = torch.compile(codes, fullgraph=True, backend="aot_eager")
    expected = codes(x, codebook)
    result = compiled(x, codebook)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    (slope,) = torch.autograd.grad(result.sum(), codebook)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), codebook)[0])


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (0, 3), (5, 0)])
def test_it_keeps_the_contract_of_operators(shape: tuple[int, ...]) -> None:
    x, codebook = torch.randn(shape), torch.randn(*shape[:-2], 4, shape[-1])
    assert nearest_code(x, codebook).shape == shape[:-1]
    torch.library.opcheck(torch.ops.zoo.nearest_code.default, (x, codebook, "dot"))
    if len(shape) == 2:
        assert residual_codes(x, [codebook, codebook]).shape == (shape[0], 2)
        torch.library.opcheck(torch.ops.zoo.residual_codes.default, (x, [codebook, codebook], "dot"))


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
