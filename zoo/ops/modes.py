"""Whether somebody looks on at the functions of torch that are called."""

from __future__ import annotations

import torch
from torch.utils._device import DeviceContext


def is_watched() -> bool:
    """Whether a mode wants to see each function as torch's own (as `zoo.tiling` does); a default device does not."""
    return any(not isinstance(mode, DeviceContext) for mode in torch.overrides._get_current_function_mode_stack())
