"""An open stream of a Hub: a subscriber whose outlet is the connection."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable
from contextlib import aclosing

from ..hub.gap import Gap
from ..hub.hub import Hub
from ..hub.subscriber import Subscriber
from ..sse.channel import CloseReason
from ..sse.threadsafe import check_loop
from ..sse.wire import encode
from .accept import is_of_event_source
from .connection import Connection
from .context import RequestContext
from .last_event_id import last_event_id_of
from .producer import Producer, name_of
from .response import ChannelResponse
from .snapshot import Snapshot, SnapshotOf
from .stream import Stream, StreamStatistics
from .streams import Streams
from .topic_settings import TopicSettings

__all__ = ["TopicStream"]

# What was published before such an end is still written; after any other the client comes back for it, or is gone.
_COMPLETED = (CloseReason.CLOSED, CloseReason.SHUTDOWN)


class TopicStream(Stream):
    """One open stream of what is published under some topics."""

    __slots__ = ("_after", "_events", "_hub", "_reason", "_subscription", "_topic_settings")

    told: bool = False
    """Whether the functions that were called for the stream can know that it is over."""

    def __init__(  # made in one place
        self,
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        settings: TopicSettings,
        hub: Hub,
        topics: tuple[str, ...],
    ) -> None:
        super().__init__(context, response, connection, streams, settings)
        self._topic_settings = settings
        self._hub = hub
        self._after = last_event_id_of(context.request)  # be it text or not: what is no id is answered with a gap
        self._events = 0  # of the snapshot
        self._reason: CloseReason | None = None
        policy = settings.policy
        if settings.unprimed is not None and not is_of_event_source(context.request.headers):
            policy = settings.unprimed
        select = None if settings.select is None else functools.partial(settings.select, context)
        self._subscription = hub.subscribe(
            topics, connection, self._on_end, after=self._after, select=select, policy=policy
        )

    @property
    def subscriber(self) -> Subscriber:
        """Its topics, which can be changed."""
        return Subscriber(self._subscription)

    @property
    def reason(self) -> CloseReason | None:
        """Why it ended; ``None`` as long as it has not."""
        return self._reason

    def end(self, reason: CloseReason) -> None:
        """End the stream, for this reason if it is the first: it hears of nothing any more."""
        check_loop(self.over.get_loop(), "end(reason)", "loop.call_soon_threadsafe(stream.end, reason)")
        if self._reason is None:
            self._reason = reason
            try:
                self._subscription.close()
            finally:
                self._finish()

    def close(self) -> None:
        """End the stream because a function failed that was called for it."""
        self.end(CloseReason.ERROR)

    def statistics(self) -> StreamStatistics:
        """Return what the stream has done so far."""
        return StreamStatistics(
            events=self._events + self._subscription.events,
            bytes=self._connection.bytes + self._subscription.written,
            buffered=0,
            unsent=self._connection.unsent,
            dropped=0,
            seconds=self._seconds,
            reason=self._reason,
        )

    async def end_of_body(self) -> None:
        """Send what was published before the end, a piece in each turn of the event loop, and then as any stream."""
        connection = self._connection
        while self._write_rest() and not connection.lost:
            if connection.paused:
                await connection.writable()
            else:
                await asyncio.sleep(0)
        await super().end_of_body()

    async def wind_up(self, *, patient: bool) -> None:
        """See off the functions that were called for it, and tell how it went. Runs to its end also when cancelled."""
        if self._producer is None and self._settings.on_close is not None:
            self._producer = Producer(self, self._context)
        await super().wind_up(patient=patient)

    def _first_frames(self) -> bytes:
        return self._subscription.first()

    def _start(self) -> None:
        called = self._topic_settings.stream_ready or self._topic_settings.snapshot
        if called is not None and not self._settings.held:
            self._producer = producer = Producer(self, self._context, name_of(called))
            producer.start(self._feed, producer)

    def _write_rest(self) -> bool:
        return self.reason in _COMPLETED and self._subscription.rest()

    def connection_changed(self) -> None:
        """Note that the connection is lost, or has room again."""
        if self._connection.loss is not None:
            self.end(self._connection.loss)
        else:
            self._subscription.resume()

    def connection_paused(self) -> None:
        """Note that the connection has no room any more."""
        self._subscription.pause()

    def _on_end(self, reason: CloseReason, error: BaseException | None) -> None:
        if error is not None:
            if self._producer is None:
                self._producer = Producer(self, self._context)
            if self._producer.error is None and self._topic_settings.select is not None:
                self._producer.name = name_of(self._topic_settings.select)
            self._producer.fail(error)
        self.end(reason)

    def _feed(self, producer: Producer) -> Awaitable[object] | None:
        """Call the functions that an application has for its streams, and return what of it is to be awaited."""
        settings = self._topic_settings
        ready = None if settings.stream_ready is None else settings.stream_ready(self.subscriber, self._context)
        awaited = ready if inspect.isawaitable(ready) else None
        if self._reason is not None:  # it has closed its stream, which begins with nothing then
            return awaited
        if settings.snapshot is None or (self._subscription.settled and self._is_resumed()):
            self._subscription.start()
            return awaited
        beginning = asyncio.ensure_future(self._begin_with(settings.snapshot, awaited, producer))
        if inspect.iscoroutine(awaited):
            beginning.add_done_callback(lambda _: awaited.close())  # if it never came to it
        return beginning

    def _is_resumed(self) -> bool:
        """Tell whether the client has the state already, and lacks only changes that the log has."""
        return self._after is not None and self._subscription.gap() is None

    async def _begin_with(self, snapshot_of: SnapshotOf, then: Awaitable[object] | None, producer: Producer) -> None:
        """Write the state before the changes. What is cut before its last event begins with the state again."""
        subscription, log = self._subscription, self._hub.log
        if not subscription.settled:
            await self._hub.locate(self._after)  # before that nobody knew whether it has the state
            if self._is_resumed():
                subscription.start()
                if then is not None:
                    await then
                return
        gap, position = subscription.gap(), log.end
        policy = self._topic_settings.policy
        ready, producer.name = producer.name, name_of(snapshot_of)
        snapshot = await Snapshot.taken(snapshot_of, self._context)
        if snapshot.id is not None:
            position, reason = await self._hub.locate(snapshot.id)
            gap = gap if reason is None else Gap(reason, snapshot.id, None)
        beginning = policy.prefix
        if gap is not None:
            beginning += encode(gap.event(policy.gap_event))
        told = await self._write_snapshot(snapshot, beginning, log.id_of(position))
        if self._reason is not None:
            return
        if told and gap is not None:
            self._events += 1
            subscription.count_gap()
        subscription.start(position, gap, told=told)
        producer.name = ready
        if then is not None:
            await then

    async def _write_snapshot(self, snapshot: Snapshot, beginning: bytes, event_id: str) -> bool:
        """Write the events of a snapshot until the stream ends, and return whether there was one."""
        connection, told = self._connection, False
        async with aclosing(snapshot.frames(beginning, event_id)) as pieces:
            async for count, frames in pieces:
                if connection.paused:
                    await connection.writable()
                if self._reason is not None:  # a frame now would come after what ends the stream
                    break
                connection.write(frames)
                self._events += count
                told = True
        return told
