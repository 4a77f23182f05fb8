"""Functions of compiled kernels in the threads of torch."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def run(action: Callable[..., Any], task: ctypes.Structure, *, shared: bool) -> None:
    """Calls `action` with the address of the task: once, or, where it is `shared`, in each of torch's threads."""
    threads = torch.get_num_threads()
    team = _team() if shared and threads > 1 else None
    if team is None:
        action(ctypes.byref(task))
    else:
        team(action, ctypes.byref(task), ctypes.c_uint(threads), ctypes.c_uint(0))


@functools.cache
def _team() -> Callable[..., None] | None:
    """Runs a function in the threads of torch's OpenMP: others would fight for the processor with those, which wait in
    a loop. None where torch has another library of threads; then kernels run in one.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel
    except (OSError, AttributeError):
        return None
