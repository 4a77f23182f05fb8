"""Nearest codes on CUDA by three Triton kernels, with no table of N x K and no wait for the device.

`_measure` takes the lengths of the codes. `_best_lanes` streams codes by in tiles; each lane of a tile keeps its best
two scores in registers, and of each part of the codebook the two best lanes of a vector are written out. `_decide`
takes the best of these or, where others lie within the rounding of the scores, scores those again in float64.

Importing this module needs triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.ops import nearest_code_torch

_MEASURED = 32  # codes of a program of _measure
_DECIDED = 4096  # of a program of _decide: vectors times lanes


@dataclass(frozen=True)
class Tiling:
    """How `_best_lanes` is laid out: rows x codes scores a program, strips of the width, parts of the codebook.

    Attributes:
        rows: vectors of a tile.
        codes: codes of a tile, which are its lanes.
        strip: values of vector and code that are multiplied at a time, at least 16.
        warps: of a program.
        stages: how many tiles of codes are under way at a time.
        precision: of products: "tf32x3" (three of the tensor cores, of numbers cut in two) or "ieee" (no tensor cores).
        programs: how many there should be on each processor of the device, at least.
    """

    rows: int = 128
    codes: int = 64
    strip: int = 32
    warps: int = 8
    stages: int = 3
    precision: str = "tf32x3"
    programs: int = 4


def tiling(dim: int) -> Tiling:
    """What suits vectors of `dim` values."""
    precision = "ieee" if torch.version.hip else "tf32x3"
    return Tiling(strip=16 if dim <= 16 else 32, precision=precision)


@triton.jit
def _measure(
    codes, wide, work,
    count, dim, blocks, code_row, code_column,
    CODES: tl.constexpr, STRIP: tl.constexpr, EUCLIDEAN: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """Of CODES codes: squared lengths, -1 where not finite; biases; scales (cosine); the extreme scaled lengths."""
    code = tl.program_id(0) * CODES + tl.arange(0, CODES)
    strip = tl.arange(0, STRIP)
    sums = tl.zeros((CODES,), tl.float64)
    for d in range(0, dim, STRIP):
        some = d + strip
        places = codes + code[:, None].to(tl.int64) * code_row + some[None, :] * code_column
        values = tl.load(places, mask=(code[:, None] < count) & (some[None, :] < dim), other=0.0).to(tl.float64)
        sums += tl.sum(values * values, axis=1)
    usable = (sums < float("inf")) & (code < count)
    lengths = tl.sqrt(tl.where(usable, sums, 0.0))
    biases = tl.where(usable, -sums / 2 if EUCLIDEAN else 0.0, float("-inf"))
    tl.store(wide + code, tl.where(usable, sums, -1.0), mask=code < count)
    tl.store(work + code, biases.to(tl.float32), mask=code < count)
    if COSINE:
        scales = tl.where(lengths > 0, 1 / tl.where(lengths > 0, lengths, 1.0), 0.0)
        tl.store(work + count + code, scales.to(tl.float32), mask=code < count)
        # float32 holds neither very small lengths nor what they scale to: as if infinitely long, which is not safe
        fits = (lengths == 0) | ((lengths > 1e-30) & (lengths < 1e30))
        lengths = tl.where(lengths > 0, tl.where(fits, 1.0, float("inf")), 0.0).to(tl.float64)
    extremes = wide + count + tl.program_id(0)
    tl.store(extremes, tl.max(tl.where(usable, lengths, 0.0)))
    tl.store(extremes + blocks, tl.min(tl.where(usable, lengths, float("inf"))))


@triton.jit
def _upper(x):
    """Float32 rounded to the 10 bits of mantissa that tensor cores read."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _add_products(scores, x, codes, PRECISION: tl.constexpr):
    if PRECISION == "tf32x3":
        x_upper, codes_upper = _upper(x), _upper(codes)
        scores = tl.dot(x - x_upper, codes_upper, scores, input_precision="tf32")
        scores = tl.dot(x_upper, codes - codes_upper, scores, input_precision="tf32")
        scores = tl.dot(x_upper, codes_upper, scores, input_precision="tf32")
    else:
        scores = tl.dot(x, codes, scores, input_precision=PRECISION)
    return scores


@triton.jit
def _best_lanes(
    x, codes, work,
    rows, count, part, parts, x_row, x_column, code_row, code_column,
    DIM: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr, STRIP: tl.constexpr, PRECISION: tl.constexpr,
    COSINE: tl.constexpr,
):  # fmt: skip
    """For ROWS vectors, of codes [part * i, part * (i + 1)): the two lanes with the highest scores.

    Code k is in lane k % CODES. Of these lanes best score, its index and second best score; of the others the best.
    Scores of codes that are not finite are NaN or -infinity, and so never the larger of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, CODES)
    strip = tl.arange(0, STRIP)
    first = tl.program_id(1) * part
    end = tl.minimum(first + part, count)
    best = tl.full((ROWS, CODES), float("-inf"), tl.float32)
    second = tl.full((ROWS, CODES), float("-inf"), tl.float32)
    tile = tl.full((ROWS, CODES), first, tl.int32)
    vectors = x + row[:, None].to(tl.int64) * x_row
    row_fits = row[:, None] < rows
    if DIM <= STRIP:
        all_of_x = vectors + strip[None, :] * x_column
        resident = tl.load(all_of_x, mask=row_fits & (strip[None, :] < DIM), other=0.0).to(tl.float32)
    for start in range(first, end, CODES):
        code = start + lane
        code_fits = code[None, :] < end
        columns = codes + code[None, :].to(tl.int64) * code_row
        biases = tl.load(work + code, mask=code < end, other=float("-inf"))
        scores = tl.zeros((ROWS, CODES), tl.float32)
        if COSINE:
            scales = tl.load(work + count + code, mask=code < end, other=0.0)[None, :]
        for d in range(0, DIM, STRIP):
            some = d + strip
            places = columns + some[:, None] * code_column
            values = tl.load(places, mask=code_fits & (some[:, None] < DIM), other=0.0).to(tl.float32)
            if COSINE:
                values *= scales
            if DIM <= STRIP:
                scores = _add_products(scores, resident, values, PRECISION)
            else:
                some_of_x = vectors + some[None, :] * x_column
                left = tl.load(some_of_x, mask=row_fits & (some[None, :] < DIM), other=0.0).to(tl.float32)
                scores = _add_products(scores, left, values, PRECISION)
        scores += biases[None, :]
        higher = scores > best
        second = tl.where(higher, best, tl.maximum(second, scores))
        tile = tl.where(higher, start, tile)
        best = tl.where(higher, scores, best)
    code = tile + lane[None, :]
    lanes = 2 * parts * tl.full((), rows, tl.int64)  # of all vectors
    out = work + 2 * count + tl.program_id(1).to(tl.int64) * 2 * rows + row
    for _ in tl.static_range(2):
        highest = tl.max(best, axis=1)
        index = tl.min(tl.where(best == highest[:, None], code, 2147483647), axis=1)
        mine = code == index[:, None]
        lesser = tl.max(tl.where(mine, second, float("-inf")), axis=1)
        tl.store(out, highest, mask=row < rows)
        tl.store(out + lanes, lesser, mask=row < rows)
        tl.store(out + 2 * lanes, index.to(tl.float32, bitcast=True), mask=row < rows)
        out += rows
        best = tl.where(mine, float("-inf"), best)
        code = tl.where(mine, 2147483647, code)
    out = work + 2 * count + 3 * lanes + tl.program_id(1).to(tl.int64) * rows + row
    tl.store(out, tl.max(best, axis=1), mask=row < rows)


@triton.jit
def _decide(
    x, codes, wide, work, index_out,
    rows, count, dim, part, parts, blocks, x_row, x_column, code_row, code_column,
    rounding, tiny, rounding64,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, CODES: tl.constexpr,
    STRIP: tl.constexpr, EUCLIDEAN: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """Index of the nearest code of ROWS vectors, from the LANES lanes that `_best_lanes` has found for each."""
    rounding64 = tl.full((), 0.0, tl.float64) + rounding64  # 1 + it is not 1
    strip = tl.arange(0, STRIP)
    block = tl.arange(0, 256)
    highest_length = tl.zeros((256,), tl.float64)
    lowest_length = tl.full((256,), float("inf"), tl.float64)
    for b in range(0, blocks, 256):
        highest_length = tl.maximum(
            highest_length, tl.load(wide + count + b + block, mask=b + block < blocks, other=0.0)
        )
        some_lengths = tl.load(wide + count + blocks + b + block, mask=b + block < blocks, other=float("inf"))
        lowest_length = tl.minimum(lowest_length, some_lengths)

    numbers = tl.arange(0, ROWS)
    row = tl.program_id(0).to(tl.int64) * ROWS + numbers
    sums = tl.zeros((ROWS,), tl.float64)
    for d in range(0, dim, STRIP):
        some = d + strip
        places = x + row[:, None] * x_row + some[None, :] * x_column
        values = tl.load(places, mask=(row[:, None] < rows) & (some[None, :] < dim), other=0.0).to(tl.float64)
        sums += tl.sum(values * values, axis=1)
    finite = (sums < float("inf")) & (row < rows)
    length = tl.sqrt(tl.where(finite, sums, 0.0))

    # the least gap of two scores that tells which is larger: twice the bound of their rounding and underflow
    reach = tl.zeros((ROWS,), tl.float64) + tl.max(highest_length)
    if EUCLIDEAN:  # a longer code is farther away than the shortest one
        reach = tl.minimum(reach, 4 * length + 2 * tl.min(lowest_length))
        magnitude = length * reach + reach * reach / 2
    else:
        magnitude = length * reach
    margin = 2.1 * (magnitude * rounding + (1 + length + reach) * tiny)
    safe = magnitude + length + reach < 1e37  # no float32 overflows

    lane = tl.arange(0, LANES)
    size = 2 * parts * tl.full((), rows, tl.int64)  # of each of the outputs for lanes
    places = work + 2 * count + lane[None, :].to(tl.int64) * rows + row[:, None]
    fits = (lane[None, :] < 2 * parts) & (row[:, None] < rows)
    best = tl.load(places, mask=fits, other=float("-inf"))
    second = tl.load(places + size, mask=fits, other=float("-inf"))
    index = tl.load(places + 2 * size, mask=fits, other=0.0).to(tl.int32, bitcast=True)
    piece = tl.arange(0, PARTS)
    places = work + 2 * count + 3 * size + piece[None, :].to(tl.int64) * rows + row[:, None]
    rest = tl.load(places, mask=(piece[None, :] < parts) & (row[:, None] < rows), other=float("-inf"))
    highest = tl.max(best, axis=1)
    threshold = highest.to(tl.float64) - margin
    chosen = tl.min(tl.where(best == highest[:, None], index, 2147483647), axis=1)
    lanes = tl.sum((best.to(tl.float64) >= threshold[:, None]).to(tl.int32), axis=1)
    crowded = tl.max(second, axis=1).to(tl.float64) >= threshold
    every = ~(safe & (tl.max(rest, axis=1).to(tl.float64) < threshold))  # too many to tell which they are
    unclear = finite & (every | crowded | (lanes != 1))
    if tl.max(unclear.to(tl.int32)) > 0:
        for r in range(ROWS):
            mine = numbers == r
            if tl.max((unclear & mine).to(tl.int32)) > 0:
                found = _settle(
                    x + (tl.program_id(0).to(tl.int64) * ROWS + r) * x_row, codes, wide, work + 2 * count,
                    tl.program_id(0).to(tl.int64) * ROWS + r,
                    tl.sum(tl.where(mine, threshold, 0.0)), tl.sum(tl.where(mine, length, 0.0)),
                    tl.max((every & mine).to(tl.int32)), tl.max((crowded & mine).to(tl.int32)),
                    rows, count, dim, part, parts, x_column, code_row, code_column, rounding64,
                    WIDTH, CODES, STRIP, EUCLIDEAN, COSINE,
                )  # fmt: skip
                chosen = tl.where(mine, found, chosen)
    tl.store(index_out + row, tl.where(finite, chosen, 0).to(tl.int64), mask=row < rows)


@triton.jit
def _settle(
    vector, codes, wide, lanes, row, threshold, length, every, crowded,
    rows, count, dim, part, parts, x_column, code_row, code_column, rounding64,
    WIDTH: tl.constexpr, CODES: tl.constexpr, STRIP: tl.constexpr,
    EUCLIDEAN: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """Lowest index among the codes that float64 cannot tell from the nearest one of a vector.

    These are the codes whose score, within its rounding, may be the largest; with the Euclidean metric, only those of
    them whose distance, taken from the differences and thus precise where it is small, may be the least.
    """
    lane = tl.arange(0, WIDTH)
    size = 2 * parts * tl.full((), rows, tl.int64)
    places = lanes + lane.to(tl.int64) * rows + row
    fits = lane < 2 * parts
    best = tl.load(places, mask=fits, other=float("-inf"))
    second = tl.load(places + size, mask=fits, other=float("-inf"))
    index = tl.load(places + 2 * size, mask=fits, other=0.0).to(tl.int32, bitcast=True)
    active = fits & (best.to(tl.float64) >= threshold)
    whole = active & (second.to(tl.float64) >= threshold)  # all codes of the lane are in question
    first = lane // 2 * part
    start = tl.where(whole, first + (index - first) % CODES, index)
    end = tl.minimum(tl.where(whole, first + part, index + 1), count)
    steps = 1
    if crowded != 0:
        steps = part // CODES
    if every != 0:
        steps = (count + WIDTH - 1) // WIDTH
    step = CODES
    if every != 0:  # the codes are dealt out to the lanes
        step = WIDTH
        active = fits | (lane >= 0)
        start, end = lane, tl.zeros_like(lane) + count

    valid0, score0, slack0, distance0 = _scores(
        vector, codes, wide, start, active & (start < end), length, dim, x_column, code_row, code_column, rounding64,
        WIDTH, STRIP, EUCLIDEAN, COSINE,
    )  # fmt: skip
    least = tl.max(tl.where(valid0, score0 - slack0, float("-inf")))
    for j in range(1, steps):
        code = start + j * step
        inside = active & (code < end)
        valid, score, slack, _ = _scores(
            vector, codes, wide, code, inside, length, dim, x_column, code_row, code_column, rounding64,
            WIDTH, STRIP, EUCLIDEAN, COSINE,
        )  # fmt: skip
        least = tl.maximum(least, tl.max(tl.where(valid, score - slack, float("-inf"))))
    nearest = tl.min(tl.where(valid0 & (score0 + slack0 >= least), distance0, float("inf")))
    for j in range(1, steps):
        code = start + j * step
        inside = active & (code < end)
        valid, score, slack, distance = _scores(
            vector, codes, wide, code, inside, length, dim, x_column, code_row, code_column, rounding64,
            WIDTH, STRIP, EUCLIDEAN, COSINE,
        )  # fmt: skip
        nearest = tl.minimum(nearest, tl.min(tl.where(valid & (score + slack >= least), distance, float("inf"))))
    near = valid0 & (score0 + slack0 >= least) & (distance0 * (1 - rounding64) <= nearest * (1 + rounding64))
    found = tl.min(tl.where(near, start, 2147483647))
    for j in range(1, steps):
        code = start + j * step
        inside = active & (code < end)
        valid, score, slack, distance = _scores(
            vector, codes, wide, code, inside, length, dim, x_column, code_row, code_column, rounding64,
            WIDTH, STRIP, EUCLIDEAN, COSINE,
        )  # fmt: skip
        near = valid & (score + slack >= least) & (distance * (1 - rounding64) <= nearest * (1 + rounding64))
        found = tl.minimum(found, tl.min(tl.where(near, code, 2147483647)))
    return tl.where(found < count, found, 0)


@triton.jit
def _scores(
    vector, codes, wide, code, valid, length, dim, x_column, code_row, code_column, rounding64,
    WIDTH: tl.constexpr, STRIP: tl.constexpr, EUCLIDEAN: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """Of codes (WIDTH,): which are usable, scores, bounds of their rounding, and squared distances (0 if unneeded)."""
    strip = tl.arange(0, STRIP)
    lengths = tl.load(wide + code, mask=valid, other=-1.0)
    valid = valid & (lengths >= 0)
    score = tl.zeros((WIDTH,), tl.float64)
    distance = tl.zeros((WIDTH,), tl.float64)
    for d in range(0, dim, STRIP):
        some = d + strip
        x = tl.load(vector + some * x_column, mask=some < dim, other=0.0).to(tl.float64)
        places = codes + code[:, None].to(tl.int64) * code_row + some[None, :] * code_column
        values = tl.load(places, mask=valid[:, None] & (some[None, :] < dim), other=0.0).to(tl.float64)
        score += tl.sum(values * x[None, :], axis=1)
        if EUCLIDEAN:
            difference = values - x[None, :]
            distance += tl.sum(difference * difference, axis=1)
    known = tl.where(valid, lengths, 0.0)
    if EUCLIDEAN:
        score -= known / 2
        slack = rounding64 * (length * tl.sqrt(known) + known / 2)
    elif COSINE:
        score = tl.where(known > 0, score / tl.sqrt(tl.where(known > 0, known, 1.0)), 0.0)
        slack = tl.where(known > 0, rounding64 * length, 0.0)
    else:
        slack = rounding64 * length * tl.sqrt(known)
    return valid, score, slack, distance


def search(x: Tensor, codebook: Tensor, metric: str, tiles: Tiling | None = None) -> Tensor:
    """As `nearest_code`, for (N, D) and (K, D) with N, K, D >= 1 on one device, outside autocast."""
    x, codebook = _near(x), _near(codebook)
    rows, (count, dim) = len(x), codebook.shape
    tiles = tiles or tiling(dim)
    kind = {"EUCLIDEAN": metric == "euclidean", "COSINE": metric == "cosine"}
    row_programs = triton.cdiv(rows, tiles.rows)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    parts = min(triton.cdiv(tiles.programs * processors, row_programs), triton.cdiv(count, 4 * tiles.codes))
    part = triton.cdiv(triton.cdiv(count, parts), tiles.codes) * tiles.codes
    parts, blocks = triton.cdiv(count, part), triton.cdiv(count, _MEASURED)
    # few allocations, as each takes longer than the shorter kernels; the kernels find the parts in them
    wide = x.new_empty(count + 2 * blocks, dtype=torch.float64)  # squared lengths; longest; shortest
    work = x.new_empty(2 * count + 7 * parts * rows, dtype=torch.float32)  # biases; scales; lanes; the rest
    indices = x.new_empty(rows, dtype=torch.int64)
    strides = *x.stride(), *codebook.stride()
    _measure[(blocks,)](
        codebook, wide, work, count, dim, blocks, *strides[2:],
        CODES=_MEASURED, STRIP=16 if dim <= 16 else 32, **kind, num_warps=4,
    )  # fmt: skip
    _best_lanes[(row_programs, parts)](
        x, codebook, work, rows, count, part, parts, *strides,
        DIM=dim, ROWS=tiles.rows, CODES=tiles.codes, STRIP=tiles.strip, PRECISION=tiles.precision,
        COSINE=kind["COSINE"], num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    lanes = triton.next_power_of_2(2 * parts)
    decided = max(1, min(16, _DECIDED // lanes))
    _decide[(triton.cdiv(rows, decided),)](
        x, codebook, wide, work, indices, rows, count, dim, part, parts, blocks, *strides,
        # of three products of shorter numbers; the tensor cores cut sums off where others round them
        2.0**-19 + (dim + 6) * 2.0**-22, (dim + 6) * 2.0**-126, 4 * dim**0.5 * 2.0**-52,
        ROWS=decided, LANES=lanes, PARTS=lanes // 2, WIDTH=max(64, lanes), CODES=tiles.codes,
        STRIP=16 if dim <= 16 else 32, **kind, num_warps=4,
    )  # fmt: skip
    return indices


def _near(matrix: Tensor) -> Tensor:
    """The matrix, copied where its columns lie so far apart that the kernels' offsets within a row would overflow."""
    return matrix if matrix.stride(1) * matrix.shape[1] < 2**31 else matrix.contiguous()


def check(device: torch.device) -> None:
    """Raise a RuntimeError unless the kernels compile and give the answers of the torch path on a small problem."""
    generator = torch.Generator().manual_seed(0)
    for dim in (9, 70):
        x, codes = (torch.randn(n, dim, generator=generator).to(device) for n in (37, 201))
        if not torch.equal(search(x, codes, "euclidean"), nearest_code_torch.search(x, codes, "euclidean")):
            raise RuntimeError(f"its answers are wrong on {device}")
