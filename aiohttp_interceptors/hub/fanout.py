"""The edge of the Hub: in each turn of the event loop, once, what is new goes to whom it is for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..errors import FATAL
from ..observe.logs import log as logger
from ..sse.channel import CloseReason
from .arrivals import Arrivals
from .audience import Allowance, Audience, Select
from .log import EXPIRED, Log, Reading
from .record import Record
from .topic import Patterns

if TYPE_CHECKING:
    from .subscription import Subscription

__all__ = ["Fanout"]

# Looks per history_age at topics in which nothing happens: what is too old is not read anyhow, only kept.
LOOKS = 16
# Seconds of a turn of the event loop that go into bringing up streams which have more to read than a turn's records.
CATCHING_UP = 0.005

_Key = tuple[frozenset[str], Select | None, Callable[[bytes], bytes]]


class Fanout:
    """The audiences of a Hub, its log, and the flush that brings them together. One event loop's."""

    def __init__(self, log: Log, history_age: float | None, arrivals: Arrivals | None = None) -> None:
        self.log: Log = log
        self.arrivals: Arrivals = arrivals or Arrivals(log, remote=False)
        self.subscribers: int = 0
        self.live: int = 0
        self.gaps: int = 0
        self.delivered: int = 0
        self._history_age = history_age
        self._audiences: dict[_Key, Audience] = {}
        self._patterns: Patterns[Audience] = Patterns()
        self._dirty: dict[Audience, None] = {}
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._expiry: asyncio.TimerHandle | None = None
        # The latest reading: of a thousand clients that were cut off together, all ask for the same.
        self._read: tuple[tuple[object, ...], Reading] | None = None

    # The event loop.

    def bind(self) -> asyncio.AbstractEventLoop:
        """Belong to the running event loop. Raises ``RuntimeError`` while another one runs, or has open streams."""
        loop, old = asyncio.get_running_loop(), self._loop
        if loop is not old:
            if old is not None and not old.is_closed() and (self.subscribers or old.is_running()):
                raise RuntimeError("this Hub belongs to another event loop; publish_threadsafe reaches its streams")
            self.close()
            self._loop, self._thread = loop, threading.get_ident()
            self._scheduled = False
            if self._dirty:
                self._schedule(loop)
            self._expire()
        return loop

    def elsewhere(self) -> asyncio.AbstractEventLoop:
        """Return the event loop, for another thread. Raises ``RuntimeError`` as long as there is none."""
        if self._loop is None:
            raise RuntimeError("this Hub has no event loop yet: setup(app, hub) gives it the application's")
        return self._loop

    def now(self) -> float:
        """Return the time of the event loop."""
        return self.bind().time()

    def in_loop(self, call: Callable[[], None]) -> None:
        """Call something in the event loop's thread, at once if that is this one."""
        if threading.get_ident() == self._thread:
            call()
        else:
            self.elsewhere().call_soon_threadsafe(call)

    def close(self) -> None:
        """Wait for nothing any more. Twice is once."""
        self.arrivals.close()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def end(self, reason: CloseReason) -> None:
        """End all open streams, after what was published before."""
        for audience in list(self._audiences.values()):
            for subscription in audience.all():
                subscription.end(reason)

    # What is new.

    def spread(self, record: Record) -> None:
        """Have a record written in this turn to all who keep up and asked for its topic."""
        for audience in self._patterns.matching(record.topic):
            audience.pending.append(record)
            self._dirty[audience] = None
        loop = self._loop
        assert loop is not None  # noqa: S101  # bound before anything is published
        if self._dirty and not self._scheduled:
            self._schedule(loop)
        if self._expiry is None and self._history_age is not None:
            self._expiry = loop.call_later(self._history_age, self._expire)

    def mark(self, audience: Audience) -> None:
        """Have an audience flushed in this turn."""
        self._dirty[audience] = None
        if not self._scheduled and self._loop is not None:
            self._schedule(self._loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon(self._flush)  # first, as it may fail: what is noted as scheduled is never scheduled again
        self._scheduled = True

    def _flush(self) -> None:
        """Write to all who keep up, and bring up others as far as the time goes; the rest are first next time."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, {}
        allowance, late = Allowance(CATCHING_UP), []
        for audience in dirty:
            in_time, allowance.postponed = allowance.seconds > 0, False
            self.flush(audience, allowance)
            if allowance.postponed:
                self.mark(audience)
                if not in_time:
                    late.append(audience)
        if late:
            self._dirty = dict.fromkeys(late) | self._dirty

    def flush(self, audience: Audience, allowance: Allowance | None = None) -> None:
        """Flush one audience now."""
        alone = allowance is None
        allowance = allowance or Allowance(CATCHING_UP)
        loop = self._loop
        assert loop is not None  # noqa: S101  # only somebody with an audience flushes
        try:
            self.delivered += audience.flush(loop.time(), allowance)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # a defect, and no reason to leave the other audiences waiting
            logger.exception("hub_flush_failed", topics=sorted(audience.topics), exc_info=error)
            for subscription in audience.all():  # it is not known what they have; their clients come back with it
                subscription.fail(error)
        if alone and allowance.postponed:
            self.mark(audience)

    def miss(self, topic: str, position: int) -> None:
        """Have all who asked for a topic told that a record of it is missing, once for all that are in this turn."""
        live: list[Subscription] = []
        for audience in self._patterns.matching(topic):
            if audience.live:
                self.flush(audience)  # what came before
                live += audience.all_live()
        for subscription in live:
            subscription.pause()
        self.log.miss(topic, position)
        for audience in self._patterns.matching(topic):
            audience.position = position  # all that is not live looks for itself
        for subscription in live:
            subscription.resume()

    def interrupt(self, change: Callable[[], None]) -> None:
        """Change the log's past or its order, and have each stream find out for itself what that means for it."""
        self._flush()
        live = [subscription for audience in self._audiences.values() for subscription in audience.all_live()]
        for subscription in live:
            subscription.pause()
        try:
            change()
        finally:  # whatever came of it, the streams look for themselves
            self._read = None
            for audience in self._audiences.values():
                audience.position = self.log.end
            for subscription in live:
                subscription.resume()

    # What was.

    def expire(self) -> None:
        """Evict some of what is too old."""
        assert self._loop is not None  # noqa: S101  # bound before anybody subscribes
        self.log.expire(self._loop.time(), EXPIRED)

    def read(self, position: int, topics: frozenset[str], most: int, since: Mapping[str, int] | None) -> Reading:
        """Read about as many bytes of the log, from which what is too old is gone."""
        log = self.log
        self.expire()
        if since:
            return log.after(position, topics, most, since)
        asked = position, topics, most, log.end, log.records
        if self._read is None or self._read[0] != asked:
            self._read = asked, log.after(position, topics, most)
        return self._read[1]

    def _expire(self) -> None:
        self._expiry = None
        loop, age = self._loop, self._history_age
        if loop is not None and age is not None:
            now = loop.time()
            self.log.expire(now, EXPIRED)
            due = self.log.next_expiry()
            if due is not None:  # what is due already, because so much was, goes in the next turn
                self._expiry = loop.call_at(now if due <= now else max(due, now + age / LOOKS), self._expire)

    # Who is there.

    def enter(self, topics: frozenset[str], select: Select | None, wrap: Callable[[bytes], bytes]) -> Audience:
        """Return the audience for one more subscription, which is counted."""
        self.subscribers += 1
        return self._join(topics, select, wrap)

    def move(self, audience: Audience, topics: frozenset[str]) -> Audience:
        """Return the audience of a subscription that leaves another one because its topics changed."""
        new = self._join(topics, audience.select, audience.wrap)
        self._leave(audience)
        return new

    def leave(self, audience: Audience) -> None:
        """Count one subscription less."""
        self.subscribers -= 1
        self._leave(audience)

    def listeners(self, topic: str) -> int:
        """Count the subscribers that hear of a topic."""
        return sum(audience.size for audience in self._patterns.matching(topic))

    @property
    def audiences(self) -> int:
        """How many sets of subscribers there are that are told the same."""
        return len(self._audiences)

    def _join(self, topics: frozenset[str], select: Select | None, wrap: Callable[[bytes], bytes]) -> Audience:
        key = topics, select, wrap
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(topics, select, wrap, self.log.end)
            for name in topics:
                self._patterns.add(name, audience)
        return audience

    def _leave(self, audience: Audience) -> None:
        """Forget an audience when its last subscription has left."""
        if not audience.size:
            del self._audiences[audience.topics, audience.select, audience.wrap]
            for name in audience.topics:
                self._patterns.discard(name, audience)
