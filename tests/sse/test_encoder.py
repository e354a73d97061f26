"""Events from values: which classes are recognised, their event names, and what JSON has no form for."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from pathlib import PurePosixPath
from typing import ClassVar, NamedTuple, TypedDict

import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors import Event, default_encoder


@pydantic.dataclasses.dataclass
class Validated:
    when: dt.datetime
    size: dt.timedelta = dt.timedelta(seconds=5)


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Inner:
    when: dt.datetime


@dataclasses.dataclass(slots=True)
class Outer:
    inner: Inner
    tags: frozenset[str] = frozenset()


class Model(pydantic.BaseModel):
    when: dt.datetime
    short: int = pydantic.Field(default=1, serialization_alias="s")


class Struct(msgspec.Struct):
    when: dt.datetime
    short: int = msgspec.field(default=1, name="s")


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict):
    a: int


class Renamed(pydantic.BaseModel):
    __event_name__: ClassVar[str] = "price"
    value: int = 1


class RenamedStruct(msgspec.Struct):
    __event_name__: ClassVar[str] = "price"
    value: int = 1


@dataclasses.dataclass
class Nameless:
    __event_name__: ClassVar[None] = None
    value: int = 1


class Sub(Renamed):
    pass


WHEN = dt.datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001  # the shortest form
ID = uuid.UUID(int=5)


@pytest.mark.parametrize(
    ("value", "name", "data"),
    [
        (Outer(Inner(WHEN)), "Outer", '{"inner":{"when":"2026-01-02T03:04:05"},"tags":[]}'),
        (Model(when=WHEN), "Model", '{"when":"2026-01-02T03:04:05","s":1}'),
        (Validated(WHEN), "Validated", '{"when":"2026-01-02T03:04:05","size":"PT5S"}'),
        (Struct(WHEN), "Struct", '{"when":"2026-01-02T03:04:05","s":1}'),
        (Renamed(), "price", '{"value":1}'),
        (RenamedStruct(), "price", '{"value":1}'),
        (Sub(), "price", '{"value":1}'),
        (Nameless(), None, '{"value":1}'),
        (Options(a=1), None, '{"a":1}'),
        (Point(1, 2), None, "[1,2]"),
        ({"model": Model(when=WHEN), "struct": Struct(WHEN)}, None, None),
        ({"all": [ID, decimal.Decimal("1.50"), PurePosixPath("/a"), Color.RED, WHEN.date(), WHEN.time()]}, None, None),
        (True, None, "true"),
        (1.5, None, "1.5"),
        ("text", None, "text"),
        ("ä", None, "ä"),
        ({"ä": "ö"}, None, '{"ä":"ö"}'),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_a_value_is_an_event(value, name, data):
    event = default_encoder(value)
    assert event.name == name
    if data is not None:
        assert event.data == data
    else:
        json.loads(event.data)


def test_what_is_inside_a_plain_value_has_the_forms_of_pydantic():
    inside = [ID, decimal.Decimal("1.50"), PurePosixPath("/a"), Color.RED, WHEN, WHEN.date(), WHEN.time()]
    kinds = tuple[uuid.UUID, decimal.Decimal, PurePosixPath, Color, dt.datetime, dt.date, dt.time]
    expected = pydantic.TypeAdapter(kinds).dump_python(tuple(inside), mode="json")
    assert json.loads(default_encoder({"all": inside}).data)["all"] == expected
    assert json.loads(default_encoder([Validated(WHEN)]).data) == [{"when": "2026-01-02T03:04:05", "size": "PT5S"}]
    assert json.loads(default_encoder([Model(when=WHEN), Struct(WHEN)]).data) == [
        {"when": "2026-01-02T03:04:05", "s": 1},
        {"when": "2026-01-02T03:04:05", "s": 1},
    ]


def test_an_event_is_as_it_is():
    event = Event("data", "name", "5")
    assert default_encoder(event) is event


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, TypeError),
        (object(), TypeError),
        (b"bytes", TypeError),
        (Model, TypeError),
        ({1, 2}, TypeError),
        (math.nan, ValueError),
        ({"a": math.inf}, ValueError),
        ({"a": object()}, TypeError),
        ("\ud800", ValueError),
    ],
    ids=repr,
)
def test_what_is_no_event_is_refused(value, error):
    with pytest.raises(error):
        default_encoder(value)


def test_an_event_name_is_text():
    @dataclasses.dataclass
    class Wrong:
        __event_name__ = 5

    with pytest.raises(TypeError, match=r"__event_name__ of .*Wrong.* is a str or None, not 5"):
        default_encoder(Wrong())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON) | st.lists(JSON))
def test_plain_values_come_back_from_their_json(value):
    try:
        data = default_encoder(value).data
    except ValueError:  # a lone surrogate
        return
    assert json.loads(data) == value
