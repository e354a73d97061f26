"""Annotations of an application's functions, evaluated one at a time."""

from __future__ import annotations

import inspect
import typing
from types import SimpleNamespace
from typing import Any

from ._checks import unwrap_partial

__all__ = ["innermost", "resolve_annotation"]


def innermost(function: object) -> Any:
    """Return the function inside a ``functools.partial``, a method, and decorators that use ``functools.wraps``."""
    inner: Any = unwrap_partial(function)
    if not (inspect.isroutine(inner) or inspect.isclass(inner)):  # an object that can be called
        inner = getattr(type(inner), "__call__", inner)  # noqa: B004
    method: Any = getattr(inner, "__func__", inner)
    return inspect.unwrap(method)


def resolve_annotation(function: object, name: str) -> object:
    """Return the annotation of a parameter, or of ``"return"``; ``None`` if there is none.

    Text is evaluated if that is possible, and returned otherwise. Other annotations are not evaluated, because a name
    in them may be missing when the program runs.
    """
    inner = innermost(function)
    annotation: object = getattr(inner, "__annotations__", {}).get(name)
    if not isinstance(annotation, str):
        return annotation
    try:
        holder = SimpleNamespace(__annotations__={name: annotation})
        return typing.get_type_hints(holder, getattr(inner, "__globals__", {}), include_extras=True)[name]
    except Exception:  # noqa: BLE001  # any name in it may be missing at run time
        return annotation
