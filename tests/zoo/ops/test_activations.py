"""Snake, ELU, and SiLU after a group norm: the compiled kernel against exact values and torch, with any number of
threads, and without it.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from onlooker import Onlooker
from torch import Tensor

from zoo.ops import activations
from zoo.ops.activations import elu, group_norm_silu, snake

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
@given(rows=st.integers(1, 40), width=st.integers(1, 70), size=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_of_bfloat16_the_float32_result_is_rounded(rows: int, width: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=generator) * size).bfloat16()
    alpha = (torch.rand(width, generator=generator) * 3 + 0.05).bfloat16()
    with torch.no_grad():
        assert torch.equal(snake(x, alpha), snake(x.float(), alpha.float()).bfloat16())
        assert torch.equal(elu(x), elu(x.float()).bfloat16())


@needs_kernel
def test_every_bfloat16_is_read_and_written_as_torch_does(threads: None) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).repeat(3)
    with torch.no_grad():
        y, expected = elu(x), elu(x.float()).bfloat16()
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))


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


# -- SiLU after a group norm ---------------------------------------------------------------------------------------


def exact_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6))


def maps(shape: tuple[int, ...], offset: float) -> tuple[Tensor, Tensor, Tensor]:
    """Channels innermost, each with a mean and a size of its own, and those of each item different."""
    generator = torch.Generator().manual_seed(0)
    apart = [torch.randn(*size, *[1] * (len(shape) - 2), generator=generator) for size in (shape[:2], shape[:2])]
    x = torch.randn(shape, generator=generator) * apart[0].abs() + offset * apart[1]
    weight, bias = torch.randn(2, shape[1], generator=generator)
    return x.movedim(1, -1).contiguous().movedim(-1, 1), weight, bias


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(
    "shape",
    [(2, 32, 130, 129), (3, 96, 75, 75), (1, 2048, 16, 17), (1, 16, 40_000), (2, 64, 16, 24, 23), (2, 64, 3, 3)],
)
def test_a_group_norm_is_as_exact_as_torchs(shape: tuple[int, ...], offset: float, threads: None) -> None:
    x, weight, bias = maps(shape, offset)
    exact, kept = exact_norm(x, 16, weight, bias), x.clone()
    with torch.no_grad():
        plain = F.silu(F.group_norm(x, 16, weight, bias, 1e-6))
        found = group_norm_silu(x, 16, weight, bias, 1e-6)
        assert torch.equal(x, kept)
        again = group_norm_silu(x, 16, weight, bias, 1e-6, spare=True)
    assert found.stride() == x.stride()
    assert torch.equal(found, again)
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6


@needs_kernel
def test_a_spare_map_holds_the_result() -> None:
    x, weight, bias = maps((1, 32, 128, 130), 1.0)
    with torch.no_grad():
        assert group_norm_silu(x, 32, weight, bias, 1e-6, spare=True).data_ptr() == x.data_ptr()


def test_a_map_of_one_value_has_no_spread() -> None:
    x, weight, bias = (
        torch.full((1, 32, 128, 128), 1e4).to(memory_format=torch.channels_last),
        torch.ones(32),
        torch.ones(32),
    )
    with torch.no_grad():
        torch.testing.assert_close(group_norm_silu(x, 4, weight, bias, 1e-6), F.silu(torch.ones_like(x)))


def test_gradients_pass_a_group_norm_and_its_silu() -> None:
    x, weight, bias = (part.double().requires_grad_() for part in maps((2, 4, 3, 3), 1.0))
    assert torch.autograd.gradcheck(
        lambda *given: group_norm_silu(given[0], 2, *given[1:], 1e-6, spare=True), (x, weight, bias)
    )


def test_a_mode_sees_torchs_own_group_norm() -> None:
    x, weight, bias = maps((1, 32, 128, 130), 1.0)
    with torch.no_grad(), Onlooker() as onlooker:
        group_norm_silu(x, 32, weight, bias, 1e-6)
    assert F.group_norm in onlooker.seen
