"""One open stream, whatever feeds it: how it begins, why it ends, and what is told of it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from aiohttp import hdrs, web

from .._logging import log
from ..channel import CloseReason
from ..exceptions import FATAL
from ..facts import StreamClosed, StreamOpened
from ..sse import Event, encode
from .app import Drain, Streams
from .commit import drop
from .context import RequestContext
from .limits import Slot
from .producer import Producer
from .request import accepts_event_stream, not_acceptable, read_body
from .response import ChannelResponse, TopicResponse
from .settings import ErrorEvent, StreamSettings
from .timers import Timer, timer_queue
from .transport import Connection

__all__ = ["Choose", "MakeStream", "Stream", "StreamStatistics", "enter_stream"]


# The part of max_age that a stream lives at least; the rest is left to chance, so that streams that were opened
# together do not come back together.
YOUNGEST = 0.8


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """What an open stream, or one that is over, has done."""

    events: int
    """Sent; heartbeats are none."""
    bytes: int
    """Of the events sent, without the chunk sizes of HTTP."""
    buffered: int
    """Events that wait in the channel."""
    unsent: int
    """Bytes that the transport holds because the client does not read."""
    dropped: int
    """Events that a queue which loses events has lost."""
    seconds: float
    """Since the head was on the wire, until the end if it is over."""
    reason: CloseReason | None
    """Why it ended; ``None`` as long as it has not."""


class Stream(ABC):
    """One open stream: its connection, what feeds it, and the one reason for its end."""

    __slots__ = (
        "_began",
        "_connection",
        "_context",
        "_ended",
        "_last_words",
        "_producer",
        "_response",
        "_settings",
        "_slot",
        "_streams",
        "_timer",
        "over",
    )  # fmt: skip

    _settings: StreamSettings

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: StreamSettings,
    ) -> None:
        self._context = context
        self._response = response
        self._connection = connection
        self._settings = settings
        self._streams = streams
        self._producer: Producer | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the stream is over, whatever ended it."""
        self._slot: Slot | None = None  # under the application's limits, until it is over
        self._timer: Timer | None = None
        self._last_words = b""
        self._began = connection.last_write  # and not a number of its own for each open stream
        self._ended: float | None = None

    @property
    def finite(self) -> bool:
        """Whether its producer ends it after some time, so that a stopping server may wait for that."""
        return self.reason is None and self._is_finite()

    def _is_finite(self) -> bool:
        finite = self._settings.finite
        return self._context.request.method != hdrs.METH_GET if finite is None else finite

    # What is different for each kind.

    @property
    @abstractmethod
    def reason(self) -> CloseReason | None:
        """Why it ended; ``None`` as long as it has not."""

    @abstractmethod
    def end(self, reason: CloseReason) -> None:
        """End the stream, for this reason if it is the first: whoever feeds it is told now."""

    @abstractmethod
    def statistics(self) -> StreamStatistics:
        """Return what the stream has done so far."""

    @abstractmethod
    def _start(self) -> None:
        """Call who feeds it."""

    @abstractmethod
    def connection_changed(self) -> None:
        """Note that the connection is lost, or has room again."""

    def connection_paused(self) -> None:  # noqa: B027  # not everybody needs to know
        """Note that the connection has no room any more."""

    def _first_frames(self) -> bytes:
        """Return the frames that go with the head, if that has waited."""
        return b""

    def _write_rest(self) -> bool:
        """Write what still waits, as far as the connection takes it, and return whether more does."""
        return False

    def _error_event(self) -> ErrorEvent | None:
        """Return what tells a page that its stream ends because of an error."""
        return None

    @property
    def _seconds(self) -> float:
        """Since the head was on the wire, until the end if it is over."""
        return (self._ended or asyncio.get_running_loop().time()) - self._began

    # The life of a stream.

    async def open(self) -> None:
        """Send what goes with the head, and begin."""
        self._streams.tell(StreamOpened(self._context.execution_id, self._context.request.path))
        self._streams.add(self)
        if self._slot is not None:
            self._slot.attach(self)
        self._connection.owner = self
        if isinstance(self._response, TopicResponse):
            await self._response.begin(self._first_frames())
        self.begin()
        self._context.take_off_log_lines()

    def begin(self) -> None:
        """Call who feeds it, and have the clock look after it."""
        if self._settings.max_age is not None:
            loop, age = asyncio.get_running_loop(), self._settings.max_age * random.uniform(YOUNGEST, 1)  # noqa: S311
            self._timer = timer_queue().add(self, loop.time() + age)
        self._start()
        self.connection_changed()  # it may be lost already

    def on_timer(self, now: float) -> None:  # noqa: ARG002  # one visit only, whatever the time
        """End a stream that is old enough."""
        self.end(CloseReason.EXPIRED)

    async def end_of_body(self) -> None:
        """Send what waits and the last words, and tell the client that the stream is complete, if it is.

        A client that was kicked and does not read is cut; for any other the connection's stall limit counts, and for
        a server that stops its drain's.
        """
        self._context.put_on_log_lines()
        connection, told = self._connection, False
        if self._producer is not None and self._producer.error is not None:
            self._last_words = self._words_for(self._producer.error)
            told = bool(self._last_words)
        while not connection.lost:
            if not (self._write_rest() or connection.paused or self._last_words):
                if self._is_complete(told=told):
                    with suppress(ConnectionError):  # the last write failed, and the event loop has yet to say so
                        await self._response.write_eof()
                else:
                    self._response.cut()
                return
            if connection.paused and (self.reason is CloseReason.KICKED or not await connection.writable()):
                connection.abort()
                return
            if self._last_words and not self._write_rest() and not connection.paused:
                connection.write_frames(self._last_words)
                self._last_words = b""

    def _is_complete(self, *, told: bool) -> bool:
        """Say whether the body ends as complete; ``told`` is whether an event has told the client of an error."""
        if self.reason is CloseReason.ERROR:
            return told
        return self.reason is CloseReason.CLOSED or not self._is_finite()

    async def wind_up(self, *, patient: bool) -> None:
        """See the producer off and tell how it went. Runs to its end also while being cancelled.

        If ``patient``, a producer that is not waiting in its channel has its grace to come back to it.
        """
        try:
            try:
                self.end(CloseReason.SHUTDOWN)  # unless it is over already: we are being cancelled
            finally:
                self._finish()
                self._ended = asyncio.get_running_loop().time()
                if self._producer is not None:
                    grace = self._settings.grace if patient and self._streams.patient else 0
                    await self._producer.see_off(self._settings.on_close, grace)
        finally:
            self._streams.discard(self)
            self._report_closed()

    def interrupted(self) -> None:
        """Note that another exception, mostly a cancellation, is raised in the place of what the producer raised."""
        self.log_failure()
        if not self._is_complete(told=False):  # the chain may go on all the same, and aiohttp ends the body
            self._response.cut()

    def _finish(self) -> None:
        """Note that it is over: its place is free, its timer stops, and its chain goes on. Idempotent."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.over.done():
            self.over.set_result(None)

    def raise_failure(self) -> None:
        """Raise what the producer raised; an ``HTTPException`` comes too late and is dropped."""
        failure = None if self._producer is None else self._producer.failure
        if isinstance(failure, web.HTTPException):
            drop(f"raise {failure!r}", self._context, failure)
        elif failure is not None:
            raise failure

    def log_failure(self) -> None:
        """Log what the producer raised, where it is not raised to aiohttp."""
        if self._producer is not None and self._producer.error is not None:
            self._producer.log(self._producer.error)

    def failed_with(self, exception: BaseException) -> bool:
        """Say whether it is what the producer raised."""
        error = None if self._producer is None else self._producer.error
        return error is not None and (error is exception or error is exception.__cause__)

    def response_ended(self) -> None:
        """End a stream whose response was ended by others: its stage returned while the stream was open."""
        if self.reason is None:
            log.exception(
                "stream_left_open",
                execution_id=self._context.execution_id,
                path=self._context.request.path,
                exc_info=RuntimeError("the stage returned while its stream was open; await what its enter returns"),
            )
            self._response.cut()
            self._connection.lose(CloseReason.ERROR)  # it is released now, and nothing more is to be waited for

    def hurry(self) -> None:
        """Cancel a producer that has not come back to its channel."""
        if self._producer is not None:
            self._producer.hurry()

    def say_farewell(self, drain: Drain) -> None:
        """End the stream because the server stops, and tell its client when to come back."""
        if self.reason is None:
            retry = self._settings.retry
            if retry is not None:  # what carries no data is for browsers only, and retry says that it is one
                retry += int(random.uniform(0, drain.spread) * 1000)  # noqa: S311  # nothing secret
            if drain.farewell is not None:
                self._last_words = encode(drain.farewell, retry)
            elif retry is not None:
                self._last_words = encode(Event(retry=retry))
            self.end(CloseReason.SHUTDOWN)

    def kick(self, final: Event | None) -> None:
        """End the stream for a newer one, with this as its last event if the client takes it now."""
        if self.reason is None:
            if final is not None:
                self._last_words = encode(final)
            self.end(CloseReason.KICKED)

    def abort(self) -> None:
        """End the stream and wait for nobody, neither its client nor its producer."""
        self.end(CloseReason.SHUTDOWN)
        self._connection.abort()
        if self._producer is not None:
            self._producer.abandon()

    def _words_for(self, error: BaseException) -> bytes:
        """Make the frame that tells a page of an error, if it is to be told."""
        event = self._error_event()
        if event is None:
            return b""
        try:
            return encode(event if isinstance(event, Event) else event(error))
        except FATAL:
            raise
        except BaseException as failure:  # noqa: BLE001  # the stream ends anyhow, and the page is told nothing
            log.exception("stream_error_event_failed", execution_id=self._context.execution_id, exc_info=failure)
            return b""

    def _report_closed(self) -> None:
        done = self.statistics()
        self._streams.tell(
            StreamClosed(
                self._context.execution_id,
                self._context.request.path,
                reason=str(done.reason),
                events=done.events,
                bytes=done.bytes,
                dropped=done.dropped,
                seconds=round(done.seconds, 3),
            )
        )


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
    slot = None if _has_left(request) else streams.admit(request, context.execution_id)
    stream: Stream | None = None
    try:
        await _commit(context, response)
        if response.connection is not None:
            stream = context.stream = make(context, response, response.connection, streams, choice)
            stream._slot = slot
    finally:
        if stream is None and slot is not None:
            slot.release()
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
