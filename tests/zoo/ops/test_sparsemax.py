"""The sparsemax against the conditions that mark the nearest distribution, and its gradient against autograd's."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import sparsemax


def by_bisection(x: Tensor) -> Tensor:
    """(N, K) float64: max(x - t, 0), t found so that rows add up to 1."""
    low, high = x.amax(-1, keepdim=True) - 1, x.amax(-1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        more = (x - middle).clamp_min(0).sum(-1, keepdim=True) > 1
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return (x - low).clamp_min(0)


@given(st.integers(1, 6), st.integers(1, 70), st.sampled_from([1e-4, 0.3, 1.0, 30.0]), st.integers(0, 1000))
def test_it_is_the_nearest_distribution(rows: int, count: int, scale: float, seed: int) -> None:
    x = torch.randn(rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    expected = by_bisection(x)
    torch.testing.assert_close(sparsemax(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparsemax(x.float()), expected.float(), rtol=0, atol=1e-5 * max(1, scale))
    torch.testing.assert_close(sparsemax(x).sum(-1), torch.ones(rows, dtype=torch.float64))


@given(st.integers(2, 40), st.integers(0, 1000))
def test_its_gradient_is_that_of_the_formula(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, count, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, count, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad(sparsemax(x), x, upstream)
    support = sparsemax(x).detach() > 0
    threshold = ((x * support).sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
    (expected,) = torch.autograd.grad(((x - threshold) * support), x, upstream)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)
    assert bool((slope[~support] == 0).all())


def test_scores_far_apart_choose_one_and_masked_ones_get_nothing() -> None:
    assert sparsemax(torch.tensor([0.0, 5.0, 3.0])).tolist() == [0, 1, 0]
    assert sparsemax(torch.tensor([2.0, -math.inf, 2.0])).tolist() == [0.5, 0, 0.5]
    assert sparsemax(torch.tensor([[1.0], [-7.0]])).tolist() == [[1], [1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 500).to(dtype)
    assert torch.equal(sparsemax(x), sparsemax(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparsemax(x), sparsemax(x.float()))


def test_any_dimension() -> None:
    x = torch.randn(3, 4, 5)
    assert torch.equal(sparsemax(x, 1), sparsemax(x.transpose(1, 2)).transpose(1, 2))
