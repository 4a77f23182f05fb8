"""Calls a freshly compiled library of `entropy_floor` once, in a process of its own, so that a crash is nobody else's.

Usage: python trial_entropy_floor.py LIBRARY. Exits with 0 where the sum is right.
"""

import ctypes
import math
import sys

LOWS, HIGHS, TOKENS, FLOOR = 2, 3, 37, 0.2


def main(path: str) -> int:
    library = ctypes.CDLL(path)
    tables = [[(n % 7 + 1) / 9 for n in range(count * TOKENS)] for count in (LOWS, HIGHS)]
    pairs = ((tables[0][i * TOKENS + n], tables[1][j * TOKENS + n])
             for i in range(LOWS) for j in range(HIGHS) for n in range(TOKENS))  # fmt: skip
    expected = sum(a * b * math.log(a * b / FLOOR) for a, b in pairs if a * b < FLOOR)
    for float64, kind in enumerate((ctypes.c_float, ctypes.c_double)):
        values = [(kind * len(table))(*table) for table in tables]
        logarithms = [(kind * len(table))(*map(math.log, table)) for table in tables]
        derivatives = [(kind * len(table))() for table in tables]
        added = ctypes.c_double()
        failed = library.zoo_entropy_floor(
            *values, *logarithms, *map(ctypes.c_int64, (LOWS, HIGHS, 1, TOKENS)), ctypes.c_double(FLOOR),
            ctypes.c_int32(float64), *derivatives, ctypes.byref(added),
        )  # fmt: skip
        if failed or abs(added.value - expected) > 1e-4:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
