"""Checks of arguments, and of what user functions take and return."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import TypeVar

__all__ = ["check_call", "check_count", "check_max_event_size", "check_seconds", "check_synchronous", "unwrap_partial"]


Result = TypeVar("Result")


def check_call(what: str, call: str, function: Callable[..., object], *arguments: str) -> None:
    """Raise ``TypeError`` if a function does not take these positional arguments.

    ``what`` names the function in the message, and ``call`` is the name that it is called by.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as mismatch:
        shown = f"{call}({', '.join(arguments)})"
        raise TypeError(f"{what} is called as {shown}, which {function!r} does not take: {mismatch}") from None


def check_synchronous(result: Result, function: str) -> Result:
    """Return the result of a function that is called where nothing can be awaited.

    Raises ``TypeError`` for an awaitable or an iterator, such as the result of a lambda that calls a coroutine
    function: it would be true whatever its value. A coroutine is closed, so that Python does not warn.
    """
    if isinstance(result, (Awaitable, AsyncIterator, Iterator)):
        shown = repr(result)
        if isinstance(result, Coroutine):
            result.close()
        raise TypeError(f"{function} returned {shown}, and it is called where nothing can be awaited or iterated")
    return result


def check_count(name: str, value: object, minimum: int) -> None:
    """Raise ``TypeError`` if a value is not an ``int``, or ``ValueError`` if it is less than the minimum."""
    if type(value) is not int:
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < minimum:
        raise ValueError(f"{name} is {minimum} or more, not {value!r}")


def check_max_event_size(size: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless the size is a positive number of bytes, or ``None``."""
    if size is not None and (type(size) is not int or size < 1):
        raise (ValueError if type(size) is int else TypeError)(
            f"max_event_size is a number of bytes, 1 or more, or None, not {size!r}"
        )


def check_seconds(name: str, value: object, none_means: str, minimum: float | None = None) -> None:
    """Raise ``TypeError`` or ``ValueError`` if a value is not a finite number of seconds.

    ``None`` is refused if ``none_means`` is empty. Without a minimum, the value must be more than 0.
    """
    if value is None and none_means:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds{' or None' if none_means else ''}, not {value!r}")
    enough = value > 0 if minimum is None else value >= minimum
    if not (enough and value < float("inf")):
        bound = "more than 0 seconds" if minimum is None else f"{minimum} seconds or more"
        raise ValueError(f"{name} is {bound}, not {value!r}" + (f"; None means {none_means}" if none_means else ""))


def unwrap_partial(function: object) -> object:
    """Return the function inside a ``functools.partial``, at any depth; anything else unchanged."""
    while isinstance(function, functools.partial):
        function = function.func
    return function
