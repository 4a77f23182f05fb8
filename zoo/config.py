"""Config: the frozen dataclasses that describe models, with a strict JSON round trip."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, Union, get_args, get_origin


class ConfigError(ValueError):
    """A config value or field name that does not fit; the message says expected and got."""


class Config:
    """Base of all configs: subclass it with `@dataclass(frozen=True)`.

    Fields are plain values, tuples, or further configs. Configs that can stand in for each other in one field (the
    quantizers, say) are told apart by their `kind`, a class attribute: the field's type is their union, or a common
    base without a kind, which stands for all its subclasses. One member of a union may have no kind: it is meant where
    values state none.
    """

    kind: typing.ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes and `from_dict` reads back to an equal config."""
        fields = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind, **fields} if self.kind else fields

    def stated(self) -> dict[str, Any]:
        """As `to_dict`, without the fields that have their default: equal across versions that add fields."""
        fields = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]  # type: ignore[arg-type]
        stated = {field.name: _plain(getattr(self, field.name), Config.stated) for field in fields}
        return {"kind": self.kind, **stated} if self.kind else stated

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the config from plain values.

        Raises:
            ConfigError: an unknown or missing field, or a value of the wrong type.
        """
        values = dict(values)
        if cls.kind and values.pop("kind", cls.kind) != cls.kind:
            raise ConfigError(f"{cls.__name__}: expected kind {cls.kind!r}")
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - set(fields)):
            raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}; its fields are {', '.join(fields)}")
        missing = [
            name
            for name, field in fields.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}")
        return cls(**{name: _read(value, hints[name], f"{cls.__name__}.{name}") for name, value in values.items()})

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; the values may be plain, as in `from_dict`."""
        return type(self).from_dict({**self.to_dict(), **{name: _plain(value) for name, value in changes.items()}})

    def require(self, holds: bool, expected: str, got: object) -> None:
        """Raise a ConfigError unless `holds`; for validation in `__post_init__`."""
        if not holds:
            raise ConfigError(f"{type(self).__name__}: expected {expected}, got {got!r}")


def require_arguments(stated: Mapping[str, Any], fixed: Mapping[str, Any], of: str) -> None:
    """Raise a ConfigError where an original's constructor arguments are other than those that are built here.

    Args:
        stated: the arguments; those that are left out fit.
        fixed: name -> the only value.
        of: what has these values: "Mimi's network".
    """
    if other := {name: stated[name] for name, value in fixed.items() if stated.get(name, value) != value}:
        raise ConfigError(f"expected {of}, {dict(fixed)}, got {other}")


def _plain(value: Any, of_config: Callable[[Config], dict[str, Any]] = Config.to_dict) -> Any:
    if isinstance(value, Config):
        return of_config(value)
    if isinstance(value, tuple | list):
        return [_plain(item, of_config) for item in value]
    return value


def _read(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` states: int to float and list to tuple are converted, all else must fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{where}: expected {len(arguments)} values, got {len(value)}")
        return tuple(_read(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, arguments)))
    if isinstance(hint, type) and issubclass(hint, Config):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            members = _members(hint)
            return hint.from_dict(value) if members == [hint] else _read_union(value, tuple(members), where)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint in (int, bool, str, type(None)) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}: expected {expected}, got {value!r} ({type(value).__name__})")


def _members(hint: type[Config]) -> list[type[Config]]:
    """The config class itself or, of a base without a kind, all its subclasses that have one."""
    below = [member for subclass in hint.__subclasses__() for member in _members(subclass) if member.kind]
    return [hint] if hint.kind or not below else below


def _read_union(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    members: list[Any] = []
    for hint in hints:
        members += _members(hint) if isinstance(hint, type) and issubclass(hint, Config) else [hint]
    configs = {member.kind: member for member in members if isinstance(member, type) and issubclass(member, Config)}
    if isinstance(value, Config) and type(value) in configs.values():
        return value
    if isinstance(value, Mapping) and configs:
        if len(configs) == 1:
            return next(iter(configs.values())).from_dict(value)
        kind = value.get("kind", "")
        if kind not in configs:
            known = " or ".join(sorted(name or "none" for name in configs))
            raise ConfigError(f"{where}: expected kind {known}, got {value.get('kind')!r}")
        return configs[kind].from_dict(value)
    for member in members:
        if member not in configs.values():
            try:
                return _read(value, member, where)
            except ConfigError:
                continue
    expected = " or ".join(sorted(getattr(member, "__name__", str(member)) for member in members))
    raise ConfigError(f"{where}: expected {expected}, got {value!r} ({type(value).__name__})")
