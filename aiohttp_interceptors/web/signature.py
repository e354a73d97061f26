"""How an application's function is called: with the request or with its context, as a function or as a method."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from aiohttp import web

from .._checks import check_call
from ..chain import Context

__all__ = ["accepts", "bind_function", "check_function_or_method", "takes_request"]


def accepts(function: Callable[..., object], count: int) -> bool:
    """Return whether a function can be called with this number of positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some builtins have no signature
        return True
    return True


def takes_request(function: Callable[..., object]) -> bool:
    """Return whether the last argument of a function is the request, and not its context.

    The annotation of the parameter decides, or else its name: ``request``.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return False
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if not positional:
        return False
    parameter = positional[-1]
    annotation = _resolve(function, parameter)
    if inspect.isclass(annotation):
        if issubclass(annotation, web.BaseRequest):
            return True
        if issubclass(annotation, Context):
            return False
    if isinstance(annotation, str):  # it cannot be resolved, as under TYPE_CHECKING
        name = annotation.rpartition(".")[2]
        if name in ("Request", "BaseRequest", "RequestContext", "Context"):
            return name.endswith("Request")
    return parameter.name == "request"


def _resolve(function: Callable[..., object], parameter: inspect.Parameter) -> object:
    """Return the annotation of a parameter, resolved if it can be."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inner.func
    try:
        return typing.get_type_hints(inner).get(parameter.name, parameter.annotation)
    except Exception:  # noqa: BLE001  # any name in any annotation may be missing at run time
        return parameter.annotation


def check_function_or_method(what: str, call: str, function: Callable[..., object], *arguments: str) -> None:
    """Raise ``TypeError`` unless a function takes these arguments, alone or after ``self``."""
    if not accepts(function, len(arguments) + 1):
        check_call(what, call, function, *arguments)


def bind_function(
    function: Callable[..., object], count: int, bound: tuple[object, ...] = (), *, is_view: bool = False
) -> Callable[..., object]:
    """Return a function of ``count`` arguments, the last of which is the context, that calls a function or a method.

    Args:
        function: The function. Its last argument is the request or the context; a method of a view may have neither.
        count: The number of arguments, without ``bound``.
        bound: ``self`` of a method.
        is_view: Whether ``self`` is a view, which has the request.
    """
    call = functools.partial(function, *bound) if bound else function
    if is_view and not accepts(call, count):
        return lambda *arguments: call(*arguments[:-1])
    if takes_request(call):
        return lambda *arguments: call(*arguments[:-1], arguments[-1].request)
    return call
