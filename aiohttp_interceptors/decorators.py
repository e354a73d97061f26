"""Short ways to write an interceptor: one function, one stage; or one generator, the whole bracket."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar, overload

from .interceptor import STAGES, Interceptor, Result, Stage, check_call

if TYPE_CHECKING:
    from .chain import Context

__all__ = ["after", "around", "before", "on_error", "throw"]


C = TypeVar("C", bound="Context")
E = TypeVar("E", bound=Exception)


@overload
def before(function: Callable[[C], Result], /, *, name: str | None = None) -> Interceptor[C]: ...
@overload
def before(*, name: str | None = None) -> Callable[[Callable[[C], Result]], Interceptor[C]]: ...
def before(
    function: Callable[[C], Result] | None = None, /, *, name: str | None = None
) -> Interceptor[C] | Callable[[Callable[[C], Result]], Interceptor[C]]:
    """Make an interceptor of its ``enter`` stage, named after the function."""
    if function is None:
        return lambda decorated: Interceptor(name or _name_of(decorated, "before"), enter=decorated)
    return Interceptor(name or _name_of(function, "before"), enter=function)


@overload
def after(function: Callable[[C], Result], /, *, name: str | None = None) -> Interceptor[C]: ...
@overload
def after(*, name: str | None = None) -> Callable[[Callable[[C], Result]], Interceptor[C]]: ...
def after(
    function: Callable[[C], Result] | None = None, /, *, name: str | None = None
) -> Interceptor[C] | Callable[[Callable[[C], Result]], Interceptor[C]]:
    """Make an interceptor of its ``leave`` stage, named after the function."""
    if function is None:
        return lambda decorated: Interceptor(name or _name_of(decorated, "after"), leave=decorated)
    return Interceptor(name or _name_of(function, "after"), leave=function)


def on_error(
    *types: type[E], interceptor: str | None = None, stage: Stage | None = None, name: str | None = None
) -> Callable[[Callable[[C, E], Result]], Interceptor[C]]:
    """Handle exceptions of these types, decline all others.

    With ``interceptor`` or ``stage``, only those that were raised there. The function takes the context and the
    exception; returning handles it, raising the same exception declines, raising another replaces it.
    """
    if not types:
        raise TypeError("@on_error takes the exception types to handle, as in @on_error(KeyError)")
    for handled in types:
        if not (inspect.isclass(handled) and issubclass(handled, Exception)):
            raise TypeError(f"@on_error takes subclasses of Exception, not {handled!r}")
    if interceptor is not None and not isinstance(interceptor, str):
        raise TypeError(f"@on_error(interceptor=…) is the name of one, not {interceptor!r}")
    if stage is not None and stage not in STAGES:
        raise ValueError(f"@on_error(stage=…) is one of {', '.join(STAGES)}, not {stage!r}")

    def decorate(function: Callable[[C, E], Result]) -> Interceptor[C]:
        def error(context: C, exception: Exception) -> Result:
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
    """Make an interceptor of an async generator with one ``yield``: before it is ``enter``, after it is ``leave``.

    At the ``yield`` it sees what an aiohttp middleware sees at its ``await handler(request)``, so that a ``with``
    block, a ``TaskGroup`` or ``asyncio.timeout`` around the ``yield`` works. An exception from further in is raised
    there: catching it handles it. An ``HTTPException`` that is the response is raised there too, be it raised, returned
    or attached, and stays the response unless the generator sets or raises another. A ``CancelledError`` is raised
    there as well: raising another exception in its place makes that the failure, and swallowing it has the chain leave
    from here. A context that a stage further in put in the place of this one has given its state to this one by then.
    """
    name = _name_of(function, "around")
    if not inspect.isasyncgenfunction(function):
        raise TypeError(f"@around takes an async generator function with one yield, not {function!r}")
    check_call(f"enter of interceptor {name!r}", "enter", function, "context")

    async def enter(context: C) -> None:
        generator: AsyncGenerator[None, None] = function(context)
        try:
            await anext(generator)
        except StopAsyncIteration:
            raise RuntimeError(f"{name!r} ended without its yield; the chain goes on where it yields") from None
        context._execution.open_bracket(generator)  # type: ignore[union-attr]  # a stage runs inside an execution

    async def leave(context: C) -> None:
        generator = context._execution.close_bracket()  # type: ignore[union-attr]  # a stage runs inside an execution
        if generator is not None:
            await _finish(generator, name, context._outcome())

    async def error(context: C, exception: Exception) -> None:
        generator = context._execution.close_bracket()  # type: ignore[union-attr]  # a stage runs inside an execution
        if generator is None:  # it was its own enter or leave that raised
            raise exception
        await throw(generator, name, exception)

    return Interceptor(name, enter, leave, error)


async def _finish(generator: AsyncGenerator[None, None], name: str, outcome: Exception | None) -> None:
    """Run a generator past its only yield, at which it sees the outcome of what is further in, if it is an exception.

    A generator that lets the outcome pass has nothing against it.
    """
    if outcome is not None:
        try:
            await throw(generator, name, outcome)
        except Exception as exception:
            if exception is not outcome:
                raise
        return
    try:
        await anext(generator)
    except StopAsyncIteration:
        return
    await _refuse_second_yield(generator, name)


async def throw(generator: AsyncGenerator[None, None], name: str, exception: BaseException) -> None:
    """Raise an exception at a generator's only yield."""
    try:
        await generator.athrow(exception)
    except StopAsyncIteration:
        return
    except RuntimeError as wrapped:
        # Python turns a StopIteration that leaves a generator into a RuntimeError (PEP 479): still the same one.
        if wrapped is not exception and wrapped.__cause__ is exception and isinstance(exception, StopAsyncIteration):
            raise exception from None
        raise
    await _refuse_second_yield(generator, name)


async def _refuse_second_yield(generator: AsyncGenerator[None, None], name: str) -> None:
    await generator.aclose()
    raise RuntimeError(f"{name!r} has a second yield; an @around generator has one")


def _name_of(function: object, decorator: str) -> str:
    """Name an interceptor after its function."""
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str):
        raise TypeError(f"@{decorator} takes a function with a name, not {function!r}")
    return name
