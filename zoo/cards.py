"""ModelCard: what is known of each published model, read from `weights/manifest/*.yaml` without importing torch."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from zoo.hub import WeightSource

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


class CardError(ValueError):
    """A manifest that cannot be read; the message names the file and the entry."""


@dataclass(frozen=True)
class Metric:
    """A published or measured number, with the protocol that gives it a meaning."""

    name: str
    value: float
    protocol: str


@dataclass(frozen=True)
class ModelCard:
    """One model of the zoo.

    Attributes:
        name, tag: together the full name `name.tag`; the first tag of a name in its manifest is the name's default.
        family, module: the family's registered name and the python module that defines it.
        modality, layout, quantizer: for searching ("image", "grid", "vector", ...).
        config: fields of the family's config.
        source: where the weights lie; None for a model that was never published.
        container: under which key the file holds the state dict (dotted, or several to try); a mapping from the keys
            of its parts to the prefixes of their names; None: the file is it.
        prefix: prefix of the published names, taken off before the key map.
        key_map: name of the key map in the family's module; of several the first that covers the file.
        part: "encoder" or "decoder" where the file holds only that.
        sizes: "config", or "file" where that is an assumption: then the shapes of the weights tell the sizes (by the
            family's `sizes_from_tensors`).
        licence, non_commercial, gated: of the weights.
        paper, code: references.
        metrics: published numbers.
        notes: what a user should know.
    """

    name: str
    tag: str
    family: str
    module: str
    modality: str
    layout: str
    quantizer: str
    config: Mapping[str, Any]
    source: WeightSource | None = None
    container: str | tuple[str | None, ...] | Mapping[str, str] | None = None
    prefix: str = ""
    key_map: str | tuple[str, ...] = "KEY_MAP"
    part: str | None = None
    sizes: str = "config"
    licence: str = "unknown"
    non_commercial: bool = False
    gated: bool = False
    paper: str = ""
    code: str = ""
    metrics: tuple[Metric, ...] = ()
    checked_by: str = ""
    notes: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sizes not in ("config", "file"):
            raise ValueError(f'expected sizes "config" or "file", got {self.sizes!r}')

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.tag}"

    @property
    def key_maps(self) -> tuple[str, ...]:
        """Names of the key maps, in the order in which they are tried."""
        return (self.key_map,) if isinstance(self.key_map, str) else self.key_map

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"full_name": self.full_name, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Manifest:
    """One manifest file: a family's module, its models, and the `family` names of the parity fixtures that check it.

    `parity` names a module with `case(fixture, family)` where the fixtures hold checks of kinds of their own.
    """

    family: str
    module: str
    fixtures: tuple[str, ...]
    parity: str | None
    cards: tuple[ModelCard, ...]


_HEADER = {"modality", "layout", "paper", "code", "licence", "non_commercial", "gated", "checked_by", "container"}


def read_manifest(path: Path) -> Manifest:
    """Read one manifest.

    Raises:
        CardError: a file that is no manifest, an unknown field, or a missing one.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        models = content.pop("models")
        family, module = content.pop("family"), content.pop("module")
        fixtures, parity = tuple(content.pop("fixtures", [family])), content.pop("parity", None)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, AttributeError, TypeError) as error:
        raise CardError(f"{path}: expected a manifest with family, module and models ({error!r})") from error
    if unknown := sorted(set(content) - _HEADER):
        raise CardError(f"{path}: unknown fields {', '.join(unknown)}; known are {', '.join(sorted(_HEADER))}")
    shared = {"family": family, "module": module, **content}
    return Manifest(family, module, fixtures, parity, tuple(_card({**shared, **model}, path) for model in models))


def _card(values: dict[str, Any], path: Path) -> ModelCard:
    try:
        if values.get("source") is not None:
            source = dict(values["source"])
            if source.get("path"):  # written relative to the weights folder
                source["path"] = str(path.parent.parent / source["path"])
            values["source"] = WeightSource(**source)
        values["metrics"] = tuple(Metric(**metric) for metric in values.get("metrics", ()))
        values["aliases"] = tuple(values.get("aliases", ()))
        for name in ("container", "key_map"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return ModelCard(**values)
    except (TypeError, ValueError) as error:
        raise CardError(f"{path}: {values.get('name')}: {error}") from error


@cache
def manifests(folder: Path = WEIGHTS / "manifest") -> tuple[Manifest, ...]:
    """All manifests of a folder, in the order of their file names."""
    return tuple(read_manifest(path) for path in sorted(folder.glob("*.yaml")))


def all_cards() -> list[ModelCard]:
    """Every card of the installed manifests."""
    return [card for manifest in manifests() for card in manifest.cards]


def select(
    cards: Iterable[ModelCard],
    pattern: str = "*",
    *,
    modality: str | None = None,
    quantizer: str | None = None,
    layout: str | None = None,
    licence: str | None = None,
    pretrained: bool | None = None,
) -> list[ModelCard]:
    """Cards whose name or family matches a glob and whose facts match the filters (licence: a part of its text)."""
    return [
        card
        for card in cards
        if any(fnmatch.fnmatch(text, pattern) for text in (card.full_name, card.name, card.family, *card.aliases))
        and modality in (None, card.modality)
        and quantizer in (None, card.quantizer)
        and layout in (None, card.layout)
        and (licence is None or licence.lower() in card.licence.lower())
        and pretrained in (None, card.source is not None)
    ]
