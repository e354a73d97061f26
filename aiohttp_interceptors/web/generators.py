"""Generators that produce the events of a stream.

An async generator runs in the task of the stream's producer. A plain generator, as synchronous libraries have them,
runs in a thread of its own. What a generator yields is encoded as an event; a value that cannot be encoded is raised at
its ``yield``.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from contextlib import aclosing, closing, suppress
from functools import partial
from typing import TypeVar

from .._checks import unwrap_partial
from .._logging import log
from .._signature import innermost
from .._threads import run_in_loop
from ..channel import EventChannel
from ..encoder import Encoder, encode_value
from ..exceptions import EXIT_EXCEPTIONS
from .context import RequestContext
from .producer import EarlyProducer, EarlyReady, function_name

__all__ = ["collect", "is_generator_function", "ready_from_generator"]


T = TypeVar("T")


def is_generator_function(function: object) -> bool:
    """Return whether a function is a generator function, plain or async, or wraps one with ``functools.wraps``."""
    outer = unwrap_partial(function)
    if inspect.iscoroutinefunction(outer):
        return False
    form = innermost(outer)
    return inspect.isasyncgenfunction(form) or inspect.isgeneratorfunction(form)


def ready_from_generator(
    function: Callable[..., object], generate: Callable[..., object], encoder: Encoder
) -> EarlyReady:
    """Make the function of an ``EarlyProducer`` that puts what a generator yields, and closes the channel at its end.

    Args:
        function: The generator function.
        generate: Calls it with the context.
        encoder: Makes an event of each value.
    """

    async def ready(early: EarlyProducer, context: RequestContext) -> None:
        events = _generator(function, generate(context))
        if isinstance(events, AsyncGenerator):
            ended = await _put_all(events, early, encoder)
        else:
            loop = asyncio.get_running_loop()
            ended = await _run_in_thread(
                function_name(function), lambda _: _put_all_threadsafe(events, early, encoder, loop)
            )
        if ended:
            early.end()

    ready.__name__, ready.__qualname__ = getattr(function, "__name__", "generator"), function_name(function)
    return ready


async def collect(
    function: Callable[..., object], generate: Callable[..., object], context: RequestContext
) -> list[object]:
    """Return everything that a generator yields, for an answer that is no stream. Cancelling closes the generator."""
    events = _generator(function, generate(context))
    if isinstance(events, AsyncGenerator):
        async with aclosing(events):
            return [value async for value in events]

    def collect_in_thread(stop: threading.Event) -> list[object]:
        values = []
        with closing(events):
            for value in events:
                if stop.is_set():
                    break
                values.append(value)
        return values

    return await _run_in_thread(function_name(function), collect_in_thread)


def _generator(
    function: Callable[..., object], result: object
) -> AsyncGenerator[object, None] | Generator[object, None, None]:
    if isinstance(result, AsyncGenerator | Generator):
        return result
    raise TypeError(f"{function!r} returned {result!r}, and a generator of events was expected")


async def _put_all(events: AsyncGenerator[object, None], early: EarlyProducer, encoder: Encoder) -> bool:
    """Put what an async generator yields. Return ``False`` if the stream ended before the generator.

    Whatever is raised at a ``put``, a cancellation included, is raised at the generator's ``yield``, as it would be in
    a coroutine.
    """
    put = early.put
    async with aclosing(events):
        step = anext(events)
        while True:
            try:
                value = await step
            except StopAsyncIteration:
                return True
            try:
                is_open = await put(encode_value(encoder, value))
            except asyncio.CancelledError as error:
                step = events.athrow(error)
                continue
            except Exception as error:  # noqa: BLE001  # what was yielded is wrong: the traceback shows where
                await asyncio.sleep(0)  # a generator that handles it and goes on must not block the event loop
                if early.channel.closed:
                    return False
                step = events.athrow(error)
                continue
            if not is_open:
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await events.athrow(asyncio.CancelledError())
                return False
            put = early.channel.put
            step = anext(events)


def _put_all_threadsafe(
    events: Generator[object, None, None], early: EarlyProducer, encoder: Encoder, loop: asyncio.AbstractEventLoop
) -> bool:
    """Put what a generator yields, in its thread. Return ``False`` if the stream ended before the generator."""
    channel: EventChannel = early.channel
    is_first = True
    with closing(events):
        value = next(events, _END)
        while value is not _END:
            try:
                event = encode_value(encoder, value)
                future = run_in_loop(loop, partial(early.put, event)) if is_first else channel.put_threadsafe(event)
                is_open = future.result()
            except Exception as error:  # noqa: BLE001  # as in _put_all
                if channel.closed or loop.is_closed():
                    return False
                try:
                    value = events.throw(error)
                except StopIteration:
                    return True
                continue
            if not is_open:
                return False
            is_first = False
            value = next(events, _END)
    return True


_END = object()


async def _run_in_thread(name: str, function: Callable[[threading.Event], T]) -> T:
    """Call a function in a daemon thread, with an event that is set when it should stop, and return its result.

    The first cancellation sets the event and waits for the function. A second one abandons the thread.
    """
    finished: Future[T] = Future()
    stop = threading.Event()

    def run() -> None:
        try:
            result = function(stop)
        except BaseException as error:
            finished.set_exception(error)
            if isinstance(error, EXIT_EXCEPTIONS):
                raise
        else:
            finished.set_result(result)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=f"events of {name}", daemon=True).start()
    waiter = asyncio.wrap_future(finished)
    try:
        return await asyncio.shield(waiter)
    except asyncio.CancelledError:
        stop.set()
        if not waiter.done():  # otherwise the function raised it
            try:
                await asyncio.shield(waiter)
            except asyncio.CancelledError:
                log.warning("stream_thread_abandoned", producer=name)
                waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
                raise
        raise
