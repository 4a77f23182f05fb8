"""The Triton kernel in Triton's interpreter, against the torch path; `test_nearest_code_triton.py` starts it."""

import math

import pytest
import torch

from zoo.ops import METRICS, nearest_code_torch, nearest_code_triton


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
    x = torch.randn(60, 8)
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


@pytest.mark.parametrize("processors", [1, 50])
def test_parts_of_the_codebook_do_not_show(monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
    monkeypatch.setattr(nearest_code_triton, "_PROGRAMS_PER_PROCESSOR", processors)
    x, codebook = torch.randn(20, 5), torch.randn(2111, 5)
    codebook[1500] = codebook[3]
    expected = nearest_code_torch.search(x, codebook, "euclidean")
    assert torch.equal(nearest_code_triton.search(x, codebook, "euclidean"), expected)


def test_its_own_check_passes_here_and_fails_where_answers_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest_code_triton.check(torch.device("cpu"))
    monkeypatch.setattr(nearest_code_triton, "settle", lambda x, codes, index, *_: index.zero_())
    with pytest.raises(RuntimeError, match="its answers are wrong on cpu"):
        nearest_code_triton.check(torch.device("cpu"))
