"""The machine's memory: how much of it is free, and giving back what the allocator keeps."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path


def free_memory() -> int | None:
    """Bytes that new work can take; None where the system does not tell (it is Linux that does)."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def return_free_memory() -> None:
    """Give the system what the allocator keeps of freed memory, where it can: what several threads make and drop leaves
    gaps, which otherwise grow for as long as a job runs.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # of C libraries other than glibc
        ctypes.CDLL(None).malloc_trim(0)
