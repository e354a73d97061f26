"""OpenAPI descriptions of event streams, made from the return annotations of their generators.

Source: OpenAPI 3.2, "Sequential Media Types" and "Server-Sent Event Streams".
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypedDict, Union

from .encoder import event_name_of
from .sse import Event

__all__ = ["OpenAPIFragment", "openapi"]


_REFERENCE = "#/components/schemas/"

Schema: typing.TypeAlias = dict[str, Any]


class OpenAPIFragment(TypedDict):
    """A part of an OpenAPI 3.2 document."""

    responses: dict[str, Any]
    """The ``responses`` of an operation: its 200 response, which is an event stream."""
    schemas: dict[str, Any]
    """What belongs under ``components/schemas``: the classes that are part of others."""


def openapi(handler: Callable[..., object], *, description: str = "A stream of events.") -> OpenAPIFragment:
    """Describe the stream of an ``@event_stream`` generator for an OpenAPI 3.2 document.

    The generator's return annotation says what it yields, such as ``AsyncIterator[Token | Done]``. Each class of a
    union is one branch of the ``itemSchema``, with its event name, as ``default_encoder`` encodes it.

    Args:
        handler: The handler, or the generator function.
        description: The description of the response.

    Returns:
        The responses of the operation, and the schemas that they refer to.

    Raises:
        TypeError: The function has no return annotation of this kind.
        ImportError: Neither pydantic nor msgspec is installed. One of them makes the schemas.
    """
    schemas: dict[str, Any] = {}
    branches = [_branch(kind, schemas) for kind in _yielded(handler)]
    content = {"text/event-stream": {"itemSchema": branches[0] if len(branches) == 1 else {"oneOf": branches}}}
    return {"responses": {"200": {"description": description, "content": content}}, "schemas": schemas}


def _yielded(handler: Callable[..., object]) -> list[Any]:
    """Return the types that a generator yields."""
    function: Any = inspect.unwrap(handler)
    annotation = typing.get_type_hints(function).get("return")
    items = typing.get_args(annotation)
    if not items:
        raise TypeError(
            f"openapi() reads what {function!r} yields from its return annotation, such as AsyncIterator[Token], "
            f"and it is {annotation!r}"
        )
    item = items[0]
    is_union = typing.get_origin(item) in (Union, types.UnionType)
    return list(typing.get_args(item)) if is_union else [item]


def _branch(kind: Any, schemas: dict[str, Any]) -> Schema:
    """Return the schema of the events of one type. Adds the classes that it contains to ``schemas``."""
    properties: dict[str, Any] = {"id": {"type": "string"}}
    if kind is Event:
        return {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}, **properties}}
    if kind is str:
        return {"type": "object", "properties": {"data": {"type": "string"}, **properties}, "required": ["data"]}
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _schema_of(kind, schemas),
    }
    name = event_name_of(kind) if _has_named_fields(kind) else None
    if name is None:
        return {"type": "object", "properties": {"data": data, **properties}, "required": ["data"]}
    properties = {"event": {"const": name}, "data": data, **properties}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


def _has_named_fields(kind: Any) -> bool:
    """Return whether a type is a class whose name is that of its events. A ``TypedDict`` is a ``dict`` at run time."""
    return dataclasses.is_dataclass(kind) or hasattr(kind, "__pydantic_validator__") or _is_struct(kind)


def _is_struct(kind: Any) -> bool:
    return hasattr(kind, "__struct_config__")


def _schema_of(kind: Any, schemas: dict[str, Any]) -> Schema:
    """Return the JSON Schema of a type, made by msgspec or pydantic."""
    has_pydantic, has_msgspec = find_spec("pydantic") is not None, find_spec("msgspec") is not None
    if not (has_pydantic or has_msgspec):
        raise ImportError(f"openapi() needs pydantic or msgspec, which makes the schema of {kind!r}")
    # Before Python 3.12 pydantic refuses a typing.TypedDict.
    if _is_struct(kind) or not has_pydantic or (has_msgspec and typing.is_typeddict(kind)):
        (schema,), components = import_module("msgspec.json").schema_components(
            [kind], ref_template=_REFERENCE + "{name}"
        )
        own = components.pop(schema.pop("$ref").removeprefix(_REFERENCE)) if "$ref" in schema else schema
        schemas.update(components)
        return typing.cast("Schema", own)
    schema = (
        import_module("pydantic")
        .TypeAdapter(kind)
        .json_schema(mode="serialization", ref_template=_REFERENCE + "{model}")
    )
    schemas.update(schema.pop("$defs", {}))
    return typing.cast("Schema", schema)
