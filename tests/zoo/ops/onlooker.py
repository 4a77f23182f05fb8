"""A mode that sees which functions of torch are called."""

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class Onlooker(TorchFunctionMode):
    """`seen`: the functions, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Callable[..., Any]] = []

    def __torch_function__(  # type: ignore[no-untyped-def]
        self, func: Callable[..., Any], types, args=(), kwargs=None
    ) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))
