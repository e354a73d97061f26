"""Decorators that make an interceptor of one function: ``before``, ``after``, ``around`` and ``on_error``."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar, overload

from ._checks import check_call
from .chain import Context, enter_generator, leave_generator, throw_into_generator
from .interceptor import STAGES, Interceptor, Stage, StageResult

__all__ = ["after", "around", "before", "on_error"]


C = TypeVar("C", bound=Context)
E = TypeVar("E", bound=Exception)


@overload
def before(function: Callable[[C], StageResult], /, *, name: str | None = None) -> Interceptor[C]: ...
@overload
def before(*, name: str | None = None) -> Callable[[Callable[[C], StageResult]], Interceptor[C]]: ...
def before(
    function: Callable[[C], StageResult] | None = None, /, *, name: str | None = None
) -> Interceptor[C] | Callable[[Callable[[C], StageResult]], Interceptor[C]]:
    """Make an interceptor whose ``enter`` stage is the decorated function.

    Args:
        function: A plain or ``async`` function that takes the context.
        name: Name of the interceptor; by default that of the function.

    Returns:
        The interceptor, or a decorator if no function is given.

    Raises:
        TypeError: The function has no name, or does not take one argument.
    """
    if function is None:
        return lambda decorated: Interceptor(name or _name_of(decorated, "before"), enter=decorated)
    return Interceptor(name or _name_of(function, "before"), enter=function)


@overload
def after(function: Callable[[C], StageResult], /, *, name: str | None = None) -> Interceptor[C]: ...
@overload
def after(*, name: str | None = None) -> Callable[[Callable[[C], StageResult]], Interceptor[C]]: ...
def after(
    function: Callable[[C], StageResult] | None = None, /, *, name: str | None = None
) -> Interceptor[C] | Callable[[Callable[[C], StageResult]], Interceptor[C]]:
    """Make an interceptor whose ``leave`` stage is the decorated function.

    Args:
        function: A plain or ``async`` function that takes the context.
        name: Name of the interceptor; by default that of the function.

    Returns:
        The interceptor, or a decorator if no function is given.

    Raises:
        TypeError: The function has no name, or does not take one argument.
    """
    if function is None:
        return lambda decorated: Interceptor(name or _name_of(decorated, "after"), leave=decorated)
    return Interceptor(name or _name_of(function, "after"), leave=function)


def on_error(
    *types: type[E], interceptor: str | None = None, stage: Stage | None = None, name: str | None = None
) -> Callable[[Callable[[C, E], StageResult]], Interceptor[C]]:
    """Make an interceptor whose ``error`` stage handles some exceptions and declines all others.

    The decorated function takes the context and the exception. Returning handles the exception, raising the same one
    declines it, and raising another one replaces it.

    Args:
        *types: The exception types to handle, subclasses included.
        interceptor: Handle only exceptions that the interceptor of this name raised.
        stage: Handle only exceptions that were raised in this stage: ``"enter"``, ``"leave"`` or ``"error"``.
        name: Name of the new interceptor; by default that of the function.

    Returns:
        The decorator.

    Raises:
        TypeError: There is no type, one is not a subclass of ``Exception``, or ``interceptor`` is not a ``str``.
        ValueError: There is no such stage.
    """
    if not types:
        raise TypeError("@on_error takes the exception types to handle, as in @on_error(KeyError)")
    for handled in types:
        if not (inspect.isclass(handled) and issubclass(handled, Exception)):
            raise TypeError(f"@on_error takes subclasses of Exception, not {handled!r}")
    if interceptor is not None and not isinstance(interceptor, str):
        raise TypeError(f"@on_error(interceptor=…) is the name of an interceptor, not {interceptor!r}")
    if stage is not None and stage not in STAGES:
        raise ValueError(f"@on_error(stage=…) is one of {', '.join(STAGES)}, not {stage!r}")

    def decorate(function: Callable[[C, E], StageResult]) -> Interceptor[C]:
        def error(context: C, exception: Exception) -> StageResult:
            failure = context.error
            if not isinstance(exception, types) or (
                failure is not None
                and (interceptor not in (None, failure.interceptor) or stage not in (None, failure.stage))
            ):
                raise exception
            return function(context, exception)

        title = name or _name_of(function, "on_error")
        Interceptor(title, error=function)  # type: ignore[arg-type]  # checks the function; E is narrower than Exception
        return Interceptor(title, error=error)

    return decorate


def around(function: Callable[[C], AsyncIterator[None]]) -> Interceptor[C]:
    """Make an interceptor of an async generator function: ``enter`` runs up to its ``yield``, ``leave`` from there.

    The generator sees at its ``yield`` what an aiohttp middleware sees at ``await handler(request)``, so a ``with``
    block, a ``TaskGroup`` or ``asyncio.timeout`` around the ``yield`` works:

    * An exception from further in is raised at the ``yield``. Catching it handles it.
    * An ``HTTPException`` that is the response, whether raised, returned or attached, is raised there too. It stays the
      response unless the generator sets or raises another one.
    * A ``CancelledError`` is raised there too. If the generator raises another exception instead, that is the failure.
      If it swallows the cancellation, the chain leaves from here.

    If a stage further in replaced the context, the context that the generator was given has the same state afterwards.

    Args:
        function: An async generator function that takes the context and yields exactly once.

    Returns:
        The interceptor, named after the function.

    Raises:
        TypeError: The function is not an async generator function that takes one argument.
    """
    name = _name_of(function, "around")
    if not inspect.isasyncgenfunction(function):
        raise TypeError(f"@around takes an async generator function with one yield, not {function!r}")
    check_call(f"enter of interceptor {name!r}", "enter", function, "context")

    def enter(context: C) -> Awaitable[None]:
        return enter_generator(context, function(context), name)

    def leave(context: C) -> Awaitable[None]:
        return leave_generator(context, name)

    def error(context: C, exception: Exception) -> Awaitable[None]:
        return throw_into_generator(context, name, exception)

    return Interceptor(name, enter, leave, error)


def _name_of(function: object, decorator: str) -> str:
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str):
        raise TypeError(f"@{decorator} takes a function with a name, not {function!r}")
    return name
