"""``json_body``: reads the JSON body of a request, checked and in the shape that the handler expects."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, TypeAlias, TypeVar, Union, cast, get_args, get_origin

from aiohttp import hdrs, web

from .._checks import check_count, check_seconds
from ..chain import ContextKey
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ..web.request import read_body
from ._fields import check_function, check_key

__all__ = ["InvalidBody", "json_body"]


T = TypeVar("T")

MEBIBYTE = 2**20
MAX_MISTAKES = 100  # that a response lists
JSON = "application/json"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class InvalidBody(ValueError):
    """The JSON of a body has not the shape that it should have. A function of ``json_body(into=…)`` may raise it.

    Args:
        what: What is wrong, for the client.
        where: Where it is, as a path such as ``$.items[0].price``.
    """

    def __init__(self, what: str, where: str = "$") -> None:
        super().__init__(what, where)
        self.what: str = what
        self.where: str = where

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class _Mistakes(ValueError):
    """Several mistakes in one body."""

    def __init__(self, mistakes: list[InvalidBody]) -> None:
        super().__init__(*mistakes)
        self.mistakes: list[InvalidBody] = sorted(mistakes, key=lambda mistake: mistake.where)


def _strict_loads(body: bytes) -> object:
    text = body.decode("utf-8-sig")
    value = json.loads(text, parse_constant=_refuse_constant)
    if _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def _check_surrogates(value: object) -> None:
    """Raise ``ValueError`` if a text has half of a surrogate pair: no database, file or event can store it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is not a character") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def json_body(
    key: ContextKey[T],
    into: type[T] | Callable[[object], T],
    *,
    max_size: int = MEBIBYTE,
    loads: Callable[[bytes], object] = _strict_loads,
    read_timeout: float | None = 60.0,
) -> Interceptor[RequestContext]:
    """Make an interceptor that reads the JSON body of a request into ``context[key]``.

    ``ORDER = ContextKey[Order]("order")`` and ``json_body(ORDER, Order)`` give ``context[ORDER]`` the type ``Order``.

    The request is answered with

    * 415 if its content type is neither ``application/json`` nor ends with ``+json``,
    * 413 if the body has more than ``max_size`` bytes, or more than the application's ``client_max_size``,
    * 408 if no data arrives for ``read_timeout`` seconds,
    * 400 if the body is not JSON, with line and column,
    * 422 if it has another shape, with the path to each place.

    ``request.read()``, ``text()`` and ``json()`` still return the body afterwards.

    A dataclass is checked by its annotations: JSON types, ``Any``, unions, ``Literal``, ``list``, ``dict`` with ``str``
    keys, and other dataclasses. Members that it does not have are refused, and an ``int`` is accepted as ``float``.

    Args:
        key: The key of the value.
        into: A dataclass, a ``msgspec.Struct``, a pydantic model, a JSON type such as ``dict`` or ``list[Order]``, or a
            plain function that makes the value of what ``loads`` returns. A function raises ``InvalidBody``, or another
            ``ValueError``, to refuse it.
        max_size: Number of bytes that the body may have.
        loads: A plain function that parses the body, and raises ``ValueError`` if it cannot.
        read_timeout: Seconds to wait for each piece of the body; ``None`` for no limit.

    Returns:
        The interceptor. Requests whose method has no body, such as GET, are refused by it as well.

    Raises:
        TypeError: An argument has the wrong type, or an annotation of a dataclass is none of those above.
        ValueError: A number is out of range.
    """
    check_key(key)
    check_count("max_size", max_size, 1)
    check_function("loads", loads)
    check_seconds("read_timeout", read_timeout, "no limit")
    convert = _converter(into)

    async def enter(context: RequestContext) -> None:
        request = context.request
        _check_content_type(request)
        if (request.content_length or 0) > max_size:
            raise web.HTTPRequestEntityTooLarge(max_size=max_size, actual_size=request.content_length or 0)
        await read_body(request, read_timeout, max_size)
        body = await request.read()
        if len(body) > max_size:  # it was read before
            raise web.HTTPRequestEntityTooLarge(max_size=max_size, actual_size=len(body))
        value = _parsed(loads, body)
        try:
            context[key] = cast("T", convert(value))
        except RecursionError as error:
            raise _too_deep() from error
        except Exception as error:
            if not isinstance(error, ValueError) and not _is_from("msgspec", error):
                raise
            raise web.HTTPUnprocessableEntity(text=_text(error)) from error

    return Interceptor(f"json_body({key.name})", enter)


def _check_content_type(request: web.Request) -> None:
    kind = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if kind != JSON and not kind.endswith("+json"):
        raise web.HTTPUnsupportedMediaType(headers={hdrs.ACCEPT: JSON}, text=f"Send the body as {JSON}.\n")


def _parsed(loads: Callable[[bytes], object], body: bytes) -> object:
    try:
        return loads(body)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise web.HTTPBadRequest(text=f"The body is not JSON: {error.msg} ({where}).\n") from error
    except UnicodeDecodeError as error:
        raise web.HTTPBadRequest(text=f"The body is not UTF-8 (byte {error.start}).\n") from error
    except RecursionError as error:
        raise _too_deep() from error
    except Exception as error:
        if not isinstance(error, ValueError) and not _is_from("msgspec", error):
            raise
        raise web.HTTPBadRequest(text=_encodable(f"The body is not JSON: {error}.\n")) from error


def _too_deep() -> web.HTTPException:
    return web.HTTPBadRequest(text="The body is nested too deeply.\n")


def _text(error: Exception) -> str:
    """Return the text of a 422, with a line for each of the first mistakes."""
    lines = list(islice(_lines(error), MAX_MISTAKES + 1))
    if len(lines) > MAX_MISTAKES:
        lines[-1] = "$: there are more mistakes"
    return _encodable("".join(f"{line}\n" for line in lines))


def _encodable(text: str) -> str:
    """Return a text that can be sent: a member's name may have half of a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _lines(error: Exception) -> Iterator[str]:
    """Yield where and what is wrong, a line for each mistake. The values that were sent are not repeated."""
    if _is_from("pydantic", error) or _is_from("pydantic_core", error):
        for each in cast("Any", error).errors(include_url=False, include_context=False, include_input=False):
            yield f"{_path(each['loc'])}: {each['msg']}"
    elif _is_from("msgspec", error):
        what, at, where = str(error).rpartition(" - at `")
        yield f"{where.rstrip('`')}: {what}" if at else f"$: {error}"
    elif isinstance(error, _Mistakes):
        yield from map(str, error.mistakes)
    else:
        yield str(error) if isinstance(error, InvalidBody) else f"$: {error}"


def _is_from(package: str, error: Exception) -> bool:
    """Return whether an exception, such as the one of msgspec that is no ``ValueError``, is of a package."""
    return type(error).__module__.partition(".")[0] == package


def _path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in location)


# From JSON values to objects.


def _converter(into: object) -> Callable[[object], object]:
    """Return the function that makes the object, or raise ``TypeError``."""
    kind: Any = into
    if isinstance(into, type):
        if callable(getattr(kind, "model_validate", None)):
            return cast("Callable[[object], object]", kind.model_validate)
        if hasattr(kind, "__struct_config__"):
            convert = sys.modules["msgspec"].convert
            return lambda value: convert(value, kind)
        if "__pydantic_validator__" in vars(kind):
            return cast("Callable[[object], object]", sys.modules["pydantic"].TypeAdapter(kind).validate_python)
        if dataclasses.is_dataclass(into):
            _check_dataclass(into, set())
            return lambda value: _to_dataclass(kind, value, "$", {})
    if get_origin(kind) is not None or kind in _JSON_TYPES:
        _check_type(kind, "into", set())
        return lambda value: _convert(kind, value, "$", {})
    check_function("into", into)
    return cast("Callable[[object], object]", into)


_JSON_TYPES: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    types.NoneType: "null",
    list: "an array",
    dict: "an object",
}


def _check_dataclass(kind: type, seen: set[type]) -> None:
    """Raise ``TypeError`` if a field has a type that is not one of JSON."""
    if kind in seen:
        return
    seen.add(kind)
    hints = _hints(kind)
    for each in _fields(kind):
        _check_type(hints[each.name], f"{kind.__name__}.{each.name}", seen)


def _check_type(hint: object, what: str, seen: set[type]) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _check_dataclass(hint, seen)
    elif origin in (Union, types.UnionType, list) or (origin is dict and arguments[0] is str):
        for argument in arguments:
            _check_type(argument, what, seen)
    elif not (hint in (Any, object, None) or origin is Literal or hint in _JSON_TYPES):
        raise TypeError(
            f"{what} is a {hint!r}, which json_body cannot check; pass a msgspec.Struct, a pydantic model or a function"
        )


def _hints(kind: type) -> dict[str, object]:
    return typing.get_type_hints(kind)


def _fields(kind: Any) -> list[dataclasses.Field[object]]:
    """Return the fields that ``__init__`` takes."""
    return [each for each in dataclasses.fields(kind) if each.init]


_Tried: TypeAlias = dict[tuple[type, int], "object | InvalidBody | _Mistakes"]
"""What became of an object of JSON, by the dataclass and the object's ``id``.

A union tries its dataclasses one after the other. Without this, a member that is a union again would be tried twice for
each of them, its own members four times, and so on.
"""


def _to_dataclass(kind: type, value: object, where: str, tried: _Tried) -> object:
    """Make an object of a dataclass. Raises ``InvalidBody``, or ``_Mistakes`` if there are several."""
    if not isinstance(value, dict):
        raise InvalidBody(_expected("an object", value), where)
    made = tried.get((kind, id(value)))
    if made is None:
        try:
            made = _make_dataclass(kind, value, where, tried)
        except (InvalidBody, _Mistakes) as error:
            made = error.with_traceback(None)
        tried[kind, id(value)] = made
    if isinstance(made, (InvalidBody, _Mistakes)):
        raise made
    return made


def _make_dataclass(kind: type, value: dict[str, object], where: str, tried: _Tried) -> object:
    hints, arguments = _hints(kind), dict[str, object]()
    fields = {each.name: each for each in _fields(kind)}
    unknown = islice((name for name in value if name not in fields), MAX_MISTAKES)
    errors = [InvalidBody("there is no such member", f"{where}.{name}") for name in unknown]
    for name, each in fields.items():
        if name in value:
            try:
                arguments[name] = _convert(hints[name], value[name], f"{where}.{name}", tried)
            except InvalidBody as error:
                errors.append(error)
            except _Mistakes as several:
                errors += several.mistakes
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            errors.append(InvalidBody("this member is missing", f"{where}.{name}"))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise _Mistakes(errors)
    try:
        return kind(**arguments)
    except ValueError as error:  # of __post_init__
        raise InvalidBody(str(error), where) from error


def _convert(hint: Any, value: object, where: str, tried: _Tried) -> object:
    """Return the value as the type that is annotated. Raises as ``_to_dataclass``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (Any, object):
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where, tried)
    if origin is Literal:
        if any(value == each and type(value) is type(each) for each in arguments):
            return value
        raise InvalidBody(f"expected {' or '.join(map(repr, arguments))}", where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _to_dataclass(hint, value, where, tried)
    return _convert_plain(types.NoneType if hint is None else origin or hint, arguments, value, where, tried)


def _convert_plain(kind: type, arguments: tuple[object, ...], value: object, where: str, tried: _Tried) -> object:
    """Return the value as a JSON type, whose members have the types of the arguments."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise InvalidBody("the number is too large", where) from None
    if type(value) is not kind:
        raise InvalidBody(_expected(_JSON_TYPES[kind], value), where)
    if isinstance(value, list) and arguments:
        return [_convert(arguments[0], each, f"{where}[{at}]", tried) for at, each in enumerate(value)]
    if isinstance(value, dict) and arguments:
        return {name: _convert(arguments[1], each, f"{where}.{name}", tried) for name, each in value.items()}
    return value


def _convert_union(choices: tuple[object, ...], value: object, where: str, tried: _Tried) -> object:
    """Return the value as the first of several types that it fits, one of exactly its own type before all others."""
    errors: list[InvalidBody | _Mistakes] = []
    for choice in sorted(choices, key=lambda choice: choice is not type(value)):
        try:
            return _convert(choice, value, where, tried)
        except (InvalidBody, _Mistakes) as error:
            errors.append(error)
    inside = [error for error in errors if isinstance(error, _Mistakes) or error.where != where]
    if len(inside) == 1:  # the value fits this choice at least in its outermost type
        raise inside[0]
    raise InvalidBody(_expected(" or ".join(_described(choice) for choice in choices), value), where)


def _described(choice: object) -> str:
    kind = get_origin(choice) or (types.NoneType if choice is None else choice)
    return _JSON_TYPES.get(cast("type", kind), "an object" if dataclasses.is_dataclass(kind) else "one of some values")


def _expected(what: str, value: object) -> str:
    return f"expected {what}, not {_JSON_TYPES.get(type(value), 'something else')}"
