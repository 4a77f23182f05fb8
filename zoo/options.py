"""The options of `encode` and `decode`: which of them a model takes, and their values as Python's own numbers."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def chosen(verb: str, model: str, takes: frozenset[str], **options: Any) -> dict[str, Any]:
    """The options that were given.

    Args:
        verb: "encode" or "decode", and `model`, whose: for messages.
        takes: names of those that the model takes.
        options: by name, None where none was given. Numbers of NumPy and torch are taken as Python's, tuples as lists.

    Raises:
        ValueError: an option that the model does not take, or a value of another kind than that option's.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if refused := sorted(set(given) - takes):
        known = f"it takes {', '.join(sorted(takes))}" if takes else "it takes no options"
        raise ValueError(f"{verb} of {model} does not take {', '.join(refused)}; {known}")
    return {name: _checked(name, value) for name, value in given.items()}


def codebooks(count: int | None, most: int) -> int:
    """How many codebooks, None standing for all of them.

    Raises:
        ValueError: another number than 1 to `most`.
    """
    if count is None:
        return most
    count = _checked("num_codebooks", count)
    if not 1 <= count <= most:
        raise ValueError(f"num_codebooks: expected 1 to {most}, got {count}")
    return count


def plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's, their arrays, and tuples, as lists; all else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _checked(name: str, value: Any) -> Any:
    if name == "text":
        return value
    if name == "noise":
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"noise: expected a floating point tensor, got {got}")
        if not bool(value.isfinite().all()):
            least, largest = (bound.item() for bound in value.aminmax())
            raise ValueError(f"noise: expected finite values, got {least:.4g} to {largest:.4g}")
        return value
    number = plain(value)
    if name in ("steps", "num_codebooks") and not _whole(number):
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if name == "seed" and not all(map(_seed, number if isinstance(number, list) else [number])):
        raise ValueError(f"seed: expected an integer of 64 bits, or one for each item, got {value!r}")
    if name in ("quality", "bitrate", "guidance_scale") and not _finite(number):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number  # numbers of tokens are for `token_counts`, which knows the model's


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seed(value: Any) -> bool:
    return _whole(value) and -(1 << 63) <= value < 1 << 64


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
