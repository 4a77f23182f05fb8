"""The entropies of soft assignments to a codebook against their definition in float64."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from entropy_definitions import assert_same_value_and_gradient, soft_definition
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import soft_entropy


@settings(max_examples=100)
@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(1, 20), st.sampled_from([0.3, 1.0, 10.0]),
    st.sampled_from([0.0, 1e-5, 1e-2]), st.sampled_from([0.0, 1e-5]),
    st.sampled_from(["squared_distance", "distance", "dot"]), st.integers(0, 1000),
)  # fmt: skip
def test_it_is_its_definition(
    k: int, d: int, n: int, temperature: float, clamp: float, shift: float, score: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, codes = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    assert_same_value_and_gradient(
        lambda z, codes: soft_entropy(z, codes, temperature, score=score, clamp=clamp, shift=shift),  # type: ignore[arg-type]
        lambda z, codes: soft_definition(z, codes, temperature, clamp, shift, score),
        z,
        codes,
        tolerance=1e-5,
    )


@pytest.mark.parametrize("chunk", [1, 70, 200, 1 << 22])
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(import_module("zoo.ops.soft_assignment"), "_CHUNK", chunk)
    assert_same_value_and_gradient(
        lambda z, codes: soft_entropy(z, codes, 0.5, shift=1e-5),
        lambda z, codes: soft_definition(z, codes, 0.5, 0.0, 1e-5),
        torch.randn(13, 4),
        torch.randn(35, 4),
        tolerance=1e-5,
    )


@pytest.mark.parametrize("clamp", [0.0, 1e-5])
def test_certain_codes_give_finite_entropies_and_gradients(clamp: float) -> None:
    z, codes = torch.randn(20, 8).mul(100).requires_grad_(), torch.randn(30, 8).mul(100).requires_grad_()
    sample, codebook = soft_entropy(z, codes, 0.01, clamp=clamp)
    assert abs(sample.item()) < 1e-6
    assert 0 <= codebook.item() <= math.log(20)
    for slope in torch.autograd.grad(sample - codebook, (z, codes)):
        assert bool(slope.isfinite().all())


def test_only_the_gradient_that_is_needed_is_computed() -> None:
    z, codes = torch.randn(9, 4), torch.randn(7, 4)
    both = z.clone().requires_grad_(), codes.clone().requires_grad_()
    expected = torch.autograd.grad(sum(soft_entropy(*both, temperature=0.5)), both)
    for position in range(2):
        inputs = [z.clone(), codes.clone()]
        inputs[position].requires_grad_()
        (slope,) = torch.autograd.grad(sum(soft_entropy(*inputs, temperature=0.5)), inputs[position])
        torch.testing.assert_close(slope, expected[position])


def test_no_latents_have_no_entropy() -> None:
    z, codes = torch.randn(0, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    sample, codebook = soft_entropy(z, codes, 0.5)
    assert sample.item() == codebook.item() == 0
    slopes = torch.autograd.grad(sample + codebook, (z, codes))
    assert slopes[0].shape == (0, 5)
    assert not bool(slopes[1].any())


def test_autocast_does_not_reach_it() -> None:
    z, codes = torch.randn(300, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sample, codebook = soft_entropy(z, codes, 0.5)
            slopes = torch.autograd.grad(sample - codebook, (z, codes))
        results.append((sample, codebook, *slopes))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_gradients_in_double_precision() -> None:
    inputs = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7)]
    for clamp, shift in ((0.0, 0.0), (1e-2, 0.0), (0.0, 1e-2)):
        assert torch.autograd.gradcheck(lambda *x: soft_entropy(*x, 0.7, clamp=clamp, shift=shift), inputs)  # noqa: B023


@pytest.mark.parametrize(
    ("z", "codes", "temperature", "message"),
    [
        (torch.ones(3), torch.ones(2, 3), 1.0, r"expected \(N, D\) and \(K, D\)"),
        (torch.ones(2, 3), torch.ones(2, 4), 1.0, r"got \(2, 3\) and \(2, 4\)"),
        (torch.ones(2, 3), torch.ones(0, 3), 1.0, "with K > 0"),
        (torch.ones(2, 3), torch.ones(2, 3), -1.0, "expected a temperature > 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(z: Tensor, codes: Tensor, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_entropy(z, codes, temperature)
