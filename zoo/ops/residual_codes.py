"""Greedy residual quantisation: each level takes the nearest code of what the levels before it left over.

Paper: SoundStream, arXiv 2107.03312, section III-C.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.ops import nearest_code_compiled
from zoo.ops.nearest_code import Metric, check_metric, search
from zoo.ops.own_gradient import one_by_one
from zoo.ops.precision import full_precision


def residual_codes(x: Tensor, codebooks: Tensor | Sequence[Tensor], metric: Metric = "euclidean") -> Tensor:
    """Index of the nearest code of each vector at each level.

    Equal to `index = nearest_code(x, codebook, metric); x = x - codebook[index]` over the codebooks, with x and all
    codebooks in float32 (in float64 where one of them is). The compiled kernel runs all levels on a few vectors before
    it takes the next ones.

    Args:
        x: (N, D) floating point.
        codebooks: (Q, K, D), or Q tensors (K_q, D).
        metric: as of `nearest_code`; what is left over is the difference to the code as given, whatever the metric.

    Returns:
        int64 indices (N, Q). From where a row holds NaN or infinity, the indices are 0.

    Raises:
        ValueError: shapes that do not fit, no codebooks, an empty codebook, or an unknown metric.
    """
    check_metric(metric)
    if x.ndim != 2 or len(codebooks) == 0 or any(c.ndim != 2 or c.shape[1] != x.shape[1] for c in codebooks):
        shapes = ", ".join(str(tuple(codebook.shape)) for codebook in codebooks) or "none"
        raise ValueError(f"expected (N, D) and one or more codebooks (K, D), got {tuple(x.shape)} and {shapes}")
    if any(len(codebook) == 0 for codebook in codebooks):
        raise ValueError("expected at least one code in each codebook, got an empty codebook")
    return _residual_codes(x.detach(), [codebook.detach() for codebook in codebooks], metric)


@torch.library.custom_op("zoo::residual_codes", mutates_args=())
def _residual_codes(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(len(x), len(codebooks), dtype=torch.int64)
    if x.device.type == "cpu" and nearest_code_compiled.available():
        return nearest_code_compiled.search(x, codebooks, metric)
    dtype = torch.float32
    for tensor in (x, *codebooks):
        dtype = torch.promote_types(dtype, tensor.dtype)
    residual, levels = x.to(dtype), []
    with torch.no_grad(), full_precision(x):
        for codes in (codebook.to(dtype) for codebook in codebooks):
            levels.append(search(residual, codes, metric))
            residual = residual - codes[levels[-1]]
    return torch.stack(levels, dim=1)


@_residual_codes.register_fake
def _(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    return x.new_empty(x.shape[0], len(codebooks), dtype=torch.int64)


_residual_codes.register_vmap(functools.partial(one_by_one, _residual_codes))
