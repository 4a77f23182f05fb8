"""KeyMap: the names of a published checkpoint as a table from published to own names, read by `zoo.checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor

_PLACEHOLDER = re.compile(r"\{-?[A-Za-z]\w*\}|\{\}|\*")
WEIGHT_NORMS = (  # magnitude and direction, as torch names them before and since its parametrizations
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


class CheckpointError(ValueError):
    """A file that cannot be read, or whose tensors do not fit the model."""


@dataclass(frozen=True)
class KeyMap:
    """Published names -> own names, as a table that a reader can hold beside a checkpoint listing.

    A pattern is a published name in which `{}` or `{name}` stands for a number and `*` for any text of one character
    or more, dots included. Its value is the own name, or None for what is known and not needed. There `{}` and `*`
    repeat the left side's in order, `{name}` repeats by name, and `{-name}` counts from the other end: the largest
    number that any key of the file has at that place (after the same text) minus this one.
    A key takes the most specific pattern that matches it: the one with the most literal text, of equals the one that
    stands first.

    Args:
        patterns: the table.
        prefix: taken off the keys that have it, before all else ("module."). The others keep their names, so they
            are unexpected unless a pattern names them.
        weight_norm: fold `X.weight_g`, `X.weight_v` and `X.parametrizations.weight.original0/1` into `X.weight`.
        ema: prefix of an exponential moving average whose names have their dots removed ("model_ema."): it replaces
            the raw weights, and its counters are dropped. A weight without an average stays.
        transforms: glob over own names -> reshape of the tensor; the first that matches.
        finish: what no table says: the tensors under own names -> those of the model (parts to join, say).
    """

    patterns: Mapping[str, str | None]
    prefix: str = ""
    weight_norm: bool = False
    ema: str | None = None
    transforms: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def __call__(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames a published state dict; the values may lie on the meta device.

        Raises:
            CheckpointError: keys that no pattern covers, or two keys for one own name.
            ValueError: a pattern whose two sides do not have the same placeholders.
        """
        published = {key.removeprefix(self.prefix): value for key, value in state.items()}
        if len(published) < len(state):
            raise CheckpointError(f"expected one spelling of each key, got some both with and without {self.prefix!r}")
        if self.ema is not None:
            published = _averaged(published, self.ema)
        if self.weight_norm:
            published = _folded(published)
        largest: dict[str, int] = {}
        result: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        uncovered: list[str] = []
        for key, value in published.items():
            rule = self._rule(key)
            own = rule.rename(key, published, largest) if rule else None
            if rule is None:
                uncovered.append(key)
            elif own in origin:
                raise CheckpointError(f"the key map gives {own!r} to both {origin[own]!r} and {key!r}")
            elif own is not None:
                origin[own] = key
                change = next((change for glob, change in self.transforms.items() if fnmatchcase(own, glob)), None)
                result[own] = change(value) if change else value
        if uncovered:
            raise CheckpointError(
                f"{len(uncovered)} of {len(published)} keys are covered by no pattern of the key map:\n"
                + by_module(uncovered)
            )
        return self.finish(result) if self.finish else result

    def name(self, published: str, keys: Iterable[str]) -> str | None:
        """The own name of one published key; None where no pattern covers it or it is not needed.

        Args:
            published: the key, with or without the prefix.
            keys: all keys of its file, for `{-name}`.
        """
        key = published.removeprefix(self.prefix)
        rule = self._rule(key)
        return rule.rename(key, (other.removeprefix(self.prefix) for other in keys), {}) if rule else None

    def covered(self, keys: Iterable[str]) -> int:
        """How many of a file's keys some pattern covers."""
        return sum(self._rule(key.removeprefix(self.prefix)) is not None for key in keys)

    def _rule(self, key: str) -> _Rule | None:
        return next((rule for rule in self._rules if rule.regex.fullmatch(key)), None)

    @cached_property
    def _rules(self) -> list[_Rule]:
        specific_first = sorted(self.patterns.items(), key=lambda line: -len(_PLACEHOLDER.sub("", line[0])))
        return [_Rule.compile(*line) for line in specific_first]


@dataclass(frozen=True)
class _Rule:
    """One compiled line of a KeyMap."""

    regex: re.Pattern[str]
    literals: list[str] | None  # of the own name, with one group between each two; None: the key is not needed
    groups: list[str]

    @classmethod
    def compile(cls, published: str, own: str | None) -> _Rule:
        left, right = _groups(published), _groups(own or "")
        first, *others = _PLACEHOLDER.split(published)
        regex = re.escape(first)
        for group, literal in zip(left, others):
            again = f"(?P<{group}>" in regex
            any_text = ".+" if group.startswith("_tail") else "[0-9]+"
            regex += (f"(?P={group})" if again else f"(?P<{group}>{any_text})") + re.escape(literal)
        named = {group.removeprefix("-") for group in right}
        unnamed_left, unnamed_right = ({group for group in side if group.startswith("_")} for side in (left, named))
        if own is not None and (named - set(left) or unnamed_left != unnamed_right):
            raise ValueError(f"key map: expected the same placeholders on both sides, got {published!r} -> {own!r}")
        return cls(re.compile(regex), None if own is None else _PLACEHOLDER.split(own), right)

    def rename(self, key: str, keys: Iterable[str], largest: dict[str, int]) -> str | None:
        """`largest` is filled from `keys` when it is first needed."""
        match = self.regex.fullmatch(key)
        if match is None or self.literals is None:
            return None
        own = self.literals[0]
        for group, literal in zip(self.groups, self.literals[1:]):
            number = match[group.removeprefix("-")]
            if group.startswith("-"):
                largest = largest or _largest_numbers(keys, largest)
                number = str(largest[key[: match.start(group[1:])]] - int(number))
            own += number + literal
        return own


def _groups(text: str) -> list[str]:
    """A group name for each placeholder in turn; those without a name are numbered by their kind."""
    groups: list[str] = []
    for place in _PLACEHOLDER.findall(text):
        kind = {"*": "_tail", "{}": "_number"}.get(place)
        groups.append(f"{kind}{sum(group.startswith(kind) for group in groups)}" if kind else place[1:-1])
    return groups


def _largest_numbers(keys: Iterable[str], largest: dict[str, int]) -> dict[str, int]:
    """Fills in: text before a number in any key -> the largest number that follows it."""
    for key in keys:
        for number in re.finditer("[0-9]+", key):
            before = key[: number.start()]
            largest[before] = max(largest.get(before, 0), int(number[0]))
    return largest


def _averaged(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    averages = {key: value for key, value in state.items() if key.startswith(prefix)}
    result: dict[str, Tensor] = {}
    taken: dict[str, str] = {f"{prefix}decay": "", f"{prefix}num_updates": ""}
    for key, value in state.items():
        if key not in averages:
            average = prefix + key.replace(".", "")
            if average in averages and average in taken:
                raise CheckpointError(f"{average!r} could be the average of both {taken[average]!r} and {key!r}")
            taken[average] = key
            result[key] = averages.get(average, value)
    return result | {key: value for key, value in averages.items() if key not in taken}


def _folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm (arXiv 1602.07868): w = g * v / ||v||, the norm over the dimensions in which g has size 1."""
    result = dict(state)
    for norm, vector in WEIGHT_NORMS:
        for key in [key for key in result if f".{key}".endswith(f".{norm}")]:
            module = key.removesuffix(norm)
            if module + vector in result:
                result[f"{module}weight"] = weight_norm(result.pop(key), result.pop(module + vector))
    return result


def weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """The weight of magnitude g and direction v: g * v / ||v||, the norm over the dimensions in which g has size 1."""
    kept = next((dim for dim, size in enumerate(g.shape) if size > 1), 0 if g.ndim else -1)
    return torch._weight_norm(v, g, kept)


def by_module(lines: Iterable[str], shown: int = 3) -> str:
    """Lines that begin with a key, grouped by the first two levels of its path; the first few of each, and a count."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(".".join(line.partition(":")[0].split(".")[:2]), []).append(line)
    return "\n".join(
        f"    {module} ({len(group)}): " + ", ".join(group[:shown]) + (", ..." if len(group) > shown else "")
        for module, group in groups.items()
    )
