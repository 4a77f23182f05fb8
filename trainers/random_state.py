"""The state of all random generators, per process, as plain values and tensors that a checkpoint holds safely."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
import torch.distributed

from zoo.ops.collective import from_all_ranks, world_size

logger = logging.getLogger("zoo")


def random_state(device: torch.device) -> list[dict[str, Any]]:
    """The state of every process, in the order of ranks; all processes call it. `device` is that of this process."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the generator that libraries draw from
    own: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    return from_all_ranks(own)


def set_random_state(states: list[dict[str, Any]], device: torch.device) -> None:
    """Continue from the state that `random_state` gave. With another number of processes nothing is set, and told."""
    if len(states) != world_size():
        logger.warning("random state: saved by %d processes, now there are %d; it is new", len(states), world_size())
        return
    state = states[torch.distributed.get_rank() if world_size() > 1 else 0]
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
