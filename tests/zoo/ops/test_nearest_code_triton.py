"""The Triton kernel: in the interpreter, compiled for GPUs that need not be here, and on one where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nearest_definition import assert_nearest

from zoo.ops import METRICS
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

    kernel = nearest_code_triton._best_two
    constants = {**nearest_code_triton.tile_options(dim), "DIM": dim, "x_column": 1, "code_column": 1}
    warps = constants.pop("num_warps")
    pointers = {"x": "*fp32", "codes": "*fp32", "bias": "*fp32", "best_out": "*fp32", "second_out": "*fp32"}
    types = {**pointers, "index_out": "*i32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {name: (kernel.arg_names.index(name),) for name in kernel.arg_names}
    aligned = [*types, "x_row", "code_row", "part"]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={places[name]: value for name, value in constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert "wgmma.mma_async" in built.asm["ptx"]


@needs_gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 8, 32, 100, 256])
def test_on_a_gpu(dim: int, metric: str) -> None:
    device = torch.device("cuda", 0)
    assert backend(device) == "triton"
    assert_nearest(torch.randn(700, dim, device=device), torch.randn(3001, dim, device=device), metric)
    codebook = torch.randn(1, dim, device=device) + 1e-6 * torch.randn(300, dim, device=device)
    assert_nearest(torch.randn(200, dim, device=device), codebook, metric)
