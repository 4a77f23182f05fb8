"""The plain definition of the nearest code, in float64, and how to compare with it. Not a test by itself."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from zoo.ops import nearest_code, nearest_code_compiled


def scores(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """(N, K) in float64; the largest is the nearest."""
    x, codebook = x.double(), codebook.double()
    if metric == "cosine":
        x, codebook = (v / v.norm(dim=-1, keepdim=True).clamp_min(1e-300) for v in (x, codebook))
    if metric == "euclidean":
        rows = [-(row - codebook).square().sum(-1) for row in x]
    else:
        rows = [(row * codebook).sum(-1) for row in x]
    return torch.stack(rows) if rows else x.new_zeros(0, len(codebook))


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


def choose(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search by one of the two CPU paths, "compiled" or "torch", from here to the end of the test."""
    monkeypatch.setenv("ZOO_COMPILED", {"compiled": "1", "torch": "0"}[path])
    if path == "compiled" and not nearest_code_compiled.available():
        if shutil.which("c++"):
            pytest.fail("there is a C++ compiler, but the kernel cannot be built with it")
        pytest.skip("no C++ compiler")
