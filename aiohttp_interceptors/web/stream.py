"""One open stream: pump a channel into a connection until one of them is over."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass

from ..observe.facts import EventsDropped, StreamClosed
from ..observe.logs import log
from ..sse.channel import CloseReason, EventChannel
from ..sse.event import Event
from ..sse.wire import encode
from .connection import BATCH, Connection
from .context import RequestContext
from .drain import Drain
from .producer import Producer, StreamReady
from .response import ChannelResponse
from .rounds import Visit, rounds
from .settings import StreamSettings
from .streams import Streams
from .turn import Turn, turn

__all__ = ["Stream", "StreamStatistics"]

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


class Stream:
    """One open stream: its channel, its connection, and the one reason for its end."""

    __slots__ = ("_began", "_broken", "_connection", "_context", "_dropped", "_due", "_ended", "_events", "_last_words",
                 "_producer", "_response", "_settings", "_streams", "_turn", "_visit", "channel", "over")  # fmt: skip

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        settings: StreamSettings,
        streams: Streams,
    ) -> None:
        self._context = context
        self._response = response
        self._connection = connection
        self._settings = settings
        self._streams = streams
        self.channel: EventChannel = EventChannel(
            settings.buffer, retry=settings.retry, max_event_size=settings.max_event_size
        )
        self._producer = Producer(self.channel, context)
        self._turn: Turn = turn()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the stream is over, whatever ended it."""
        self._visit: Visit | None = None
        self._last_words = b""
        self._broken = False  # its queue raised, and is not asked again
        self._due = False  # in this turn's pumping already
        self._events = self._dropped = 0
        self._began = time.monotonic()
        self._ended: float | None = None
        self.channel.attach(self._wake, self._relieve)
        connection.on_change = self._on_change

    @property
    def finite(self) -> bool:
        """Whether its producer ends it after some time, so that a stopping server may wait for that."""
        return self._settings.finite

    # The life of a stream: begin, wait until it is over, end_of_body unless cancelled, and wind_up in any case.

    def begin(self, stream_ready: StreamReady) -> None:
        """Call the producer, and have the clock look after the stream."""
        if self._settings.max_age is not None:
            loop, age = asyncio.get_running_loop(), self._settings.max_age * random.uniform(YOUNGEST, 1)  # noqa: S311
            self._visit = rounds().add(self, loop.time() + age)
        self._producer.start(stream_ready)
        self._on_change()  # it may be lost already

    async def wind_up(self) -> None:
        """See the producer off and tell how it went. Runs to its end also while being cancelled."""
        self.end(CloseReason.SHUTDOWN)  # unless it is over already: we are being cancelled
        if self._visit is not None:
            self._visit.cancel()
        self._report_dropped()
        self._ended = time.monotonic()
        try:
            await self._producer.see_off(self._settings.on_close)
        finally:
            self._streams.discard(self)
            self._report_closed()

    def end(self, reason: CloseReason) -> None:
        """End the stream, for this reason if it is the first: a ``put`` that waits is told now."""
        self.channel.end(reason)
        self._wake()

    def say_farewell(self, drain: Drain) -> None:
        """End the stream because the server stops, and tell its client when to come back."""
        if self.channel.reason is None:
            retry = self._settings.retry
            if retry is not None:  # what carries no data is for browsers only, and retry says that it is one
                retry += int(random.uniform(0, drain.spread) * 1000)  # noqa: S311  # nothing secret
            if drain.farewell is not None:
                self._last_words = encode(drain.farewell, retry)
            elif retry is not None:
                self._last_words = encode(Event(retry=retry))
            self.end(CloseReason.SHUTDOWN)

    def abort(self) -> None:
        """End the stream and wait for nobody, neither its client nor its producer."""
        self.end(CloseReason.SHUTDOWN)
        self._connection.abort()
        self._producer.abandon()

    def statistics(self) -> StreamStatistics:
        """Return what the stream has done so far."""
        return StreamStatistics(
            events=self._events,
            bytes=self._connection.bytes,
            buffered=self.channel.buffered,
            unsent=self._connection.unsent,
            dropped=self.channel.dropped,
            seconds=(self._ended or time.monotonic()) - self._began,
            reason=self.channel.reason,
        )

    # What wakes it: the channel, the connection, the clock.

    def _wake(self) -> None:
        if self.channel.reason is not None:
            if not self.over.done():
                self.over.set_result(None)
        elif not self._due:
            self._due = True
            self._turn.add(self)

    def _on_change(self) -> None:
        if self._connection.loss is not None:
            self.channel.end(self._connection.loss)
        self._wake()

    def visit(self, now: float) -> None:  # noqa: ARG002  # one visit only, whatever the time
        """End a stream that is old enough."""
        self.end(CloseReason.EXPIRED)

    def pump(self) -> None:
        """Write what was put, and end the stream when it was closed and all is sent."""
        self._due = False
        channel = self.channel
        if channel.reason is not None:
            return
        try:
            self._flush()
        except Exception as error:  # noqa: BLE001  # a queue of the user's own: its stream ends, and no other
            log.exception("stream_buffer_failed", execution_id=self._context.execution_id, exc_info=error)
            self._broken = True
            self.end(CloseReason.ERROR)
        if channel.closed and not channel.buffered and not self._connection.paused:
            self.end(CloseReason.CLOSED if self._producer.error is None else CloseReason.ERROR)

    def _flush(self) -> None:
        """Write, in pieces of about a batch, as much as the connection takes."""
        channel, connection = self.channel, self._connection
        while not connection.paused and connection.loss is None:
            frames = channel.take_frames(BATCH)
            if not frames:
                break
            self._events += len(frames)
            connection.write(frames[0] if len(frames) == 1 else b"".join(frames))
        # While the client reads nothing each doubling is told, or there would be a line in the log for every event.
        if channel.lossy and (not connection.paused or channel.dropped >= 2 * self._dropped):
            self._report_dropped()

    def _relieve(self) -> None:
        """Write now what a queue would lose otherwise."""
        if self.channel.reason is None:
            self._flush()

    async def end_of_body(self) -> None:
        """Send what was put and the last words, and tell the client that the stream is complete.

        A client that was kicked and does not read is cut; for any other the connection's stall limit counts, and for
        a server that stops its drain's.
        """
        connection, channel = self._connection, self.channel
        if self._producer.error is not None:
            self._last_words = self._error_event(self._producer.error)
        while not connection.lost:
            if not (connection.paused or (channel.buffered and not self._broken) or self._last_words):
                with suppress(ConnectionError):  # the last write failed, and the event loop has yet to say so
                    await self._response.write_eof()
                return
            if connection.paused and (channel.reason is CloseReason.KICKED or not await connection.writable()):
                connection.abort()
                return
            if not self._broken:
                self._flush()
            if self._last_words and not connection.paused:
                connection.write(self._last_words)
                self._last_words = b""

    def _error_event(self, error: BaseException) -> bytes:
        """Make the frame that tells a page of an error, if it is to be told."""
        event = self._settings.error_event
        if event is None:
            return b""
        try:
            return encode(event if isinstance(event, Event) else event(error))
        except Exception as failure:  # noqa: BLE001  # the stream ends anyhow, and the page is told nothing
            log.exception("stream_error_event_failed", execution_id=self._context.execution_id, exc_info=failure)
            return b""

    # What is told.

    def _report_dropped(self) -> None:
        total = self.channel.dropped
        if total != self._dropped:
            count, self._dropped = total - self._dropped, total
            self._streams.tell(
                EventsDropped(self._context.execution_id, self._context.request.path, count=count, total=total)
            )

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
