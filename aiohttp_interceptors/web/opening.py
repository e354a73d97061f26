"""From a request to an open stream, and from its end to the rest of the chain."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from aiohttp import hdrs, web

from .accept import accepts_event_stream
from .body import read_body
from .connection import Connection
from .context import RequestContext
from .refusal import not_acceptable
from .response import ChannelResponse, TopicResponse
from .settings import StreamSettings
from .stream import Stream
from .streams import Streams

__all__ = ["Choose", "MakeStream", "enter_stream"]

MakeStream: TypeAlias = Callable[[RequestContext, ChannelResponse, Connection, Streams, Any], Stream]
Choose: TypeAlias = Callable[[RequestContext], Awaitable[object] | object]
T = TypeVar("T")
_Stage: TypeAlias = tuple[object, str, str] | None


def enter_stream(
    context: RequestContext, settings: StreamSettings, make: MakeStream, choose: Choose | None = None
) -> Coroutine[None, None, None]:
    """Return the coroutine that opens a stream and keeps it until it is over.

    What ``choose`` returns, before commit and also for HEAD, ``make`` is given. The coroutine raises what the stream's
    producer raised, once all else is done.
    """
    return _keep(functools.partial(_open, context, settings, make, choose, _stage_of(context)))


async def _keep(opening: Callable[[], Awaitable[Stream | None]]) -> None:
    """Open a stream, wait for its end, send it unless cancelled, and wind up in any case."""
    stream = await opening()
    del opening  # ten thousand open streams shall not each keep what it took to open them
    if stream is None:
        return
    try:
        try:
            await stream.open()
            await stream.over  # here, and no deeper: each frame that waits costs every open stream 200 bytes
            await stream.end_of_body()
        finally:
            await stream.wind_up(patient=stream.reason is not None)
    except BaseException:
        stream.interrupted()
        raise
    stream.raise_failure()


async def _open(
    context: RequestContext, settings: StreamSettings, make: MakeStream, choose: Choose | None, stage: _Stage
) -> Stream | None:
    """Make a stream that has its place in the application. From then on the stream itself gives the place back."""
    _check_still_in(context, stage)
    if context.supersedes("open an event stream"):
        context.response = context.response  # the committed one, so that nothing more is entered
        return None
    request = context.request
    if settings.strict and not accepts_event_stream(_header(request, hdrs.ACCEPT)):
        raise not_acceptable()
    streams = Streams.of(request)
    if request.method != hdrs.METH_HEAD and request.can_read_body:
        body = functools.partial(read_body, request, settings.stall_timeout)
        await streams.unless_closing(request, context.execution_id, body)
    choice = None if choose is None else choose(context)
    if inspect.isawaitable(choice):
        choice = await streams.unless_closing(request, context.execution_id, functools.partial(_await, choice))
    kind = TopicResponse if settings.held and request.method != hdrs.METH_HEAD else ChannelResponse
    response = kind(allow_all_methods=True, ping_interval=settings.heartbeat, send_timeout=settings.stall_timeout)
    if request.method == hdrs.METH_HEAD:
        await _commit(context, response)
        return None
    _check_still_in(context, stage)
    place = None if _has_left(request) else streams.admit(request, context.execution_id)
    stream: Stream | None = None
    try:
        await _commit(context, response)
        if response.connection is not None:
            stream = context.stream = make(context, response, response.connection, streams, choice)
            stream._place = place
    finally:
        if stream is None and place is not None:
            place.give_back()
    return stream


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _has_left(request: web.Request) -> bool:
    """Say whether the client has left, so that it takes no place from another one."""
    return request.transport is None or request.transport.is_closing()


def _check_still_in(context: RequestContext, stage: _Stage) -> None:
    """Raise ``RuntimeError`` if the stage that opens a stream has returned meanwhile."""
    if _stage_of(context) != stage:
        raise RuntimeError("the stage returned before its stream was open; await what the stream's enter returns")


def _stage_of(context: RequestContext) -> _Stage:
    """Return the stage that runs now, if the context is in an execution."""
    execution = context._execution
    return None if execution is None or execution.cursor is None else (execution, *execution.where())


async def _commit(context: RequestContext, response: ChannelResponse) -> None:
    """Send the head; a client that left before is noted by aiohttp by itself."""
    try:
        await response.prepare(context.request)
    except ConnectionError:
        transport = context.request.transport
        if transport is not None and not transport.is_closing():
            raise  # not the client's: an application's hook may have a database, and the client waits for an answer
    context.response = response


def _header(request: web.Request, name: str) -> str | None:
    """Return a header that may have come in several lines as one (RFC 9110, 5.3)."""
    lines = request.headers.getall(name, [])
    return ",".join(lines) if lines else None
