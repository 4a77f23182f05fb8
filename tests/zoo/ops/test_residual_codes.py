"""Residual codes against the loop of nearest codes that defines them, on both CPU paths."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nearest_definition import choose
from torch import Tensor

from zoo.ops import METRICS, nearest_code, residual_codes

METRIC = st.sampled_from(METRICS)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose(request.param, monkeypatch)
    return request.param


def by_levels(x: Tensor, codebooks: Tensor | list[Tensor], metric: str) -> Tensor:
    x, levels = x.float() if x.dtype.itemsize < 4 else x, []
    for codebook in codebooks:
        levels.append(nearest_code(x, codebook, metric))  # type: ignore[arg-type]
        x = x - codebook[levels[-1]]
    return torch.stack(levels, dim=1)


@settings(max_examples=100)
@given(
    st.sampled_from([0, 1, 2, 3, 4, 5, 9, 64, 333]), st.lists(st.integers(1, 130), min_size=1, max_size=6),
    st.sampled_from([1, 2, 5, 16, 130]), METRIC, st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_it_is_the_loop_over_levels(
    n: int, counts: list[int], d: int, metric: str, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).to(dtype)
    codebooks = [torch.randn(count, d, generator=generator) / 1.5**q for q, count in enumerate(counts)]
    indices = residual_codes(x, codebooks, metric)  # type: ignore[arg-type]
    assert indices.shape == (n, len(counts))
    assert indices.dtype == torch.int64
    assert torch.equal(indices, by_levels(x, codebooks, metric))


@pytest.mark.parametrize("dim", [3, 128, 700])
def test_blocks_of_vectors_and_threads_do_not_show(dim: int) -> None:
    x, codebooks = torch.randn(2100, dim), torch.randn(3, 60, dim)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(residual_codes(x, codebooks), by_levels(x, codebooks, "euclidean"))
    finally:
        torch.set_num_threads(before)


def test_the_error_falls_level_by_level() -> None:
    x, codebooks = torch.randn(500, 8), torch.randn(6, 200, 8)
    codebooks[:, 0] = 0  # a level may leave the rest as it is
    levels = residual_codes(x, codebooks)
    errors = [x.square().sum(-1)]
    for q in range(6):
        codes = torch.stack([codebooks[p, levels[:, p]] for p in range(q + 1)])
        errors.append((x - codes.sum(0)).square().sum(-1))
        assert bool((errors[-1] <= errors[-2] + 1e-5).all())
    assert errors[-1].mean() < errors[0].mean() / 4


def test_strides_gradients_and_autocast_do_not_show() -> None:
    x = torch.randn(12, 60).T[::2].requires_grad_()
    codebooks = torch.randn(4, 12, 33).mT.requires_grad_()
    expected = by_levels(x.detach().contiguous(), codebooks.detach().contiguous(), "euclidean")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(residual_codes(x, codebooks), expected)


def test_rows_that_are_not_finite_get_index_0_and_harm_no_other() -> None:
    x, codebooks = torch.randn(40, 6), torch.randn(3, 50, 6)
    expected = residual_codes(x, codebooks)
    for row, value in ((0, math.nan), (17, math.inf), (39, -math.inf)):
        x[row, 4] = value
        expected[row] = 0
    assert torch.equal(residual_codes(x, codebooks), expected)


def test_a_rest_that_overflows_gets_index_0() -> None:
    codebooks = torch.full((2, 3, 4), -3e38)
    codebooks[1] = torch.randn(3, 4)
    assert residual_codes(torch.full((1, 4), 3e38), codebooks).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("x", "codebooks", "metric", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 5, 3), "manhattan", "metric: expected one of"),
        (torch.ones(2, 3), [], "dot", r"one or more codebooks \(K, D\), got \(2, 3\) and none"),
        (torch.ones(2, 3), [torch.ones(4, 3), torch.ones(4, 2)], "dot", r"got \(2, 3\) and \(4, 3\), \(4, 2\)"),
        (torch.ones(1, 2, 3), torch.ones(4, 5, 3), "dot", r"expected \(N, D\) and"),
        (torch.ones(2, 3), torch.ones(5, 3), "dot", r"expected \(N, D\) and"),
        (torch.ones(2, 3), [torch.ones(4, 3), torch.ones(0, 3)], "dot", "at least one code in each codebook"),
    ],
)
def test_it_refuses_what_does_not_fit(x: Tensor, codebooks: Tensor | list[Tensor], metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_codes(x, codebooks, metric)  # type: ignore[arg-type]
