"""The nearest code of each vector: exact, with memory that does not grow with N x K.

What the answer is stands here. It is found by `nearest_code_compiled` on CPUs, by `nearest_code_triton` on CUDA, and by
`nearest_code_torch` where these cannot be had.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Literal

import torch
from torch import Tensor

from zoo.ops import nearest_code_compiled, nearest_code_torch
from zoo.ops.own_gradient import one_by_one, transformed
from zoo.ops.precision import full_precision

Metric = Literal["euclidean", "cosine", "dot"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine", "dot")


def nearest_code(x: Tensor, codebook: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Index of the nearest code of each vector: the lowest index among the exact minima.

    Scores are computed in float32 a tile at a time; where the two best are closer than its rounding can tell, they are
    computed again in float64 (Euclidean near ties from the differences x - c), so that the answer is that of exact
    arithmetic on the given values, on every device and for a vector alone or in any batch. Codes that not even float64
    can tell apart count as equal.

    The compiled forms, for CPUs (with a C++ compiler: g++, clang++ or $CXX) and CUDA, are built at their first use; the
    environment variable ZOO_COMPILED=0 switches them off. Works inside torch.compile and torch.export as one operator,
    and, in its CUDA form, in CUDA graphs.

    Args:
        x: (N, D) or, with one codebook each, (G, N, D); floating point, half precision included.
        codebook: (K, D) or (G, K, D), K >= 1.
        metric: "euclidean" (least distance), "cosine" (largest cosine; rows need not have unit length),
            "dot" (largest inner product).

    Returns:
        int64 indices (N,) or (G, N). A row that holds NaN or infinity gets index 0; a code that does is not chosen.

    Raises:
        ValueError: shapes that do not fit, an empty codebook, or an unknown metric.
    """
    check_metric(metric)
    if x.ndim not in (2, 3) or codebook.ndim != x.ndim or x.shape[-1] != codebook.shape[-1]:
        got = f"{tuple(x.shape)} and {tuple(codebook.shape)}"
        raise ValueError(f"expected (N, D) and (K, D) or (G, N, D) and (G, K, D), got {got}")
    if x.ndim == 3 and len(x) != len(codebook):
        raise ValueError(f"expected as many codebooks as groups of vectors, got {len(codebook)} and {len(x)}")
    if codebook.shape[-2] == 0:
        raise ValueError("expected at least one code, got an empty codebook")
    x, codebook = x.detach(), codebook.detach()
    if type(x) is Tensor and x.is_cuda and not (torch.compiler.is_compiling() or transformed()):
        return _found(x, codebook, metric)  # the way through the dispatcher takes longer than the kernels
    return _nearest_code(x, codebook, metric)


def check_metric(metric: str) -> None:
    """Raise a ValueError unless it is one of METRICS."""
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")


@torch.library.custom_op("zoo::nearest_code", mutates_args=())
def _nearest_code(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    return _found(x, codebook, metric)


def _found(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[:-1], dtype=torch.int64)
    with torch.no_grad(), full_precision(x):
        if x.ndim == 2:
            return search(x, codebook, metric)
        return torch.stack([search(vectors, codes, metric) for vectors, codes in zip(x, codebook)])


@_nearest_code.register_fake
def _(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


_nearest_code.register_vmap(functools.partial(one_by_one, _nearest_code))


def backend(device: torch.device) -> Literal["compiled", "triton", "torch"]:
    """What the search runs on for tensors of a device; the first call builds it, or logs why it cannot be had."""
    if device.type == "cpu" and nearest_code_compiled.available():
        return "compiled"
    switched_off = os.environ.get("ZOO_COMPILED") == "0"
    return "triton" if device.type == "cuda" and not switched_off and _triton_works(device) else "torch"


def search(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """As `nearest_code`, for (N, D) and (K, D) with N, K, D >= 1 that are known to fit, outside autocast."""
    chosen = backend(x.device)
    if chosen == "compiled":
        return nearest_code_compiled.search(x, [codebook], metric)[:, 0]
    if chosen == "triton":
        from zoo.ops import nearest_code_triton

        with torch.cuda.device_of(x):
            return nearest_code_triton.search(x, codebook, metric)
    if x.device.type == "mps":  # has no float64
        return nearest_code_torch.search(x.cpu(), codebook.cpu(), metric).to(x.device)
    return nearest_code_torch.search(x, codebook, metric)


@functools.cache
def _triton_works(device: torch.device) -> bool:
    """Whether the Triton kernel runs on a CUDA device; where it does not, the log says why, once."""
    try:
        from zoo.ops import nearest_code_triton

        with torch.cuda.device(device):
            nearest_code_triton.check(device)
    except Exception as error:  # triton has no base class for what it raises without compiler, driver or hardware
        message = "nearest codes on %s are searched by torch, which is slower: %s"
        logging.getLogger(__name__).warning(message, device, error)
        return False
    return True
