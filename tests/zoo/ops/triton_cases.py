"""The Triton kernel in Triton's interpreter, against the torch path; `test_nearest_code_triton.py` starts it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.ops import METRICS, nearest_code_torch, nearest_code_triton
from zoo.ops.nearest_code_triton import Tiling


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("rows", "count", "dim"),
    [(1, 1, 1), (3, 63, 2), (127, 64, 16), (129, 65, 17), (5, 700, 32), (130, 300, 33), (40, 257, 100)],
)
def test_it_finds_what_torch_finds(rows: int, count: int, dim: int, metric: str) -> None:
    x, codebook = torch.randn(dim, rows).T, torch.randn(count, 2 * dim)[:, ::2]
    expected = nearest_code_torch.search(x, codebook, metric)
    assert torch.equal(nearest_code_triton.search(x, codebook, metric), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype, metric: str) -> None:
    x, codebook = torch.randn(50, 6).to(dtype), torch.randn(150, 6).to(dtype)
    expected = nearest_code_torch.search(x, codebook, metric)
    assert torch.equal(nearest_code_triton.search(x, codebook, metric), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_and_near_ties(metric: str) -> None:
    codebook = torch.randn(1, 8) + 1e-7 * torch.randn(200, 8)
    codebook[120:] = codebook[:80]
    x = torch.randn(6, 8)
    expected = nearest_code_torch.search(x, codebook, metric)
    assert bool((expected < 120).all())
    assert torch.equal(nearest_code_triton.search(x, codebook, metric), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_values_that_are_not_finite(metric: str) -> None:
    x, codebook = torch.randn(30, 5), torch.randn(140, 5)
    x[3, 1], x[4, 0], codebook[0, 0], codebook[77, 2] = math.nan, math.inf, math.nan, -math.inf
    x[5] = 3e38
    expected = nearest_code_torch.search(x, codebook, metric)
    assert expected[3] == expected[4] == 0
    assert torch.equal(nearest_code_triton.search(x, codebook, metric), expected)


@pytest.mark.parametrize("programs", [1, 50])
@pytest.mark.parametrize("tile", [16, 32])
def test_tiles_and_parts_of_the_codebook_do_not_show(programs: int, tile: int) -> None:
    tiling = Tiling(rows=tile, codes=tile, strip=16, programs=programs)
    x, codebook = torch.randn(20, 19), torch.randn(1111, 19)
    codebook[1050] = codebook[3]
    expected = nearest_code_torch.search(x, codebook, "euclidean")
    assert torch.equal(nearest_code_triton.search(x, codebook, "euclidean", tiling), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("places", [[0], [0, 64], [5, 69, 133], [5, 6], [5, 6, 7, 90], list(range(150))])
def test_close_codes_of_one_lane_and_of_several(places: list[int], metric: str) -> None:
    x, codebook = torch.randn(4, 12), torch.randn(330, 12) * 0.1
    codebook[places] = x[0] + 1e-7 * torch.randn(len(places), 12)
    expected = nearest_code_torch.search(x, codebook, metric)
    assert torch.equal(nearest_code_triton.search(x, codebook, metric), expected)
    twins = torch.cat([codebook, codebook])
    assert torch.equal(nearest_code_triton.search(x, twins, metric), expected)


@given(
    st.integers(1, 7), st.integers(1, 200), st.integers(1, 80), st.sampled_from(METRICS),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e4, 1e17]), st.sampled_from([0.0, 1e-6, 1.0]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=10)
def test_drawn_settings(rows: int, count: int, dim: int, metric: str, scale: float, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator) * scale
    codebook = (
        torch.randn(1, dim, generator=generator) + spread * torch.randn(count, dim, generator=generator)
    ) * scale
    expected = nearest_code_torch.search(x, codebook, metric)
    assert torch.equal(nearest_code_triton.search(x, codebook, metric), expected)


def test_its_own_check_passes_here_and_fails_where_answers_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest_code_triton.check(torch.device("cpu"))
    search = nearest_code_triton.search
    monkeypatch.setattr(nearest_code_triton, "search", lambda *arguments: search(*arguments).flip(0))
    with pytest.raises(RuntimeError, match="its answers are wrong on cpu"):
        nearest_code_triton.check(torch.device("cpu"))
