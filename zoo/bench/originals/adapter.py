"""How the original code of a family is run from a checkout that the user names: what to import, and how to call it.

Nothing of an original is part of this project: an adapter imports the checkout's own module and calls it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

PACKAGES = {
    "PIL": "Pillow",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "PyYAML",
}


class Fields(dict[str, Any]):
    """A config whose fields are read as attributes and as entries."""

    __getattr__ = dict.__getitem__


@dataclass(frozen=True)
class Original:
    """A model that the original's code built, with random weights, in evaluation mode, on the CPU.

    Attributes:
        module: holds the weights under their published names.
        encode: signals (B, C, ...) in the value range of our model, and the options of the setting -> indices in the
            form of `Tokens.indices`.
        decode: such indices, and by name their conditions and the setting's options of decoding -> signals (B, C, ...).
        conditions: indices -> what both sides' decoding takes beside them, under the names of our `decode`, the same
            each time: features of text, say.
    """

    module: nn.Module
    encode: Callable[..., Tensor]
    decode: Callable[..., Tensor]
    conditions: Callable[[Tensor], Mapping[str, Any]] = lambda indices: {}


@dataclass(frozen=True)
class Setting:
    """What is measured of one model.

    Attributes:
        model: our name of it.
        batch: signals at once.
        size: of a signal: (height, width) or (samples,).
        options: of encoding, on both sides: {"num_codebooks": 8}, say.
        decoding: options of decoding, on both sides: {"steps": 4}, say.
    """

    model: str
    batch: int
    size: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """An original's repository, and how to build a model with its code.

    Attributes:
        repository: where it comes from.
        module: that `build` imports, from the root of a checkout or of what pip installed; its file tells a checkout.
        settings: what is measured; the first one, a single signal of it, in quick runs.
        build: our name of a model -> the original's, at its published size. It imports by `importlib.import_module`
            while the checkout comes first among the places where modules are looked for.
        faster: device -> how many times as fast as the original ours should be, in float32.
    """

    repository: str
    module: str
    settings: tuple[Setting, ...]
    build: Callable[[str], Original]
    faster: Mapping[str, float]

    def load(self, checkout: Path, model: str) -> Original:
        """The original of our `model`, run from a checkout.

        Raises:
            ValueError: a path that is no checkout of it, or libraries that its code needs and that are not installed.
        """
        parts = self.module.split(".")
        places = [checkout.joinpath(*parts).with_suffix(".py"), checkout.joinpath(*parts, "__init__.py")]
        if not any(place.is_file() for place in places):
            raise ValueError(f"{checkout}: expected a checkout of {self.repository}, with {'/'.join(parts)} in it")
        with _first(checkout):
            try:
                return self.build(model)
            except ModuleNotFoundError as error:
                missing = (error.name or "").partition(".")[0]
                raise ValueError(
                    f"{self.repository} needs {error.name}, which is not installed: "
                    f"pip install {PACKAGES.get(missing, missing)}"
                ) from error
            except ImportError as error:
                raise ValueError(f"{self.repository} cannot use the installed libraries: {error}") from error


@contextlib.contextmanager
def _first(checkout: Path) -> Iterator[None]:
    """Modules are looked for in a folder first, and files from there; afterwards its modules are forgotten by name, and
    ours, whose names it may have too, are back. What pip installed there or elsewhere stays.
    """
    root, path = checkout.resolve(), list(sys.path)
    provided = {place.stem for place in root.iterdir()}
    hidden = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in provided and not _installed(module)
    }
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        with contextlib.chdir(root):
            importlib.invalidate_caches()
            yield
    finally:
        sys.path[:] = path
        loaded = list(sys.modules.items())
        for name in [name for name, module in loaded if _lies_in(module, root) and not _installed(module)]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _places(module: ModuleType) -> list[Path]:
    spec = getattr(module, "__spec__", None)
    if not isinstance(spec, ModuleSpec):
        return []
    places = [*([spec.origin] if spec.has_location and spec.origin else []), *(spec.submodule_search_locations or [])]
    return [Path(place).resolve() for place in places]


def _lies_in(module: ModuleType, root: Path) -> bool:
    return any(place.is_relative_to(root) for place in _places(module))


def _installed(module: ModuleType) -> bool:
    """By pip, or with Python."""
    places = _places(module)
    return not places or any(
        {"site-packages", "dist-packages"} & set(place.parts) or place.is_relative_to(Path(os.__file__).parent)
        for place in places
    )
