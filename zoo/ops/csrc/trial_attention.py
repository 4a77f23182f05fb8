"""Calls a freshly compiled library of attention once, in a process of its own, so that a crash is nobody else's.

Usage: python trial_attention.py LIBRARY. Exits with 0 where the answers are right.
"""

import ctypes
import math
import sys

HEADS, QUERIES, KEYS, WIDTH = 2, 7, 9, 5
OPEN, SCALE = 4, 0.4


class Part(ctypes.Structure):
    """As in the source."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("item", "head", "position")))


class Task(ctypes.Structure):
    """As in the source."""

    _fields_ = (
        *((name, Part) for name in ("q", "k", "v")),
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("items", "heads", "queries", "keys", "width", "block", "next", "failed")),
        ("open", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


def main(path: str) -> int:
    library = ctypes.CDLL(path)
    sizes = [HEADS * count * WIDTH for count in (QUERIES, KEYS, KEYS)]
    values = [[math.sin(7.0 * n + turn) for n in range(size)] for turn, size in enumerate(sizes)]
    arrays = [(ctypes.c_float * size)(*some) for size, some in zip(sizes, values)]
    y = (ctypes.c_float * sizes[0])()
    parts = [
        Part(ctypes.addressof(array), 0, count * WIDTH, WIDTH) for array, count in zip(arrays, (QUERIES, KEYS, KEYS))
    ]
    task = Task(*parts, ctypes.addressof(y), 1, HEADS, QUERIES, KEYS, WIDTH, 4, 0, 0, OPEN, SCALE)
    library.zoo_attention(ctypes.byref(task))
    q, k, v = values
    for head in range(HEADS):
        for query in range(QUERIES):
            row = q[(head * QUERIES + query) * WIDTH :][:WIDTH]
            weights = [
                math.exp(SCALE * sum(a * b for a, b in zip(row, k[(head * KEYS + key) * WIDTH :])))
                for key in range(max(OPEN, query + 1 + KEYS - QUERIES))
            ]
            for i in range(WIDTH):
                mixed = sum(weight * v[(head * KEYS + key) * WIDTH + i] for key, weight in enumerate(weights))
                got = y[(query * HEADS + head) * WIDTH + i]
                if abs(got - mixed / sum(weights)) > 1e-5:
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
