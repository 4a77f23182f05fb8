"""The originals that `zoo bench CASE --original NAME=PATH` can compare with, each run from a checkout of its code."""

from __future__ import annotations

import dataclasses
import difflib

from zoo.bench.originals import audio, image, one_dimension, titok
from zoo.bench.originals.adapter import Adapter

ADAPTERS: dict[str, Adapter] = {**image.ADAPTERS, **titok.ADAPTERS, **one_dimension.ADAPTERS, **audio.ADAPTERS}


def find(name: str) -> Adapter:
    """The adapter of that name, or, by the name of one of its models, the adapter with that setting alone.

    Raises:
        ValueError: no such name; the message tells the nearest.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    for adapter in ADAPTERS.values():
        settings = tuple(setting for setting in adapter.settings if setting.model.partition(".")[0] == name)
        if settings:
            return dataclasses.replace(adapter, settings=settings)
    models = [setting.model.partition(".")[0] for adapter in ADAPTERS.values() for setting in adapter.settings]
    near = difflib.get_close_matches(name, [*ADAPTERS, *models], n=3, cutoff=0.4) or list(ADAPTERS)
    raise ValueError(f"--original: unknown name {name!r}; nearest names: {', '.join(near)}")
