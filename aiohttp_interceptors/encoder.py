"""Events from Python values: the class of a value is the event's name, and its fields are the data, as JSON.

``default_encoder`` encodes what generators yield and what ``Hub.publish`` takes. It recognises classes of pydantic and
msgspec without importing either.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import json
import sys
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath
from typing import Any, TypeAlias

from .sse import Event

__all__ = [
    "Encoder",
    "check_encoder",
    "default_encoder",
    "encode_value",
    "event_name_of",
    "has_named_fields",
    "to_json",
]


Encoder: TypeAlias = Callable[[object], Event | str]
"""Makes an event, or the data of one, of a value."""

_PLAIN = (dict, list, tuple, int, float, bool)
# What JSON does not have, and what stands for it: the forms that pydantic and msgspec use, too.
_FORMS: tuple[tuple[type | tuple[type, ...], Callable[[Any], object]], ...] = (
    ((dt.datetime, dt.date, dt.time), lambda value: value.isoformat()),
    (enum.Enum, lambda value: value.value),
    ((set, frozenset), list),
    ((uuid.UUID, decimal.Decimal, PurePath), str),
)


def default_encoder(value: object) -> Event:
    """Make an event of a value.

    =================================================  =========================  ========================
    Value                                              Data                       Name
    =================================================  =========================  ========================
    ``Event``                                          as it is                   as it is
    ``str``                                            the text                   none
    dataclass, pydantic model, ``msgspec.Struct``      its fields as JSON         that of its class
    ``dict``, ``list``, ``tuple``, ``int``, ``float``  JSON                       none
    =================================================  =========================  ========================

    A class declares another name with ``__event_name__: ClassVar[str] = "price"``; ``None`` is no name, so that
    browsers dispatch ``message``. JSON contains dates in ISO 8601; UUIDs, decimals and paths as text; enums by value;
    and sets as arrays.

    Args:
        value: The value.

    Raises:
        TypeError: The value, or one in it, cannot be encoded.
        ValueError: A number is infinite or NaN, or a text cannot be encoded as UTF-8.
    """
    if isinstance(value, Event):
        return value
    if isinstance(value, str):
        return Event(value)
    kind: Any = type(value)
    dump = _dump_of(kind)
    if dump is not None:
        return Event(dump(value), event_name_of(kind))
    if isinstance(value, _PLAIN):
        return Event(to_json(value))
    raise TypeError(
        "an event is made of an Event, a str, a dataclass, a pydantic or msgspec object, or a plain JSON value "
        f"other than None, not of {value!r}; encoder= encodes anything else"
    )


def encode_value(encoder: Encoder, value: object) -> Event:
    """Make an event of a value, which an ``Event`` is already.

    Raises what the encoder raises, and ``TypeError`` if it returns neither an ``Event`` nor a ``str``.
    """
    if isinstance(value, Event):
        return value
    encoded = encoder(value)
    if isinstance(encoded, Event):
        return encoded
    if isinstance(encoded, str):
        return Event(encoded)
    raise TypeError(f"the encoder {encoder!r} returned {encoded!r} for {value!r}; it returns an Event or a str")


def event_name_of(kind: type) -> str | None:
    """Return the event name of a class: what it declares as ``__event_name__``, or else its own name."""
    name: object = getattr(kind, "__event_name__", kind.__name__)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"__event_name__ of {kind!r} is a str or None, not {name!r}")
    return name


def check_encoder(encoder: object) -> None:
    """Raise ``TypeError`` if an encoder cannot be called."""
    if not callable(encoder) or inspect.iscoroutinefunction(encoder):
        raise TypeError(f"encoder is a plain function of a value, not {encoder!r}")


def has_named_fields(kind: type) -> bool:
    """Return whether objects of a class are encoded as their fields, with an event name."""
    return _dump_of(kind) is not None


@lru_cache(256)
def _dump_of(kind: type) -> Callable[[Any], str] | None:
    """Return the function that dumps the objects of a class with named fields as JSON, or ``None``."""
    if _is_pydantic(kind):
        return lambda value: str(value.model_dump_json(by_alias=True))
    if _is_pydantic_dataclass(kind):
        adapter = sys.modules["pydantic"].TypeAdapter(kind)
        return lambda value: bytes(adapter.dump_json(value, by_alias=True)).decode()
    if _is_msgspec(kind):
        encode = sys.modules["msgspec"].json.encode
        return lambda value: bytes(encode(value)).decode()
    return to_json if dataclasses.is_dataclass(kind) else None


def _is_pydantic(kind: type) -> bool:
    return hasattr(kind, "__pydantic_validator__") and callable(getattr(kind, "model_dump_json", None))


def _is_pydantic_dataclass(kind: type) -> bool:
    return "__pydantic_validator__" in vars(kind) and dataclasses.is_dataclass(kind) and "pydantic" in sys.modules


def _is_msgspec(kind: type) -> bool:
    return hasattr(kind, "__struct_config__") and "msgspec" in sys.modules


def to_json(value: object) -> str:
    """Serialise a value to JSON without whitespace. Raises ``TypeError`` or ``ValueError`` if that is impossible."""
    return json.dumps(value, default=_to_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _to_plain(value: Any) -> object:
    """Return what stands for a value that JSON does not have."""
    kind = type(value)
    if _is_pydantic(kind):
        return value.model_dump(mode="json", by_alias=True)
    if _is_pydantic_dataclass(kind):
        return sys.modules["pydantic"].TypeAdapter(kind).dump_python(value, mode="json", by_alias=True)
    if _is_msgspec(kind):
        return sys.modules["msgspec"].to_builtins(value)
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    for kinds, convert in _FORMS:
        if isinstance(value, kinds):
            return convert(value)
    raise TypeError(f"JSON has no form for {value!r}; give an encoder= that has")
