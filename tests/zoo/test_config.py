"""Configs: validation on construction, and a strict JSON round trip."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.config import Config, ConfigError


class Shape(Config):
    """A base without a kind: stands for all its subclasses."""


@dataclass(frozen=True)
class Circle(Shape):
    kind = "circle"
    radius: float = 1.0

    def __post_init__(self) -> None:
        self.require(self.radius > 0, "a radius > 0", self.radius)


@dataclass(frozen=True)
class Square(Shape):
    kind = "square"
    side: int = 1


@dataclass(frozen=True)
class Nested(Shape):
    kind = "nested"
    inner: Shape = Circle()


@dataclass(frozen=True)
class Plain(Config):
    width: int = 3


@dataclass(frozen=True)
class Everything(Config):
    name: str
    count: int = 1
    share: float = 0.5
    on: bool = False
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    rows: tuple[tuple[float, ...], ...] = ((1.0,), (2.0, 3.0))
    mode: Literal["fast", "exact"] = "fast"
    either: Circle | Square = Circle()
    any_shape: Shape = Square()
    shapes: tuple[Shape, ...] = ()
    maybe: int | None = None
    maybe_shape: Shape | None = None
    plain: Plain = Plain()


shape = st.recursive(
    st.one_of(
        st.floats(1e-3, 1e3).map(Circle),
        st.integers().map(Square),
    ),
    lambda inner: inner.map(Nested),
    max_leaves=3,
)


@given(
    st.builds(
        Everything,
        name=st.text(),
        count=st.integers(),
        share=st.floats(allow_nan=False, allow_infinity=False),
        on=st.booleans(),
        sizes=st.lists(st.integers()).map(tuple),
        mode=st.sampled_from(["fast", "exact"]),
        any_shape=shape,
        shapes=st.lists(shape, max_size=3).map(tuple),
        maybe=st.none() | st.integers(),
        maybe_shape=st.none() | shape,
    )
)
def test_json_gives_back_an_equal_config(config: Everything) -> None:
    again = Everything.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert type(again.any_shape) is type(config.any_shape)
    assert again.to_dict() == config.to_dict()


@given(st.integers(1, 3), st.sampled_from([Circle(), Circle(2.0), Nested(Circle(3.0))]))
def test_stated_fields_give_back_an_equal_config_and_leave_out_defaults(count: int, shape: Shape) -> None:
    config = Everything("a", count=count, any_shape=shape, shapes=(shape,))
    assert Everything.from_dict(json.loads(json.dumps(config.stated()))) == config
    assert ("count" in config.stated()) == (count != 1)
    assert Everything("a").stated() == {"name": "a"}
    assert Nested().stated() == {"kind": "nested"}


def test_kind_tells_configs_apart() -> None:
    assert Everything.from_dict({"name": "a", "either": {"kind": "square", "side": 4}}).either == Square(4)
    assert Everything.from_dict(
        {"name": "a", "any_shape": {"kind": "nested", "inner": {"kind": "square"}}}
    ) == Everything("a", any_shape=Nested(Square()))
    assert Plain(4).to_dict() == {"width": 4}


@dataclass(frozen=True)
class Either(Config):
    either: Plain | Circle = Plain()


def test_a_member_of_a_union_without_a_kind_is_meant_where_none_is_stated() -> None:
    assert Either.from_dict({"either": {"width": 4}}) == Either(Plain(4))
    assert Either.from_dict({"either": {"kind": "circle"}}) == Either(Circle())
    for config in (Either(Plain(4)), Either(Circle(2.0))):
        assert Either.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match=r"either: expected kind circle or none, got 'square'"):
        Either.from_dict({"either": {"kind": "square"}})


def test_numbers_and_lists_are_read_as_the_field_states() -> None:
    read = Everything.from_dict({"name": "a", "share": 1, "sizes": [3], "rows": [[1], [2, 3]]})
    assert type(read.share) is float
    assert read.sizes == (3,)
    assert read.rows == ((1.0,), (2.0, 3.0))


def test_replace_takes_plain_values_and_configs() -> None:
    config = Everything("a")
    assert config.replace(sizes=[7], plain={"width": 5}) == Everything("a", sizes=(7,), plain=Plain(5))
    assert config.replace(any_shape=Circle(2.0)).any_shape == Circle(2.0)
    assert config == Everything("a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "Everything needs name"),
        ({"name": "a", "nam": 1, "zeta": 2}, "Everything has no field nam, zeta; its fields are name, count"),
        ({"name": 1}, r"Everything.name: expected str, got 1 \(int\)"),
        ({"name": "a", "count": 1.5}, r"Everything.count: expected int, got 1.5 \(float\)"),
        ({"name": "a", "count": True}, r"Everything.count: expected int, got True \(bool\)"),
        ({"name": "a", "on": 1}, r"Everything.on: expected bool, got 1"),
        ({"name": "a", "share": "much"}, r"Everything.share: expected float, got 'much'"),
        ({"name": "a", "sizes": 3}, "Everything.sizes: expected a list, got 3"),
        ({"name": "a", "sizes": [1, "b"]}, r"Everything.sizes\[1\]: expected int, got 'b'"),
        ({"name": "a", "pair": [1]}, "Everything.pair: expected 2 values, got 1"),
        ({"name": "a", "mode": "slow"}, "Everything.mode: expected one of 'fast', 'exact', got 'slow'"),
        ({"name": "a", "maybe": "b"}, "Everything.maybe: expected NoneType or int, got 'b'"),
        (
            {"name": "a", "either": {"kind": "nested"}},
            "Everything.either: expected kind circle or square, got 'nested'",
        ),
        (
            {"name": "a", "any_shape": {"kind": "oval"}},
            "any_shape: expected kind circle or nested or square, got 'oval'",
        ),
        ({"name": "a", "any_shape": {"side": 1}}, "any_shape: expected kind circle or nested or square, got None"),
        ({"name": "a", "any_shape": Plain()}, "Everything.any_shape: expected Shape, got Plain"),
        ({"name": "a", "either": {"kind": "circle", "radius": 0}}, "Circle: expected a radius > 0, got 0.0"),
        ({"name": "a", "plain": {"height": 1}}, "Plain has no field height; its fields are width"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Everything.from_dict(values)


def test_a_config_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="Circle: expected kind 'circle'"):
        Circle.from_dict({"kind": "square"})


def test_validation_runs_on_construction() -> None:
    with pytest.raises(ConfigError, match="expected a radius > 0, got -1"):
        Circle(-1)
    with pytest.raises(AttributeError):
        Circle().radius = 2.0  # type: ignore[misc]
