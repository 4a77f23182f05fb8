"""Prints what each search added to the resident memory of its process at its peak, in bytes. Not a test by itself."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from zoo.ops import nearest_code, residual_codes

SIZES = [(4096, 16384, 8), (4096, 16384, 32), (4096, 16384, 256), (65536, 1024, 8), (1000, 65536, 8)]


def resident(field: str) -> int:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def added(run: Callable[[], Tensor]) -> int:
    """Peak above what was there before, less the result."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = resident("VmRSS")
    result = run()
    return resident("VmHWM") - before - result.nbytes


def main() -> None:
    torch.set_num_threads(2)
    nearest_code(torch.randn(300, 40), torch.randn(600, 40))
    found = {"a tensor of 64 MiB": added(lambda: torch.ones(1 << 24)[:1].clone())}
    for rows, count, dim in SIZES:
        x, codebook = torch.randn(rows, dim), torch.randn(count, dim)
        found[f"N={rows} K={count} D={dim}"] = added(partial(nearest_code, x, codebook))
    x, codebook = torch.randn(4096, 32).half(), torch.randn(16384, 32).half()
    found["half"] = added(partial(nearest_code, x, codebook))
    x, codebooks = torch.randn(6000, 128), torch.randn(8, 1024, 128)
    found["residual"] = added(partial(residual_codes, x, codebooks))
    json.dump({"added": found, "compiled": os.environ["ZOO_COMPILED"]}, sys.stdout)


if __name__ == "__main__":
    main()
