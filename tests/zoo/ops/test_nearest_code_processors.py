"""The compiled kernel as processors with fewer instructions get it, on vectors and codes that are much alike."""

from __future__ import annotations

import os
import platform
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nearest_definition import assert_nearest
from torch import Tensor

from zoo.ops import METRICS, nearest_code, nearest_code_compiled, residual_codes
from zoo.ops.build import Kernel

BUILDS = {"this processor": ""}
if platform.machine().lower() in ("x86_64", "amd64"):
    BUILDS |= {"no products of bytes": "-mno-avx512vnni", "registers of 256 bits": "-mno-avx512f"}


@pytest.fixture(scope="module", params=BUILDS)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    kernel = Kernel(nearest_code_compiled._KERNEL.source, nearest_code_compiled._check, "torch searches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", f"{os.environ.get('CXX', 'c++')} {BUILDS[request.param]}")
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("ZOO_COMPILED", "1")
        assert kernel.library() is not None
    return kernel


@pytest.fixture(autouse=True)
def compiled(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_COMPILED", "1")
    monkeypatch.setattr(nearest_code_compiled, "_KERNEL", kernel)


def draw(kind: str, n: int, k: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors (n, d) and codes (k, d) that are hard for a search that rounds."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, codes = normal(n, d), normal(k, d)
    if kind == "far from 0":
        x, codes = x + 300, codes + 300
    elif kind == "near ties":
        codes = normal(1, d) + 1e-4 * codes
    elif kind == "few distinct":
        codes = codes[torch.randint(0, max(1, k // 9), (k,), generator=generator)]
    elif kind == "whole numbers":
        x, codes = x.mul(2).round(), codes.mul(2).round()
    elif kind == "one large value":
        x[:, d // 2] *= 1e4
        codes[::3, d // 3] *= 1e4
    elif kind == "all lengths":
        x, codes = x * 10 ** normal(n, 1).mul(4), codes * 10 ** normal(k, 1).mul(4)
    elif kind == "gaps":
        x[::5] = 0
        codes[::7] = 0
        codes[3::11, 0] = float("nan")
        codes[5::13, -1] = float("inf")
    elif kind == "beside codes":
        x = codes[torch.randint(0, k, (n,), generator=generator)] + 1e-3 * x
    return x, codes


KINDS = ("normal", "far from 0", "near ties", "few distinct", "whole numbers", "one large value", "all lengths", "gaps",
         "beside codes")  # fmt: skip


@settings(max_examples=150)
@given(
    st.sampled_from(KINDS), st.sampled_from([1, 3, 13, 16, 17, 40]), st.integers(100, 400),
    st.sampled_from([1, 4, 19, 20, 21, 32, 63, 64, 130, 256]), st.sampled_from(METRICS), st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_the_nearest_code_is_found_however_alike_they_are(
    kind: str, n: int, k: int, d: int, metric: str, seed: int, dtype: torch.dtype
) -> None:
    x, codes = (values.to(dtype) for values in draw(kind, n, k, d, seed))
    finite = codes.double().isfinite().all(dim=1)
    if bool(finite.all()):
        assert_nearest(x, codes, metric)
    elif bool(finite.any()):  # what is not finite is left out
        among_finite = finite.nonzero()[nearest_code(x, codes[finite], metric), 0]  # type: ignore[arg-type]
        found = nearest_code(x, codes, metric)  # type: ignore[arg-type]
        assert torch.equal(torch.where(x.isfinite().all(dim=1), among_finite, 0), found)


@pytest.mark.parametrize(("k", "d"), [(1100, 1024), (2200, 200), (5000, 20), (130, 3000)])
@pytest.mark.parametrize("metric", METRICS)
def test_edges_of_chunks_do_not_show(k: int, d: int, metric: str) -> None:
    for n in (5, 23):
        assert_nearest(*draw("normal", n, k, d, 0), metric)
        assert_nearest(*draw("few distinct", n, k, d, 0), metric)


def test_the_best_codes_may_come_last() -> None:
    """Each code is nearer than all before it, so that each is kept for a while."""
    codes = torch.randn(1, 64) + torch.linspace(3, 0.01, 3000)[:, None] * torch.randn(1, 64)
    for n in (2, 60):
        assert nearest_code(codes[-1:].repeat(n, 1), codes).tolist() == [2999] * n
        assert nearest_code(codes[:1].repeat(n, 1), codes).tolist() == [0] * n


def test_a_vector_alone_and_in_any_batch_has_one_index() -> None:
    x, codes = draw("near ties", 300, 500, 48, 0)
    x[:50], codes[::4] = draw("whole numbers", 50, 125, 48, 1)
    together = residual_codes(x, [codes, codes / 2])
    for size in (1, 7, 16, 17, 100):
        assert torch.equal(torch.cat([residual_codes(part, [codes, codes / 2]) for part in x.split(size)]), together)


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_does_not_show(threads: int) -> None:
    x, codes = draw("normal", 1500, 300, 64, 0)
    x[700] = float("nan")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = residual_codes(x, [codes, codes / 2, codes / 4])
        torch.set_num_threads(threads)
        assert torch.equal(residual_codes(x, [codes, codes / 2, codes / 4]), expected)
        assert torch.equal(residual_codes(x.T.contiguous().T, [codes, codes / 2, codes / 4]), expected)
    finally:
        torch.set_num_threads(before)
    assert bool((expected[700] == 0).all())


def test_a_codebook_that_is_changed_in_place_is_read_anew() -> None:
    codes = torch.randn(200, 32)
    for n in (10, 200):
        assert nearest_code(codes[:n], codes).tolist() == list(range(n))
        codes.data.copy_(codes.flip(0))
        assert nearest_code(codes[:n].flip(0), codes).tolist() == list(reversed(range(n)))


def test_a_code_is_kept_whose_rounding_to_bytes_makes_it_look_worst() -> None:
    """Steps are 1 here; rounding takes from the nearest code, and adds to all others, nearly half a step everywhere."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (64,), generator=generator) * 2.0 - 1
        whole = torch.randint(-20, 21, (300, 32), generator=generator).float()
        whole = torch.cat([whole, -whole], dim=1)
        nearest = int(torch.randint(0, 300, (1,), generator=generator))
        codes = signs * (whole - 0.49)
        codes[::15] += signs * (torch.arange(64) < torch.randint(40, 62, (20, 1), generator=generator))
        codes[torch.arange(300) % 15 > 0] -= 2 * signs  # far behind
        codes[nearest] = signs * (whole[nearest] - 0.49)
        codes[nearest] += 0.98 * signs
        codes = torch.cat([codes, torch.full((300, 1), 127.0)], dim=1)
        x = torch.cat([signs, torch.ones(1)]).repeat(20, 1)
        assert nearest_code(x, codes, "dot").tolist() == [nearest] * 20
