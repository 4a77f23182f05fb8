"""Nearest codes on CUDA by one Triton kernel: codes stream by in tiles, the best two scores stay in registers.

Importing this module needs triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.ops import nearest_code_torch
from zoo.ops.nearest_code_torch import ScaledCodes, margins, settle

_ROWS, _CODES = 128, 64  # of the tile of scores of a program
_PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _best_two(
    x, codes, bias, best_out, second_out, index_out,
    rows, count, part, x_row, x_column, code_row, code_column,
    DIM: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, STRIP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For ROWS vectors: best score, its index and second best score among codes [part * i, part * (i + 1))."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, CODES)
    strip = tl.arange(0, STRIP)
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, count)
    # each lane keeps its own best two, so that rows are reduced over once, at the end
    best = tl.full((ROWS, CODES), float("-inf"), tl.float32)
    second = tl.full((ROWS, CODES), float("-inf"), tl.float32)
    tile = tl.zeros((ROWS, CODES), tl.int32)
    vectors = x + row[:, None].to(tl.int64) * x_row
    row_fits = row[:, None] < rows
    if DIM <= STRIP:
        resident = tl.load(vectors + strip[None, :] * x_column, mask=row_fits & (strip[None, :] < DIM), other=0.0)
    for start in range(first, end, CODES):
        code = start + lane
        code_fits = code[None, :] < end
        columns = codes + code[None, :].to(tl.int64) * code_row
        scores = tl.zeros((ROWS, CODES), tl.float32)
        if DIM <= STRIP:
            values = tl.load(columns + strip[:, None] * code_column, mask=code_fits & (strip[:, None] < DIM), other=0.0)
            scores = tl.dot(resident, values, scores, input_precision=PRECISION)
        else:
            for d in range(0, DIM, STRIP):
                some = d + strip
                left = tl.load(vectors + some[None, :] * x_column, mask=row_fits & (some[None, :] < DIM), other=0.0)
                values = tl.load(
                    columns + some[:, None] * code_column, mask=code_fits & (some[:, None] < DIM), other=0.0
                )
                scores = tl.dot(left, values, scores, input_precision=PRECISION)
        scores += tl.load(bias + code, mask=code < end, other=float("-inf"))[None, :]
        second = tl.maximum(second, tl.minimum(scores, best))
        tile = tl.where(scores > best, start, tile)
        best = tl.maximum(best, scores)
    highest = tl.max(best, axis=1)
    code = tile + lane[None, :]
    index = tl.min(tl.where(best == highest[:, None], code, count), axis=1)
    runner_up = tl.max(tl.where(code == index[:, None], second, best), axis=1)
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(best_out + place, highest, mask=row < rows)
    tl.store(second_out + place, runner_up, mask=row < rows)
    tl.store(index_out + place, index, mask=row < rows)


def search(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """As `nearest_code`, for (N, D) and (K, D) with N, K, D >= 1 on one device, outside autocast."""
    scaled = ScaledCodes.of(codebook, metric)
    ((_, codes, bias),) = scaled.tiles(len(codebook), torch.float32)
    single = x.float()
    rows, (count, dim) = len(x), codebook.shape
    row_programs = triton.cdiv(rows, _ROWS)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    parts = min(triton.cdiv(_PROGRAMS_PER_PROCESSOR * processors, row_programs), triton.cdiv(count, 4 * _CODES))
    part = triton.cdiv(triton.cdiv(count, parts), _CODES) * _CODES
    parts = triton.cdiv(count, part)
    best, second = single.new_empty(2, parts, rows)
    index = torch.empty(parts, rows, dtype=torch.int32, device=x.device)
    _best_two[(row_programs, parts)](
        single, codes, bias, best, second, index,
        rows, count, part, *single.stride(), *codes.stride(),
        DIM=dim, **tile_options(dim),
    )  # fmt: skip
    top, which = best.max(dim=0, keepdim=True)
    others = best.scatter(0, which, float("-inf")).amax(dim=0)
    runner_up = torch.maximum(second.gather(0, which)[0], others)
    indices = index.gather(0, which)[0].long()
    # three products of shorter numbers leave 2^-20; the tensor cores cut sums off where others round them
    rounding = 2.0**-20 + (dim + 6) * 2.0**-21
    lengths = torch.cat([block.double().norm(dim=-1) for block in x.split(1 << 16)])
    settle(x, scaled, indices, top[0], runner_up, margins(scaled, lengths, rounding))
    return indices


def tile_options(dim: int) -> dict[str, int | str]:
    """Sizes of a program's tile, and how it multiplies, for vectors of `dim` values."""
    precision = "ieee" if torch.version.hip else "tf32x3"
    return {"ROWS": _ROWS, "CODES": _CODES, "STRIP": 16 if dim <= 16 else 32, "PRECISION": precision, "num_warps": 8}


def check(device: torch.device) -> None:
    """Raise a RuntimeError unless the kernel compiles and gives the answers of the torch path on a small problem."""
    generator = torch.Generator().manual_seed(0)
    for dim in (9, 70):
        x, codes = (torch.randn(n, dim, generator=generator).to(device) for n in (37, 201))
        if not torch.equal(search(x, codes, "euclidean"), nearest_code_torch.search(x, codes, "euclidean")):
            raise RuntimeError(f"its answers are wrong on {device}")
