"""The Triton kernel: in the interpreter, compiled for GPUs that need not be here, and on one where there is one."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nearest_definition import assert_nearest
from torch import Tensor

from zoo.ops import METRICS, nearest_code, residual_codes
from zoo.ops.nearest_code import backend

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_triton
def test_the_interpreted_kernel_finds_what_torch_finds() -> None:
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # triton reads it when it is imported
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@needs_triton
@pytest.mark.parametrize("dim", [8, 256])
def test_the_kernel_compiles_for_the_tensor_cores_of_an_h100(dim: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from zoo.ops import nearest_code_triton

    kernel = nearest_code_triton._best_lanes
    tiles = nearest_code_triton.tiling(dim)
    constants = {
        "DIM": dim,
        "ROWS": tiles.rows,
        "CODES": tiles.codes,
        "STRIP": tiles.strip,
        "PRECISION": tiles.precision,
        "COSINE": False,
        "x_column": 1,
        "code_column": 1,
    }
    types = {"x": "*fp32", "codes": "*fp32", "work": "*fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {name: (kernel.arg_names.index(name),) for name in kernel.arg_names}
    aligned = [*types, "x_row", "code_row", "part"]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={places[name]: value for name, value in constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in built.asm["ptx"]
    assert built.metadata.shared <= 227 * 1024


# -- on a GPU ----------------------------------------------------------------------------------------------------------

CUDA = "cuda"
TYPE = st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64])


@needs_gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 8, 32, 100, 256, 1024])
def test_on_a_gpu(dim: int, metric: str) -> None:
    assert backend(torch.device(CUDA)) == "triton"
    assert_nearest(torch.randn(700, dim, device=CUDA), torch.randn(3001, dim, device=CUDA), metric)
    codebook = torch.randn(1, dim, device=CUDA) + 1e-6 * torch.randn(300, dim, device=CUDA)
    assert_nearest(torch.randn(200, dim, device=CUDA), codebook, metric)


@needs_gpu
@settings(max_examples=12)  # nearly each compiles the kernels anew
@given(
    st.integers(0, 150), st.integers(1, 700), st.integers(1, 40) | st.sampled_from([64, 129, 300, 777, 1024]),
    st.sampled_from(METRICS), TYPE, TYPE, st.booleans(), st.sampled_from([1e-3, 1.0, 30.0]), st.integers(0, 99),
)  # fmt: skip
def test_drawn_settings_on_a_gpu(
    rows: int, count: int, dim: int, metric: str,
    dtype: torch.dtype, code_dtype: torch.dtype, strided: bool, scale: float, seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator(CUDA).manual_seed(seed)

    def drawn(n: int) -> Tensor:
        values = torch.randn((dim, 2 * n) if strided else (n, dim), generator=generator, device=CUDA)
        return values.T[::2] if strided else values

    assert_nearest((drawn(rows) * scale).to(dtype), drawn(count).to(code_dtype), metric)


@needs_gpu
@pytest.mark.parametrize("metric", METRICS)
def test_values_that_are_not_finite_on_a_gpu(metric: str) -> None:
    x, codebook = torch.randn(60, 5, device=CUDA), torch.randn(700, 5, device=CUDA)
    expected = nearest_code(x.cpu(), codebook[100:].cpu(), metric)  # type: ignore[arg-type]
    codebook[:100] = torch.tensor([math.nan, math.inf, -math.inf, 1, 1], device=CUDA)
    assert torch.equal(nearest_code(x, codebook, metric).cpu(), expected + 100)  # type: ignore[arg-type]
    x[3, 1], x[4, 0], x[5, 2] = math.nan, math.inf, -math.inf
    expected += 100
    expected[3:6] = 0
    assert torch.equal(nearest_code(x, codebook, metric).cpu(), expected)  # type: ignore[arg-type]
    none = nearest_code(x, torch.full((4, 5), math.nan, device=CUDA), metric)  # type: ignore[arg-type]
    assert none.tolist() == [0] * 60


@needs_gpu
@pytest.mark.parametrize("metric", METRICS)
def test_ties_products_beyond_float32_and_close_codes_on_a_gpu(metric: str) -> None:
    codebook = torch.randn(2000, 70, device=CUDA)
    twins = torch.cat([codebook] * 3)
    x = torch.randn(300, 70, device=CUDA)
    assert torch.equal(nearest_code(x, twins, metric), nearest_code(x, codebook, metric))  # type: ignore[arg-type]
    assert_nearest(x * 3e36, codebook * 1e36, metric)
    codebook[::64] = x[0] + 1e-7 * torch.randn(32, 70, device=CUDA)
    assert_nearest(x, codebook, metric)
    assert_nearest(x, x[:1] + 1e-7 * torch.randn(3000, 70, device=CUDA), metric)


@needs_gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    codebook = torch.randn(500, 1024, device=CUDA, dtype=torch.float16)
    which = torch.randint(500, (2**21 + 77,), device=CUDA)
    assert torch.equal(nearest_code(codebook[which], codebook), which)
    large = torch.randn(2**22 + 77, 520, device=CUDA, dtype=torch.float16)
    chosen = torch.randint(len(large), (300,), device=CUDA)
    chosen[0] = len(large) - 1
    assert torch.equal(nearest_code(large[chosen], large), chosen)


@needs_gpu
def test_a_cuda_graph_can_capture_it() -> None:
    x, codebook = torch.randn(300, 9, device=CUDA), torch.randn(800, 9, device=CUDA)
    nearest_code(x, codebook)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices = nearest_code(x, codebook)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(indices, nearest_code(x, codebook))


@needs_gpu
def test_residual_levels_on_a_gpu() -> None:
    x, codebooks = torch.randn(3000, 40, device=CUDA), torch.randn(4, 500, 40, device=CUDA)
    rest = x
    for codes, found in zip(codebooks, residual_codes(x, codebooks).unbind(1)):
        assert torch.equal(found, nearest_code(rest, codes))
        rest = rest - codes[found]
