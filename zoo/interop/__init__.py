"""Models of other libraries as models of the zoo, and back."""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["diffusers", "from_diffusers", "from_transformers", "to_diffusers", "to_transformers", "transformers"]


def __getattr__(name: str) -> Any:
    library = name.removeprefix("from_").removeprefix("to_")
    if name not in __all__:
        raise AttributeError(f"module 'zoo.interop' has no attribute {name!r}")
    module = importlib.import_module(f"zoo.interop.{library}")
    return module if name == library else getattr(module, name)


if TYPE_CHECKING:
    from zoo.interop import diffusers, transformers
    from zoo.interop.diffusers import from_diffusers, to_diffusers
    from zoo.interop.transformers import from_transformers, to_transformers
