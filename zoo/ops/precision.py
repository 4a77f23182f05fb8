"""Where a computation keeps its own precision, whatever autocast says outside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of x: what is computed in it has the types of its operands.

    On the meta device, where shapes alone are computed, there is no autocast, and nothing to switch off.
    """
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
