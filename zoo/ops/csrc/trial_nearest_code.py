"""Calls a freshly compiled library once, in a process of its own, so that a crash of it is nobody else's.

Usage: python trial_nearest_code.py LIBRARY. Exits with 0 where the answers are right: vector n lies beside code n.
"""

import ctypes
import sys

ROWS, COUNT, DIM, THREADS = 70, 200, 19, 2


def main(path: str) -> int:
    library = ctypes.CDLL(path)
    values = [k if d == k % DIM else 0 for k in range(COUNT) for d in range(DIM)]
    for float64, kind in enumerate((ctypes.c_float, ctypes.c_double)):
        codes = (kind * (COUNT * DIM))(*values)
        vectors = (kind * (ROWS * DIM))(*[value + 0.01 for value in values[: ROWS * DIM]])
        indices = (ctypes.c_int64 * ROWS)()
        failed = library.zoo_residual_codes(
            vectors, *map(ctypes.c_int64, (ROWS, DIM, 1)), ctypes.c_int32(float64),
            (ctypes.c_void_p * 1)(ctypes.addressof(codes)), (ctypes.c_int64 * 1)(COUNT),
            *map(ctypes.c_int64, (1, DIM)), ctypes.c_int32(0), ctypes.c_int64(THREADS), indices,
        )  # fmt: skip
        if failed or list(indices) != list(range(ROWS)):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
