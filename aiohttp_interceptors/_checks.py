"""Checks of what a user's functions return."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from typing import TypeVar

__all__ = ["synchronous"]

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
