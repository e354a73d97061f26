"""OpenAPI descriptions of event streams, made from the return annotations of their generators.

Source: OpenAPI 3.2, "Sequential Media Types" and "Server-Sent Event Streams".
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, TypedDict, Union

from ._signature import innermost, resolve_annotation
from .encoder import event_name_of, has_named_fields
from .sse import Event

__all__ = ["OpenAPIFragment", "openapi"]


_REFERENCE = "#/components/schemas/"
_ID = {"id": {"type": "string"}}

Schema: TypeAlias = dict[str, Any]


class OpenAPIFragment(TypedDict):
    """A part of an OpenAPI 3.2 document."""

    responses: dict[str, Any]
    """The ``responses`` of an operation: its 200 response, which is an event stream."""
    schemas: dict[str, Any]
    """What belongs under ``components/schemas``: the classes that the responses refer to."""


def openapi(handler: Callable[..., object], *, description: str = "A stream of events.") -> OpenAPIFragment:
    """Describe the stream of an ``@event_stream`` generator for an OpenAPI 3.2 document.

    The generator's return annotation says what it yields, such as ``AsyncIterator[Token | Done]``. Each class of a
    union is one branch of the ``itemSchema``, with its event name, as ``default_encoder`` encodes it. If the handler
    may answer with JSON, the return annotation of its ``as_json`` is the schema of that.

    Args:
        handler: The handler, or the generator function.
        description: The description of the response.

    Returns:
        The responses of the operation, and the schemas that they refer to.

    Raises:
        TypeError: The function has no return annotation of this kind, or a type has no JSON schema.
        ImportError: Neither pydantic nor msgspec is installed. One of them makes the schemas.
        ValueError: Two classes have the same name in the document.
    """
    schemas: dict[str, Any] = {}
    by_name: dict[str | None, list[Schema]] = {}  # the schemas of the data, by the name of their events
    any_name = False
    for kind in _yielded(handler):
        if _is_a(kind, Event):
            any_name = True
        else:
            by_name.setdefault(_event_name(kind), []).append(_data_schema(kind, schemas))
    branches = [_branch(name, data) for name, data in by_name.items()]
    if any_name:  # an Event may have any name and any data
        branches = [{"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}, **_ID}}]
    item = branches[0] if len(branches) == 1 else {"oneOf": branches}
    content: dict[str, Any] = {"text/event-stream": {"itemSchema": item}}
    as_json = getattr(handler, "as_json", None)
    if as_json is not None:
        content["application/json"] = {"schema": _answer_schema(as_json, schemas)}
    return {"responses": {"200": {"description": description, "content": content}}, "schemas": schemas}


def _yielded(handler: Callable[..., object]) -> list[Any]:
    """Return the types that a generator yields."""
    function = innermost(handler)
    annotation = _return_annotation(function)
    items = typing.get_args(annotation)
    if not items:
        raise TypeError(
            f"openapi() reads what {function!r} yields from its return annotation, such as AsyncIterator[Token], "
            f"and it is {annotation!r}"
        )
    return list(_members(items[0]))


def _return_annotation(function: Callable[..., object]) -> Any:
    annotation = _without_alias(resolve_annotation(function, "return"))
    if isinstance(annotation, str):
        raise TypeError(
            f"the return annotation {annotation!r} of {function!r} has a name that is not known in its module; define "
            "or import it there, outside of TYPE_CHECKING"
        )
    return annotation


def _answer_schema(as_json: Callable[..., object], schemas: dict[str, Any]) -> Schema:
    """Return the schema of what ``as_json`` returns: that of any value if it has no annotation, or makes a response."""
    annotation = _return_annotation(innermost(as_json))
    if annotation is None or hasattr(annotation, "prepare"):
        return {}
    schema, components = _json_schema(annotation)
    _add_components(components, schemas)
    return schema


def _members(kind: Any) -> typing.Iterator[Any]:
    """Yield the members of a union, at any depth."""
    kind = _without_alias(kind)
    if typing.get_origin(kind) in (Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from _members(member)
    elif kind is None or kind is type(None):
        raise TypeError("None is not an event, and a generator cannot yield it")
    else:
        yield kind


def _without_alias(kind: Any) -> Any:
    """Return the type that an alias of PEP 695 or ``Annotated`` stands for."""
    while True:
        if type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        elif typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        else:
            return kind


def _is_a(kind: Any, base: type) -> bool:
    return inspect.isclass(kind) and issubclass(kind, base)


def _event_name(kind: Any) -> str | None:
    """Return the name of the events of a type. A ``TypedDict`` is a ``dict`` when the program runs, and has none."""
    origin = typing.get_origin(kind) or kind
    return event_name_of(origin) if inspect.isclass(origin) and has_named_fields(origin) else None


def _branch(name: str | None, data: list[Schema]) -> Schema:
    """Return the schema of the events of one name. Data that is text or JSON is described as text."""
    texts = [schema for schema in data if "contentSchema" not in schema]
    schema = texts[0] if texts else data[0]
    if not texts and len(data) > 1:
        schema = {**schema, "contentSchema": {"anyOf": [each["contentSchema"] for each in data]}}
    if name is None:  # otherwise an event with a name would match this branch, too
        no_name = {"not": {"required": ["event"]}}
        return {"type": "object", "properties": {"data": schema, **_ID}, "required": ["data"], **no_name}
    properties = {"event": {"const": name}, "data": schema, **_ID}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


def _data_schema(kind: Any, schemas: dict[str, Any]) -> Schema:
    """Return the schema of the data of one type. Adds the classes that it refers to to ``schemas``."""
    if _is_text(kind):
        return {"type": "string"}
    schema, components = _json_schema(kind)
    _add_components(components, schemas)
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}


def _add_components(components: dict[str, Any], schemas: dict[str, Any]) -> None:
    for name, component in components.items():
        if schemas.setdefault(name, component) != component:
            raise ValueError(f"two classes are named {name!r}, and an OpenAPI document can have one of them")


def _is_text(kind: Any) -> bool:
    """Return whether the values of a type are sent as they are, and not as JSON."""
    kind = getattr(kind, "__supertype__", kind)  # of a NewType
    if typing.get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in typing.get_args(kind))
    return _is_a(kind, str)


def _json_schema(kind: Any) -> tuple[Schema, dict[str, Any]]:
    """Return the JSON Schema of a type, and the components that it refers to, made by msgspec or pydantic."""
    makers = [maker for name, maker in (("pydantic", _by_pydantic), ("msgspec", _by_msgspec)) if find_spec(name)]
    if not makers:
        raise ImportError(f"openapi() needs pydantic or msgspec, which makes the schema of {kind!r}")
    origin = typing.get_origin(kind) or kind
    # Before Python 3.12 pydantic refuses a typing.TypedDict.
    if hasattr(origin, "__struct_config__") or typing.is_typeddict(origin):
        makers.reverse()
    errors = []
    for maker in makers:
        try:
            return maker(kind)
        except Exception as error:  # noqa: BLE001  # each has errors of its own for a type that it does not know
            errors.append(error)
    raise TypeError(f"there is no JSON schema for {kind!r}: {errors[-1]}") from errors[-1]


def _by_pydantic(kind: Any) -> tuple[Schema, dict[str, Any]]:
    adapter = import_module("pydantic").TypeAdapter(kind)
    schema = adapter.json_schema(mode="serialization", ref_template=_REFERENCE + "{model}")
    return schema, schema.pop("$defs", {})


def _by_msgspec(kind: Any) -> tuple[Schema, dict[str, Any]]:
    (schema,), components = import_module("msgspec.json").schema_components([kind], ref_template=_REFERENCE + "{name}")
    return schema, components
