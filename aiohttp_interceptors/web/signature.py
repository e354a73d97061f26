"""How an application's function is called: with the request or with its context, as a function or as a method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum

from aiohttp import web

from .._checks import check_call
from .._signature import innermost, resolve_annotation
from ..chain import Context

__all__ = ["bind_function", "check_function_or_method"]


class _Last(Enum):
    """What the last argument of a function is."""

    CONTEXT = "context"
    REQUEST = "request"
    NOTHING = "nothing"
    """A method of a view takes neither, because it has the request."""


def check_function_or_method(what: str, call: str, function: Callable[..., object], *arguments: str) -> None:
    """Raise ``TypeError`` unless a function takes these arguments. In the body of a class, ``self`` may come first."""
    # The last argument of a view's method may be missing.
    if _is_in_class(function) and (_takes(function, "self", *arguments) or _takes(function, "self", *arguments[:-1])):
        return
    check_call(what, call, function, *arguments)


def _is_in_class(function: object) -> bool:
    """Return whether a function is defined in the body of a class."""
    name: str = getattr(innermost(function), "__qualname__", "")
    return "." in name.rpartition("<locals>.")[2]


def _takes(function: Callable[..., object], *arguments: str) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


def bind_function(
    function: Callable[..., object], count: int, bound: tuple[object, ...] = (), *, is_view: bool = False
) -> Callable[..., object]:
    """Return a function of ``count`` arguments, the last of which is the context, that calls a function or a method.

    Args:
        function: The function. Its last argument is the request or the context; a method of a view may have neither.
        count: The number of arguments, without ``bound``.
        bound: ``self`` of a method.
        is_view: Whether ``self`` is a view.
    """
    call = functools.partial(function, *bound) if bound else function
    last = _last_argument(function, len(bound) + count - 1, is_view)
    if last is _Last.NOTHING:
        return lambda *arguments: call(*arguments[:-1])
    if last is _Last.REQUEST:
        return lambda *arguments: call(*arguments[:-1], arguments[-1].request)
    return call


@functools.lru_cache(1024)
def _last_argument(function: Callable[..., object], index: int, is_view: bool) -> _Last:  # noqa: FBT001
    """Return what a function gets as the positional argument of this index.

    The annotation of the parameter decides, or else its name: ``request``.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some builtins have no signature
        return _Last.CONTEXT
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if index >= len(positional):
        return _Last.NOTHING if is_view else _Last.CONTEXT
    parameter = positional[index]
    kind = _kind_of(resolve_annotation(function, parameter.name), parameter.name)
    if kind is None:
        has_other_use = is_view and parameter.default is not parameter.empty and parameter.name != "context"
        return _Last.NOTHING if has_other_use else _Last.CONTEXT
    return kind


def _kind_of(annotation: object, name: str) -> _Last | None:
    """Return what a parameter says that it takes, or ``None`` if it does not say it."""
    if inspect.isclass(annotation):
        if issubclass(annotation, web.BaseRequest):
            return _Last.REQUEST
        if issubclass(annotation, Context):
            return _Last.CONTEXT
    if isinstance(annotation, str):  # it cannot be evaluated, as under TYPE_CHECKING
        last = annotation.rpartition(".")[2]
        if last in ("Request", "BaseRequest", "RequestContext", "Context"):
            return _Last.REQUEST if last.endswith("Request") else _Last.CONTEXT
    return _Last.REQUEST if name == "request" else None
