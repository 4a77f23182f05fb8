"""Nearest codes and residual levels by the C++ kernel `csrc/nearest_code.cpp`, on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoo.ops import nearest_code_torch
from zoo.ops.build import BuildError, Kernel

_METRICS = {"euclidean": 0, "cosine": 1, "dot": 2}  # enum Metric of the source
_CONVERTED = 1 << 20  # values of vectors of another type that are converted at a time
_WORK_OF_A_THREAD = 1 << 22  # multiplications that are worth starting one for
_ROWS_OF_A_THREAD = 128  # each thread packs all codes for itself, which costs as much as the search for about 100 rows


def available() -> bool:
    """Whether the kernel can be used; the first call builds or loads it, and logs why where it cannot be had."""
    return _KERNEL.library() is not None


def search(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    """As `residual_codes`, for CPU tensors where no size is 0; needs `available()`."""
    library = _KERNEL.library()
    if library is None:
        raise RuntimeError("the compiled kernel is not available")
    return _search(library, x, codebooks, metric)


def _search(library: ctypes.CDLL, x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    double = torch.float64 in (x.dtype, *(codebook.dtype for codebook in codebooks))
    dtype = torch.float64 if double else torch.float32
    codebooks = [codebook.to(dtype).contiguous() for codebook in codebooks]
    counts = [len(codebook) for codebook in codebooks]
    levels, dim = len(codebooks), x.shape[1]
    indices = torch.empty(len(x), levels, dtype=torch.int64)
    rows = len(x) if x.dtype == dtype else max(1024, _CONVERTED // dim)
    for start in range(0, len(x), rows):
        part = x[start : start + rows].to(dtype)
        worth = min(1 + len(part) * sum(counts) * dim // _WORK_OF_A_THREAD, len(part) // _ROWS_OF_A_THREAD)
        threads = max(1, min(torch.get_num_threads(), worth))
        failed = library.zoo_residual_codes(
            ctypes.c_void_p(part.data_ptr()),
            ctypes.c_int64(len(part)),
            ctypes.c_int64(part.stride(0)),
            ctypes.c_int64(part.stride(1)),
            ctypes.c_int32(double),
            (ctypes.c_void_p * levels)(*(codebook.data_ptr() for codebook in codebooks)),
            (ctypes.c_int64 * levels)(*counts),
            ctypes.c_int64(levels),
            ctypes.c_int64(dim),
            ctypes.c_int32(_METRICS[metric]),
            ctypes.c_int64(threads),
            ctypes.c_void_p(indices[start:].data_ptr()),
        )
        if failed:
            raise MemoryError(f"no memory to search {counts} codes of {dim} values with {threads} threads")
    return indices


def _check(library: ctypes.CDLL) -> None:
    """Raise a BuildError unless the library gives the answers of the torch path on a small problem."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        x, codes = (torch.randn(n, 21, generator=generator, dtype=dtype) for n in (37, 201))
        for metric in _METRICS:
            expected = nearest_code_torch.search(x, codes, metric)
            rest = nearest_code_torch.search(x - codes[expected], codes, metric)
            if not torch.equal(_search(library, x, [codes, codes], metric), torch.stack([expected, rest], dim=1)):
                raise BuildError("its answers are wrong")


_KERNEL = Kernel(Path(__file__).parent / "csrc" / "nearest_code.cpp", _check, "nearest codes are searched by torch")
