"""What a floor under the probabilities inside a logarithm adds to entropies, for products of the entries of two tables.

A clamped entropy -sum p log(max(p, floor)) is the exact one plus the sum of p (log p - log floor) over the p < floor.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.build import BuildError, Kernel


def added_by_floor(low: Tensor, high: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of p (log p - log floor) over the products p < floor of an entry of each table, for each token.

    By the C++ kernel `csrc/entropy_floor.cpp` on CPUs where there is a compiler, otherwise by torch.

    Args:
        low: (groups, L, n) probabilities, in float32 or float64.
        high: (groups, H, n), likewise.
        floor: > 0.

    Returns:
        The sum over tokens and groups (), in float64 where the device has it, and its derivatives by the logarithms of
        both tables, of their shapes.
    """
    library = _KERNEL.library() if low.device.type == "cpu" else None
    return _sorted_sums(low, high, floor) if library is None else _call(library, low, high, floor)


def _call(library: ctypes.CDLL, low: Tensor, high: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    tables = [low.contiguous(), high.contiguous()]
    logarithms = [table.clamp_min(torch.finfo(table.dtype).tiny).log_() for table in tables]
    slopes = [torch.empty_like(table) for table in tables]
    added = ctypes.c_double()
    failed = library.zoo_entropy_floor(
        *(ctypes.c_void_p(table.data_ptr()) for table in (*tables, *logarithms)),
        *map(ctypes.c_int64, (low.shape[1], high.shape[1], low.shape[0], low.shape[2])),
        ctypes.c_double(floor),
        ctypes.c_int32(low.dtype == torch.float64),
        *(ctypes.c_void_p(slope.data_ptr()) for slope in slopes),
        ctypes.byref(added),
    )
    if failed:
        raise MemoryError(f"no memory for {high.shape[1]} entries of a table")
    return torch.tensor(added.value, dtype=torch.float64), slopes[0], slopes[1]


def _check(library: ctypes.CDLL) -> None:
    """Raise a BuildError unless the library gives the answers of the torch path on a small problem."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        tables = (torch.rand(2, count, 21, generator=generator, dtype=dtype) ** 3 for count in (8, 4))
        low, high = tables
        for got, expected in zip(_call(library, low, high, 0.1), _sorted_sums(low, high, 0.1)):
            if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5):
                raise BuildError("its answers are wrong")


_KERNEL = Kernel(
    Path(__file__).parent / "csrc" / "entropy_floor.cpp", _check, "clamped entropies are computed by torch"
)


# -- by torch ----------------------------------------------------------------------------------------------------------
# The products of an entry a that lie below the floor are those with the entries b < floor / a of the other table. So
# with the b sorted and their running sums, the sum over all b is read off at one place.


def _sorted_sums(low: Tensor, high: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    shape = low.shape[0], low.shape[2]
    low, high = _tokens_first(low), _tokens_first(high)

    def slopes(table: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives, and sums of p < floor for each entry of the table."""
        mass, entropy = _sums_below(other, table, floor)
        below = table * mass
        return table * entropy + _times_log(table) * mass + below * (1 - math.log(floor)), below

    of_low, _ = slopes(low, high)
    of_high, below = slopes(high, low)
    added = (of_high - below).sum(dtype=torch.float32 if low.device.type == "mps" else torch.float64)
    return added, *(by.unflatten(0, shape).transpose(1, 2) for by in (of_low, of_high))


def _tokens_first(table: Tensor) -> Tensor:
    """(groups, 2^bits, n) -> (groups n, 2^bits), contiguous."""
    return table.transpose(1, 2).contiguous().flatten(0, 1)


def _sums_below(table: Tensor, factors: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Of rows p of `table`, sums of p and of p log p where p * factor < floor, for each of the row's factors."""
    ascending = _sorted(table)
    places = torch.searchsorted(ascending, floor / factors)
    mass = F.pad(ascending.cumsum(1), (1, 0)).gather(1, places)
    entropy = F.pad(_times_log(ascending).cumsum(1), (1, 0)).gather(1, places)
    return mass, entropy


def _sorted(table: Tensor) -> Tensor:
    """Each row sorted; on the CPU by NumPy, whose sort is tens of times faster than torch's for short rows."""
    if table.device.type == "cpu":
        return torch.from_numpy(np.sort(table.numpy(), axis=1))
    return table.sort(dim=1).values


def _times_log(p: Tensor) -> Tensor:
    """p log p, 0 at 0; faster than `torch.special.xlogy`."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log_().mul_(p)
