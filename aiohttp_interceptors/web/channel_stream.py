"""An open stream with a channel: what its producer puts is pumped into the connection."""

from __future__ import annotations

from ..errors import FATAL
from ..observe.facts import EventsDropped
from ..sse.channel import CloseReason, EventChannel
from .connection import BATCH, Connection
from .context import RequestContext
from .producer import Producer, StreamReady
from .response import ChannelResponse
from .settings import ChannelSettings, ErrorEvent
from .stream import Stream, StreamStatistics
from .streams import Streams
from .turn import Turn, turn

__all__ = ["ChannelStream"]


class ChannelStream(Stream):
    """One open stream of one producer."""

    __slots__ = ("_broken", "_dropped", "_due", "_error", "_events", "_feeder", "_ready", "_turn", "channel")

    def __init__(
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: ChannelSettings,
        stream_ready: StreamReady,
    ) -> None:
        super().__init__(context, response, connection, streams, settings)
        self.channel: EventChannel = EventChannel(
            settings.buffer, retry=settings.retry, max_event_size=settings.max_event_size
        )
        self._producer = self._feeder = Producer(self.channel, context)
        self._error = settings.error_event
        self._ready = stream_ready
        self._turn: Turn = turn()
        self._broken = False  # its queue raised, and is not asked again
        self._due = False  # in this turn's pumping already
        self._events = self._dropped = 0
        self.channel.attach(self._wake, self._relieve)

    @property
    def reason(self) -> CloseReason | None:
        """Why it ended; ``None`` as long as it has not."""
        return self.channel.reason

    def end(self, reason: CloseReason) -> None:
        """End the stream, for this reason if it is the first: a ``put`` that waits is told now."""
        self.channel.end(reason)
        self._wake()

    def statistics(self) -> StreamStatistics:
        """Return what the stream has done so far."""
        return StreamStatistics(
            events=self._events,
            bytes=self._connection.bytes,
            buffered=self._buffered,
            unsent=self._connection.unsent,
            dropped=self.channel.dropped,
            seconds=self._seconds,
            reason=self.channel.reason,
        )

    async def wind_up(self, *, patient: bool) -> None:
        """See the producer off and tell how it went. Runs to its end also while being cancelled."""
        try:
            self.end(CloseReason.SHUTDOWN)
            self._report_dropped()
        finally:
            await super().wind_up(patient=patient)

    def pump(self) -> None:
        """Write what was put, and end the stream when it was closed and all is sent."""
        self._due = False
        channel = self.channel
        if channel.reason is not None:
            return
        try:
            self._flush()
            sent = channel.closed and not channel.buffered and not self._connection.paused
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # a queue of the user's own: its stream ends, and no other
            self._fail(error)
            return
        if sent:
            self.end(CloseReason.CLOSED if self._feeder.error is None else CloseReason.ERROR)

    def _fail(self, error: BaseException) -> None:
        """End the stream because its queue raised, which is not asked again."""
        if not self._broken:
            self._broken = True
            self._feeder.fail(error)
        self.end(CloseReason.ERROR)

    @property
    def _buffered(self) -> int:
        if self._broken:
            return 0
        try:
            return self.channel.buffered
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # statistics are asked for by who looks at all streams
            self._fail(error)
            return 0

    def _start(self) -> None:
        self._feeder.start(self._ready, self.channel, self._context)

    def connection_changed(self) -> None:
        """Note that the connection is lost, or has room again."""
        if self._connection.loss is not None:
            self.channel.end(self._connection.loss)
        self._wake()

    def _wake(self) -> None:
        if self.channel.reason is not None:
            self._finish()
        elif not self._due:
            self._turn.add(self)
            self._due = True

    def _flush(self) -> None:
        """Write, in pieces of about a batch, as much as the connection takes."""
        channel, connection = self.channel, self._connection
        while not connection.paused and connection.loss is None:
            frames = channel.take_frames(BATCH)
            if not frames:
                break
            self._events += len(frames)
            connection.write(frames[0] if len(frames) == 1 else b"".join(frames))
            channel.written(len(frames))
        # While the client reads nothing each doubling is told, or there would be a line in the log for every event.
        if channel.lossy and (not connection.paused or channel.dropped >= 2 * self._dropped):
            self._report_dropped()

    def _relieve(self) -> None:
        """Write now what a queue would lose otherwise."""
        if self.channel.reason is None:
            self._flush()

    def _write_rest(self) -> bool:
        if self._broken:
            return False
        try:
            self._flush()
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # the rest is lost with the queue, and the stream still ends
            self._fail(error)
        return self._buffered > 0

    def _error_event(self) -> ErrorEvent | None:
        return self._error

    def _report_dropped(self) -> None:
        total = self.channel.dropped
        if total != self._dropped:
            count, self._dropped = total - self._dropped, total
            self._streams.tell(
                EventsDropped(self._context.execution_id, self._context.request.path, count=count, total=total)
            )
