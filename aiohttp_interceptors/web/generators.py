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
from contextlib import aclosing, closing
from typing import cast

from ..channel import EventChannel
from ..encoder import Encoder, encode_value
from ..exceptions import EXIT_EXCEPTIONS
from .context import RequestContext
from .producer import StreamReady, function_name

__all__ = ["collect", "is_generator_function", "ready_from_generator"]


def is_generator_function(function: object) -> bool:
    """Return whether a function is a plain or an async generator function."""
    return inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)


def ready_from_generator(
    function: Callable[..., object], generate: Callable[..., object], encoder: Encoder
) -> StreamReady:
    """Make a ``stream_ready`` function that puts what a generator yields, and closes the channel at its end.

    Args:
        function: The generator function.
        generate: Calls it with the context.
        encoder: Makes an event of each value.
    """
    if inspect.isasyncgenfunction(function):

        async def ready(channel: EventChannel, context: RequestContext) -> None:
            await _put_all(cast("AsyncGenerator[object, None]", generate(context)), channel, encoder)

    else:

        async def ready(channel: EventChannel, context: RequestContext) -> None:
            events = cast("Generator[object, None, None]", generate(context))
            await _run_in_thread(events, channel, encoder, function_name(function))

    ready.__name__, ready.__qualname__ = getattr(function, "__name__", "generator"), function_name(function)
    return ready


async def collect(generate: Callable[..., object], context: RequestContext) -> list[object]:
    """Return what a generator yields, for an answer that is no stream. Cancelling closes an async generator."""
    events = generate(context)
    if isinstance(events, AsyncGenerator):
        async with aclosing(events):
            return [value async for value in events]
    return await asyncio.to_thread(list, cast("Generator[object, None, None]", events))


async def _put_all(events: AsyncGenerator[object, None], channel: EventChannel, encoder: Encoder) -> None:
    """Put what an async generator yields until it ends or the stream does, and close the generator."""
    async with aclosing(events):
        step = anext(events)
        while True:
            try:
                value = await step
            except StopAsyncIteration:
                break
            try:
                is_open = await channel.put(encode_value(encoder, value))
            except Exception as error:  # noqa: BLE001  # what was yielded is wrong: the traceback shows where
                step = events.athrow(error)
            else:
                if not is_open:
                    return
                step = anext(events)
    channel.close()


async def _run_in_thread(
    events: Generator[object, None, None], channel: EventChannel, encoder: Encoder, name: str
) -> None:
    """Iterate over a generator in a thread, and close the channel at its end.

    If the task is cancelled because the stream has ended, the generator is closed at its next ``yield``, and the first
    cancellation waits for that. A second one abandons the thread.
    """
    finished: Future[bool] = Future()

    def run() -> None:
        try:
            ended = _put_all_threadsafe(events, channel, encoder)
        except BaseException as error:
            finished.set_exception(error)
            if isinstance(error, EXIT_EXCEPTIONS):
                raise
        else:
            finished.set_result(ended)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=f"events of {name}", daemon=True).start()
    waiter = asyncio.wrap_future(finished)
    try:
        ended = await asyncio.shield(waiter)
    except asyncio.CancelledError:
        if waiter.done():  # the generator raised it
            raise
        await asyncio.shield(waiter)
        raise
    if ended:
        channel.close()


def _put_all_threadsafe(events: Generator[object, None, None], channel: EventChannel, encoder: Encoder) -> bool:
    """Put what a generator yields, in its thread. Return ``False`` if the stream ended before the generator."""
    with closing(events):
        value = next(events, _END)
        while value is not _END:
            try:
                is_open = channel.put_threadsafe(encode_value(encoder, value)).result()
            except Exception as error:  # noqa: BLE001  # as in _put_all
                try:
                    value = events.throw(error)
                except StopIteration:
                    return True
            else:
                if not is_open:
                    return False
                value = next(events, _END)
    return True


_END = object()
