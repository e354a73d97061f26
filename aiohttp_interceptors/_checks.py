"""Checks of what a user's functions return."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from typing import TypeVar

__all__ = ["check_count", "check_seconds", "synchronous"]


Result = TypeVar("Result")


def synchronous(result: Result, function: str) -> Result:
    """Return the result of a function that is called where nothing can be awaited.

    Raises ``TypeError`` if the result is to be awaited or iterated, as that of a lambda over a coroutine function: such
    an object is true, and unlike any other, whatever it would say. A coroutine is closed, so that there is no warning.
    """
    if isinstance(result, (Awaitable, AsyncIterator, Iterator)):
        shown = repr(result)
        if isinstance(result, Coroutine):
            result.close()
        raise TypeError(f"{function} returned {shown}, and it is called where nothing can be awaited or iterated")
    return result


def check_count(name: str, value: object, least: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what is no whole number, or less than that."""
    if type(value) is not int:
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} is {least} or more, not {value!r}")


def check_seconds(name: str, value: object, none: str, least: float | None = None) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what is no number of seconds, nor ``None`` if that means something.

    ``least`` may be reached, 0 otherwise not.
    """
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds{' or None' if none else ''}, not {value!r}")
    enough = value > 0 if least is None else value >= least
    if not (enough and value < float("inf")):
        bound = "more than 0 seconds" if least is None else f"{least} seconds or more"
        raise ValueError(f"{name} is {bound}, not {value!r}" + (f"; None means {none}" if none else ""))
