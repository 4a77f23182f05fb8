"""Models of other libraries as models of the zoo, and back."""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["diffusers", "from_diffusers", "to_diffusers"]


def __getattr__(name: str) -> Any:
    if name in ("from_diffusers", "to_diffusers"):
        return getattr(importlib.import_module("zoo.interop.diffusers"), name)
    if name == "diffusers":
        return importlib.import_module("zoo.interop.diffusers")
    raise AttributeError(f"module 'zoo.interop' has no attribute {name!r}")


if TYPE_CHECKING:
    from zoo.interop import diffusers
    from zoo.interop.diffusers import from_diffusers, to_diffusers
