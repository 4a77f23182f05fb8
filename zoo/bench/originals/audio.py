"""Originals of the audio families."""

from __future__ import annotations

from zoo.bench.originals.adapter import Adapter

ADAPTERS: dict[str, Adapter] = {}
