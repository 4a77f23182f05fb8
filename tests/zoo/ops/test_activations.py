"""Snake and ELU: the compiled kernel against exact values and torch, with any number of threads, and without it."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import activations
from zoo.ops.activations import elu, snake

needs_kernel = pytest.mark.skipif(not activations.available(), reason="no C++ compiler")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def exact_snake(x: Tensor, alpha: Tensor) -> Tensor:
    x, alpha = x.double(), alpha.double()
    return x + (alpha * x).sin().square() / (alpha + 1e-9)


@given(rows=st.integers(1, 40), width=st.integers(1, 70), size=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_values_are_exact_up_to_rounding(rows: int, width: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) * size
    alpha = torch.rand(width, generator=generator) * 3 + 0.05
    with torch.no_grad():
        periodic, exponential = snake(x, alpha), elu(x)
    # alpha x is rounded to float32 before its sine is taken, by torch too
    slack = 3e-7 * (1 + x.double().abs() * (1 + 1 / alpha.double()))
    assert ((periodic.double() - exact_snake(x, alpha)).abs() <= slack * (1 + 1 / alpha.double())).all()
    torch.testing.assert_close(exponential.double(), F.elu(x.double()), rtol=3e-7, atol=3e-8)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 70_001), (5, 40_000, 3)])
def test_every_value_is_reached(shape: tuple[int, ...], threads: None) -> None:
    x = torch.linspace(-20, 20, torch.Size(shape).numel()).reshape(shape)
    alpha = torch.rand(shape[-1]) + 0.5
    kept = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(elu(x), F.elu(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(snake(x, alpha).double(), exact_snake(x, alpha), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, -100.0]])
    with torch.no_grad():
        y, z = elu(x)[0], snake(x, torch.ones(5))[0]
    assert y[0].isnan()
    assert z[:3].isnan().all()
    assert y[1:].tolist() == [float("inf"), -1.0, 0.0, -1.0]
    assert z[3] == 0


@needs_kernel
def test_without_the_kernel_values_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, alpha = torch.randn(50, 33) * 4, torch.rand(33) + 0.1
    with torch.no_grad():
        with_kernel = snake(x, alpha), elu(x)
        monkeypatch.setenv("ZOO_COMPILED", "0")
        assert not activations.available()
        for got, expected in zip((snake(x, alpha), elu(x)), with_kernel):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_gradients_and_other_layouts_and_precisions() -> None:
    x, alpha = torch.randn(6, 9, dtype=torch.float64, requires_grad=True), torch.rand(9, dtype=torch.float64) + 0.5
    alpha.requires_grad_()
    assert torch.autograd.gradcheck(snake, (x, alpha))
    assert torch.autograd.gradcheck(elu, (x,))
    with torch.no_grad():
        strided = torch.randn(9, 6).t()
        torch.testing.assert_close(elu(strided), F.elu(strided))
        torch.testing.assert_close(snake(strided, torch.ones(9)), strided + strided.sin() ** 2)
        half = torch.randn(4, 9).bfloat16()
        assert snake(half, torch.ones(9, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert elu(torch.zeros(0, 3)).shape == (0, 3)
