"""HasConstants: buffers that a module computes from its config, right wherever the module goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn


class HasConstants(nn.Module):
    """Base of modules with constants: windows, filters, masks, numbers of levels.

    A constant is no weight: `state_dict` leaves it out, and it is made anew when `to`, `to_empty`, `half` and the like
    put another tensor in its place. So it is there after a start on the meta device, and never rounded twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[str, Callable[[], Tensor]] = {}

    def register_constant(self, name: str, make: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
        """Add the buffer `name` that `make(*args, **kwargs)` gives, an importable function, so that modules pickle."""
        self._constants[name] = partial(make, *args, **kwargs)
        self.register_buffer(name, self._made(name).to(torch.get_default_device()), persistent=False)

    def make_absent_constants(self, device: torch.device) -> None:
        """Make those that lie on the meta device."""
        for name in self._constants:
            if self._buffers[name].is_meta:  # type: ignore[union-attr]
                self._buffers[name] = self._made(name).to(device)

    def _made(self, name: str) -> Tensor:
        with torch.device("cpu"), torch.inference_mode(False):
            return self._constants[name]()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self._buffers[name] for name in self._constants}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if new is not old and not new.is_meta:  # type: ignore[union-attr]
                new.copy_(self._made(name))  # type: ignore[union-attr]
        return self


def per_channel(values: Sequence[float]) -> Tensor:
    """Values of the channels of images: (C, 1, 1)."""
    return torch.tensor(values)[:, None, None]


def hann_taper(length: int) -> Tensor:
    """`torch.hann_window` rounded once, from float64."""
    return torch.hann_window(length, dtype=torch.float64).float()
