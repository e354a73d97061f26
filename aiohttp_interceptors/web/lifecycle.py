"""The lifecycle of an event stream, the same for each kind: open, wait for the end, finish the body, close.

``make_interceptor`` makes the interceptor that opens a stream. ``StreamLifecycle`` is the base of both kinds of
streams: ``ChannelStream`` and ``TopicStream``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias

from aiohttp import hdrs, web

from .._logging import WARN_REASONS, log
from ..channel import CloseReason
from ..exceptions import EXIT_EXCEPTIONS
from ..facts import StreamClosed, StreamFirstEvent, StreamOpened
from ..interceptor import Interceptor
from ..sse import Event, encode
from .access import AccessGuard, access_of
from .app import Drain, Streams
from .commit import log_dropped_change
from .context import RequestContext
from .limits import Slot
from .producer import EarlyProducer, Producer
from .request import accepts_event_stream, combined_header, not_acceptable, read_body, route_of
from .response import ChannelResponse, TopicResponse
from .settings import StreamSettings
from .stream import Stream
from .timers import Timer, timer_queue
from .transport import Connection

__all__ = ["Prepare", "StreamFactory", "StreamLifecycle", "make_interceptor"]


# A stream's lifetime is a random part of max_age, and at least this fraction of it. Otherwise streams that were opened
# together would expire together, and their clients would all reconnect at once.
MIN_AGE_FRACTION = 0.8


class StreamLifecycle(Stream):
    """The connection, the producer and the state of one open stream.

    Its methods are called by ``run_stream``, by the connection, and by the application's registry of streams.
    """

    __slots__ = (
        "_closed_at",
        "_connection",
        "_context",
        "_final_frame",
        "_finished",
        "_guard",
        "_opened_at",
        "_producer",
        "_request",
        "_response",
        "_settings",
        "_slot",
        "_streams",
        "_timer",
        "ended",
    )

    _settings: StreamSettings

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: StreamSettings,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._context = context  # until the chain has ended
        self._request = context.request
        self._response = response
        self._connection = connection
        self._settings = settings
        self._streams = streams
        self._producer: Producer | None = None
        self._slot: Slot | None = None  # held until the stream ends
        self._timer: Timer | None = None  # of max_age
        self._guard: AccessGuard | None = None
        self._final_frame = b""  # written after all events
        self._opened_at = loop.time()
        self._closed_at: float | None = None
        self._finished = False  # close() has returned, and the context is still there
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when the stream has ended, for any reason."""

    # What the two kinds of streams implement.

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether the stream accepts no more events."""

    @property
    @abstractmethod
    def end_observed(self) -> bool:
        """Whether the producer has observed that the stream ended."""

    @abstractmethod
    def producer_failed(self) -> None:
        """End the stream because the producer raised."""

    @abstractmethod
    def connection_changed(self) -> None:
        """Called when the client has disconnected, or writing can resume."""

    def connection_paused(self) -> None:
        """Called when the write buffer exceeds the high-water mark."""

    @abstractmethod
    def _start_producer(self) -> None:
        """Call the application's function, or subscribe to the topics."""

    def _initial_frames(self) -> bytes:
        """Return the frames to send together with deferred headers."""
        return b""

    def _write_remaining(self) -> bool:
        """Write remaining events until the connection is paused, and return whether some are left."""
        return False

    # Opening

    async def open(self) -> None:
        """Register the stream, send deferred headers, and start the producer."""
        if self._streams.reports_everyday_facts:
            request = self._request
            self._streams.report(StreamOpened(self._context.execution_id, request.path, route_of(request)))
        self._streams.add(self)
        if self._guard is not None:
            self._guard.start(self)
        if self._slot is not None:
            self._slot.attach(self)
        self._connection.listener = self
        if isinstance(self._response, TopicResponse):
            await self._response.send_headers(self._initial_frames())
        if self._settings.max_age is not None:
            age = self._settings.max_age * random.uniform(MIN_AGE_FRACTION, 1)  # noqa: S311  # not for security
            self._timer = timer_queue().add(self, asyncio.get_running_loop().time() + age)
        self._start_producer()
        self.connection_changed()  # the client may have disconnected before
        self._context._unbind_log_context()

    def on_timer(self, now: float) -> None:  # noqa: ARG002  # the timer has only one use
        """End a stream that has reached its maximum age."""
        self.end(CloseReason.EXPIRED)

    # Ending the body

    async def finish_body(self) -> None:
        """Write the remaining events and the final event, and end the body.

        A kicked client that does not read is disconnected at once. For other clients the stall timeout applies, and
        while the server stops the drain's timeout.
        """
        self._context._bind_log_context()
        connection, error_sent = self._connection, False
        error = self._producer_error
        if error is not None:
            self._final_frame = self._encode_error_event(error)
            error_sent = bool(self._final_frame)
        while not connection.disconnected:
            if not (self._write_remaining() or connection.paused or self._final_frame):
                if self._is_complete(error_sent=error_sent):
                    with suppress(ConnectionError):  # a write failed, and connection_lost() is yet to be called
                        await self._response.write_eof()
                else:
                    self._response._mark_incomplete()
                return
            if connection.paused and (self.reason is CloseReason.KICKED or not await connection.wait_writable()):
                connection.abort()
                return
            if self._final_frame and not self._write_remaining() and not connection.paused:
                connection.write_frames(self._final_frame)
                self._final_frame = b""

    def _is_complete(self, *, error_sent: bool) -> bool:
        """Return whether the body may end as complete; ``error_sent``: whether the client got an error event."""
        if self.reason is CloseReason.ERROR:
            return error_sent
        return self.reason is CloseReason.CLOSED or not self._is_finite()

    def _encode_error_event(self, error: BaseException) -> bytes:
        event = self._settings.error_event
        if event is None:
            return b""
        try:
            return encode(event if isinstance(event, Event) else event(error))
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as failure:  # noqa: BLE001  # the stream ends without the event
            log.exception("stream_error_event_failed", execution_id=self._context.execution_id, exc_info=failure)
            return b""

    def response_ended(self) -> None:
        """Handle a body that was ended before its stream: the stage returned while the stream was open."""
        if self.reason is None:
            log.exception(
                "stream_left_open",
                execution_id=self._context.execution_id,
                path=self._request.path,
                exc_info=RuntimeError("the stage returned while its stream was open; await what its enter returns"),
            )
            self._response._mark_incomplete()
            self._connection.mark_disconnected(CloseReason.ERROR)  # the response detaches the connection next

    # Closing

    async def close(self, *, allow_grace: bool) -> None:
        """Release everything that the stream holds, wait for the producer, and report the close.

        Completes even while being cancelled, and raises the cancellation afterwards.

        Args:
            allow_grace: Whether the producer has its grace period to observe the end of the stream.
        """
        try:
            try:
                self.end(CloseReason.SHUTDOWN)  # has an effect only if the chain is being cancelled
            finally:
                self._mark_ended()
                self._closed_at = asyncio.get_running_loop().time()
                if self._producer is not None:
                    grace = self._settings.grace if allow_grace and self._streams.allow_grace else 0
                    await self._producer.finish(self._settings.on_close, grace)
        finally:
            self._streams.discard(self)
            if self._connection.disconnected:  # aiohttp does not end the body, which would detach it
                self._connection.detach()
            if self._streams.reports_everyday_facts or self.reason in WARN_REASONS:
                self._report_closed()
            self._finished = True

    def _release(self) -> None:
        if self._finished and self._context._execution is None:  # else a copy of the context was executed
            self._finished, self._producer, self._guard = False, None, None
            self._drop_rest()
            del self._context

    def _drop_rest(self) -> None:
        """Let go of what was not written before the end."""

    def _mark_ended(self) -> None:
        """Release the slot, cancel the timer, and wake ``run_stream``. Idempotent."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._guard is not None:
            self._guard.stop()
        if not self.ended.done():
            self.ended.set_result(None)

    def _report_closed(self) -> None:
        statistics = self.statistics()
        self._streams.report(
            StreamClosed(
                self._context.execution_id,
                self._request.path,
                reason=str(statistics.reason),
                events=statistics.events,
                bytes=statistics.bytes,
                dropped=statistics.dropped,
                seconds=round(statistics.seconds, 3),
                route=route_of(self._request),
                bytes_sent=statistics.bytes_sent,
                exception=self._producer_error,
            )
        )

    def _report_first_event(self, began: float) -> None:
        """Tell the observers that the first event was written, and when the wait for it began, by the loop's clock."""
        request, seconds = self._request, asyncio.get_running_loop().time() - began
        execution_id = self._context.execution_id
        self._streams._observers.tell(StreamFirstEvent(execution_id, request.path, route_of(request), seconds))

    @property
    def _duration(self) -> float:
        """Seconds from the response headers to the close of the stream, or to now."""
        return (self._closed_at or asyncio.get_running_loop().time()) - self._opened_at

    # What the producer raised

    @property
    def _producer_error(self) -> BaseException | None:
        return None if self._producer is None else self._producer.error

    def raise_producer_error(self) -> None:
        """Raise what the producer raised. An ``HTTPException`` is too late, and is dropped."""
        failure = None if self._producer is None else self._producer.failure
        if isinstance(failure, web.HTTPException):
            log_dropped_change(f"raise {failure!r}", self._context, failure)
        elif failure is not None:
            raise failure

    def interrupted(self) -> None:
        """Handle an exception, mostly a cancellation, that is raised instead of what the producer raised."""
        self._log_producer_error()
        if not self._is_complete(error_sent=False):  # if the chain continues, aiohttp would end the body as complete
            self._response._mark_incomplete()

    def _log_producer_error(self) -> None:
        if self._producer is not None and self._producer.error is not None:
            self._producer.log(self._producer.error)

    def _is_producer_error(self, exception: BaseException) -> bool:
        error = self._producer_error
        return error is not None and (error is exception or error is exception.__cause__)

    # What an inspector reads

    @property
    @abstractmethod
    def kind(self) -> str:
        """What fills the stream: ``"channel"`` or ``"topics"``."""

    @property
    def request(self) -> web.Request:
        """The request for the stream."""
        return self._request

    @property
    def connection(self) -> Connection:
        """The connection to the client."""
        return self._connection

    @property
    def opened_at(self) -> float:
        """When the response headers were sent, in seconds of the event loop's clock."""
        return self._opened_at

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose stream it is."""
        return () if self._guard is None else self._guard.owners

    @property
    def topics(self) -> frozenset[str]:
        """The topic names and wildcards of the stream; empty without a Hub."""
        return frozenset()

    @property
    def offset(self) -> int | None:
        """The offset up to which the stream has received records; ``None`` without a Hub."""
        return None

    @property
    @abstractmethod
    def behind(self) -> int:
        """The number of events that wait in the channel, or of records that are still to be read from the history."""

    @property
    def lacks_evicted(self) -> bool:
        """Whether records were evicted from the history before the stream received them."""
        return False

    # What the application's registry and its limits call

    @property
    def finite(self) -> bool:
        """Whether the stream is open and ends by itself, so that a stopping server waits for it."""
        return self.reason is None and self._is_finite()

    def _is_finite(self) -> bool:
        finite = self._settings.finite
        return self._request.method != hdrs.METH_GET if finite is None else finite

    def shut_down(self, drain: Drain) -> None:
        """End the stream because the server stops, with a final event and a delayed reconnection."""
        if self.reason is None:
            retry = self._settings.retry
            if retry is not None:
                retry += int(random.uniform(0, drain.spread) * 1000)  # noqa: S311  # not for security
            if drain.farewell is not None:
                self._final_frame = encode(drain.farewell, retry)
            elif retry is not None:  # such clients are browsers, which ignore a frame without data
                self._final_frame = encode(Event(retry=retry))
            self.end(CloseReason.SHUTDOWN)

    def kick(self, kick_event: Event | None) -> None:
        """End the stream in favour of a newer one of its key, with this final event."""
        if self.reason is None:
            if kick_event is not None:
                self._final_frame = encode(kick_event)
            self.end(CloseReason.KICKED)

    def cancel_producer(self) -> None:
        """End the producer's grace period."""
        if self._producer is not None:
            self._producer.cancel()

    def abort(self) -> None:
        """End the stream without waiting for its client or its producer."""
        self.end(CloseReason.SHUTDOWN)
        self._connection.abort()
        if self._producer is not None:
            self._producer.abort()


StreamFactory: TypeAlias = Callable[[RequestContext, ChannelResponse, Connection, Streams, Any], StreamLifecycle]
"""Makes the stream once the headers are sent. The last argument is what ``Prepare`` returned."""
Prepare: TypeAlias = Callable[[RequestContext], Awaitable[object] | object]
"""Called before the headers are sent, also for HEAD, so that it can still refuse the request.

What it awaits must end when the server stops: ``Streams.run_unless_shutdown``.
"""

_Stage: TypeAlias = tuple[object, str, str] | None


def make_interceptor(
    name: str, settings: StreamSettings, make: StreamFactory, prepare: Prepare | None = None
) -> Interceptor[RequestContext]:
    """Make the interceptor whose ``enter`` opens a stream and completes when it has closed."""

    def enter(context: RequestContext) -> Coroutine[None, None, None]:
        if not isinstance(context, RequestContext):
            raise TypeError(f"{name} needs the RequestContext of an aiohttp request, not {context!r}")
        return run_stream(context, settings, make, prepare)

    return Interceptor(name, enter)


def run_stream(
    context: RequestContext, settings: StreamSettings, make: StreamFactory, prepare: Prepare | None = None
) -> Coroutine[None, None, None]:
    """Return the coroutine that opens a stream and completes when it has closed.

    The coroutine raises what the stream's producer raised. The stage that runs now must await it: a stage that returns
    earlier is detected, which is why this is not a coroutine function itself.
    """
    return _run(context, settings, make, prepare, _current_stage(context))


async def _run(
    context: RequestContext, settings: StreamSettings, make: StreamFactory, prepare: Prepare | None, stage: _Stage
) -> None:
    stream = await _open(context, settings, make, prepare, stage)
    del stage  # each open stream would keep it
    if stream is None:
        return
    try:
        try:
            await stream.open()
            await stream.ended  # awaited here, because each further coroutine costs every open stream 200 bytes
            await stream.finish_body()
        finally:
            await stream.close(allow_grace=stream.reason is not None)
    except BaseException:
        stream.interrupted()
        raise
    stream.raise_producer_error()


async def _open(
    context: RequestContext, settings: StreamSettings, make: StreamFactory, prepare: Prepare | None, stage: _Stage
) -> StreamLifecycle | None:
    """Check the request, acquire a slot, send the headers and make the stream; ``None`` if there is no stream."""
    _check_stage(context, stage)
    if context._drop_if_committed("open an event stream"):
        context.response = context.response  # attaches the committed response, which ends the way in
        return None
    request = context.request
    if settings.strict and not accepts_event_stream(combined_header(request, hdrs.ACCEPT)):
        raise not_acceptable()
    streams = Streams.of(request)
    if request.method != hdrs.METH_HEAD and request.can_read_body:
        body = functools.partial(read_body, request, settings.stall_timeout)
        await streams.run_unless_shutdown(request, context.execution_id, body)
    if not settings.has_access:
        return await _prepare_and_make(context, settings, make, prepare, stage, streams, None)
    guard = _make_guard(context, settings)
    stream: StreamLifecycle | None = None
    try:
        stream = await _prepare_and_make(context, settings, make, prepare, stage, streams, guard)
        if stream is not None:
            stream._guard = guard  # from now on the stream stops it
    finally:
        if stream is None:
            guard.stop()
    return stream


async def _prepare_and_make(
    context: RequestContext,
    settings: StreamSettings,
    make: StreamFactory,
    prepare: Prepare | None,
    stage: _Stage,
    streams: Streams,
    guard: AccessGuard | None,
) -> StreamLifecycle | None:
    """Call ``prepare``, send the headers and make the stream; ``None`` if there is no stream."""
    attached = context._response
    prepared = None if prepare is None else prepare(context)
    if inspect.isawaitable(prepared):
        prepared = await prepared
    stream: StreamLifecycle | None = None
    try:
        if context._response is not attached and context._response is not None and not context.committed:
            return None  # an early producer has attached another response instead
        if guard is not None:
            guard.check_expiry()
        stream = await _commit_and_make(context, settings, make, prepared, stage, streams)
    finally:
        if stream is None and isinstance(prepared, EarlyProducer):
            await prepared.discard()
    return stream


def _make_guard(context: RequestContext, settings: StreamSettings) -> AccessGuard:
    """Ask the application's functions about a stream, and register its owners. Raises what they raise, or a 401."""
    registries = [streams.owners for streams in Streams.all_of(context.request)]
    if settings.hub_owners is not None:
        registries.append(settings.hub_owners)
    guard = AccessGuard(
        context,
        access_of(context, settings.owner, settings.expires_at),
        registries,
        settings.revalidate,
        settings.revalidate_interval,
    )
    guard.check_expiry()
    guard.register()
    return guard


async def _commit_and_make(
    context: RequestContext,
    settings: StreamSettings,
    make: StreamFactory,
    prepared: object,
    stage: _Stage,
    streams: Streams,
) -> StreamLifecycle | None:
    """Acquire a slot, send the headers and make the stream; ``None`` if there is no stream."""
    request = context.request
    defer_headers = settings.defers_headers and request.method != hdrs.METH_HEAD
    response = (TopicResponse if defer_headers else ChannelResponse).of(settings.heartbeat, settings.stall_timeout)
    response._make_encoder = settings.make_encoder()
    if request.method == hdrs.METH_HEAD:
        await _commit(context, response)
        return None
    _check_stage(context, stage)
    slot = None if _client_disconnected(request) else streams.admit(request, context.execution_id)
    stream: StreamLifecycle | None = None
    try:
        await _commit(context, response)
        if response.connection is not None:
            stream = context.stream = make(context, response, response.connection, streams, prepared)
            stream._slot = slot  # from now on the stream releases it
    finally:
        if stream is None and slot is not None:
            slot.release()
    return stream


def _client_disconnected(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _current_stage(context: RequestContext) -> _Stage:
    execution = context._execution
    return None if execution is None or not execution.started else (execution, *execution.current_stage())


def _check_stage(context: RequestContext, stage: _Stage) -> None:
    """Raise ``RuntimeError`` if the stage that opens a stream has returned in the meantime."""
    if _current_stage(context) != stage:
        raise RuntimeError("the stage returned before its stream was open; await what the stream's enter returns")


async def _commit(context: RequestContext, response: ChannelResponse) -> None:
    """Prepare the response, and attach it even if the client has disconnected, which aiohttp logs."""
    try:
        await response.prepare(context.request)
    except ConnectionError:
        if not _client_disconnected(context.request):
            raise  # raised by an on_response_prepare handler: the client waits for an answer
    if context._response is not response:  # a copy of the request's context opens the stream
        context.response = response
