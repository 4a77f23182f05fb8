"""What a floor adds to entropies against its definition in float64, by the compiled kernel and by torch."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import entropy_floor
from zoo.ops.entropy_floor import added_by_floor


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ZOO_COMPILED", {"compiled": "1", "torch": "0"}[request.param])
    if request.param == "compiled" and entropy_floor._KERNEL.library() is None:
        if shutil.which("c++"):
            pytest.fail("there is a C++ compiler, but the kernel cannot be built with it")
        pytest.skip("no C++ compiler")
    return request.param


def definition(low: Tensor, high: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    p = low.double()[:, :, None] * high.double()[:, None]
    added = torch.where(p < floor, torch.special.xlogy(p, p) - p * math.log(floor), 0)
    slopes = added + torch.where(p < floor, p, 0)
    return added.sum(), slopes.sum(2), slopes.sum(1)


@given(
    st.integers(1, 3), st.sampled_from([1, 2, 8, 32]), st.sampled_from([1, 2, 16]),
    st.sampled_from([0, 1, 7, 8, 15, 16, 17, 50]), st.sampled_from([1e-5, 1e-2, 0.5]), st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_it_is_the_sum_over_all_pairs_below_the_floor(
    groups: int, lows: int, highs: int, n: int, floor: float, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = (torch.rand(groups, count, n, generator=generator, dtype=dtype) for count in (lows, highs))
    low, high = low**6, high**4
    low[low < 1e-7] = 0
    high[:, -1:, ::3] = 0
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for got, expected in zip(added_by_floor(low, high, floor), definition(low, high, floor)):
        assert got.shape == expected.shape
        assert float((got.double() - expected).abs().sum()) <= tolerance * float(expected.abs().sum()) + 1e-12


def test_tables_with_gaps_are_taken() -> None:
    low, high = torch.rand(2, 33, 8).mT ** 4, torch.rand(2, 4, 66)[..., ::2]
    for got, expected in zip(added_by_floor(low, high, 0.1), definition(low, high, 0.1)):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_torch_computes_it_and_the_log_says_so_once(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if path == "torch":
        pytest.skip("needs no compiler")
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    kernel = entropy_floor._KERNEL
    monkeypatch.setattr(kernel, "_tried", False)
    monkeypatch.setattr(kernel, "_library", None)
    low, high = torch.rand(1, 4, 20), torch.rand(1, 2, 20)
    for _ in range(2):
        got, *_ = added_by_floor(low, high, 0.2)
        torch.testing.assert_close(got, definition(low, high, 0.2)[0], rtol=1e-5, atol=1e-6)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("clamped entropies are computed by torch, which is slower: CXX: expected")
