"""Processes of a distributed run, for tests."""

import gc
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

_PATIENCE = timedelta(seconds=60)  # of a process that waits for one which left the common path


def run_ranks(work: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Run `work(rank, *arguments)`, an importable function, in so many processes of one gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (count, f"file://{folder}/store", work, arguments), nprocs=count)


def _rank(rank: int, count: int, store: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store, timeout=_PATIENCE, rank=rank, world_size=count)
    work(rank, *arguments)
    torch.distributed.barrier()  # a process that ends early breaks the connection of the others
    torch.distributed.destroy_process_group()
    gc.collect()  # a graph that holds the group keeps its threads, and these must not outlive the interpreter
