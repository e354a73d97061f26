"""Generators that produce the events of a stream.

An async generator runs in the task of the stream's producer. A plain generator, as synchronous libraries have them,
runs in a thread of its own. What a generator yields is encoded as an event; a value that cannot be encoded is raised at
its ``yield``.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing, suppress
from functools import partial

from .._checks import unwrap_partial
from .._signature import innermost
from .._threads import run_in_loop, run_in_thread
from ..channel import EventChannel
from ..encoder import Encoder, encode_value
from .context import RequestContext
from .producer import EarlyProducer, EarlyReady, function_name

__all__ = ["collect", "is_generator_function", "ready_from_generator"]


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
            ended = await run_in_thread(
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

    return await run_in_thread(function_name(function), collect_in_thread)


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
