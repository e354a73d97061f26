"""What has happened: the last facts of streams and Hubs, and one sample per second of the last minutes.

Facts are kept as they are, in two rings with a fixed size, so that ten thousand clients that reconnect do not push out
the fact that a broker was lost. They become text only when a page reads them.
"""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections import deque
from collections.abc import Callable, Container
from functools import partial
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from ...facts import (
    EventsDropped,
    HubDown,
    HubFact,
    HubFlushed,
    HubGap,
    HubPublished,
    HubResumed,
    HubUp,
    StreamClosed,
    StreamFact,
    StreamFirstEvent,
    StreamOpened,
    StreamRefused,
)
from ...web.app import Streams

__all__ = ["MAX_FACTS", "SAMPLES", "Recorder", "Sample"]


MAX_FACTS = 200
"""Number of facts that are kept, of everyday ones and of notable ones each."""
SAMPLES = 300
"""Number of seconds of which a sample is kept."""
MAX_TEXT = 300  # characters of a fact that a page receives
_EVERYDAY_REASONS = frozenset({"client_left", "closed", "shutdown", "expired", "kicked"})
_EVERYDAY_OUTCOMES = frozenset({"stored", "cancelled"})

Value: TypeAlias = float | int | str | bool | None
"""A value of JSON."""


class Sample:
    """One second. A number that was not measured, because no page was open, is ``None``."""

    __slots__ = ("closed", "delivered", "flush", "lag", "opened", "publish", "published", "second")

    def __init__(self, second: int) -> None:
        self.second: int = second
        """Unix time, in seconds."""
        self.published: int | None = None
        """Events that this process has published."""
        self.delivered: int | None = None
        """Events that were written to streams of a Hub, counted once per stream."""
        self.opened: int = 0
        """Streams that were opened."""
        self.closed: int = 0
        """Streams that have ended."""
        self.lag: float | None = None
        """Longest delay of the event loop, in seconds."""
        self.flush: float | None = None
        """Longest flush of a Hub, in seconds."""
        self.publish: float | None = None
        """Longest wait for a broker that had to store an event, in seconds."""

    def values(self) -> list[Value]:
        """Return the values for a page, with durations in milliseconds."""
        durations = (None if each is None else round(each * 1000, 3) for each in (self.lag, self.flush, self.publish))
        return [self.second, self.published, self.delivered, self.opened, self.closed, *durations]


class _Noted(NamedTuple):
    """A fact, and when and where it happened."""

    number: int
    at: float
    source: Streams | str
    """The registry of the stream, or the name of the Hub."""
    fact: StreamFact | HubFact
    notable: bool
    error: str
    """Name of the class of a producer's exception. The exception itself would keep its frames in memory."""


_number = attrgetter("number")


class Recorder:
    """Keeps the last facts and the samples of the last minutes.

    It is called for each fact, and does as little as possible then.
    """

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        """The samples, oldest first. Seconds in which nothing happened and no page was open have none."""
        self.down: dict[str, HubDown] = {}
        """By the name of a Hub, the fact that it lost its broker, until it is connected again."""
        self._everyday: deque[_Noted] = deque(maxlen=MAX_FACTS)
        self._notable: deque[_Noted] = deque(maxlen=MAX_FACTS)
        self._last_number = 0

    # Listening

    def stream_observer(self, streams: Streams) -> Callable[[StreamFact], None]:
        """Return an observer of a registry."""
        return partial(self._on_stream_fact, streams)

    def hub_observer(self, name: str) -> Callable[[HubFact], None]:
        """Return an observer of a Hub."""
        return partial(self._on_hub_fact, name)

    def sample(self) -> Sample:
        """Return the sample of this second."""
        second = int(time.time())
        samples = self.samples
        if not samples or samples[-1].second < second:
            samples.append(Sample(second))
        return samples[-1]  # if the clock was set back, the last one goes on

    def note(self, source: Streams | str, fact: StreamFact | HubFact, *, notable: bool) -> None:
        """Keep a fact."""
        error = ""
        if isinstance(fact, StreamClosed) and fact.exception is not None:
            error = type(fact.exception).__name__
            fact = dataclasses.replace(fact, exception=None)
        self._last_number += 1
        ring = self._notable if notable else self._everyday
        ring.append(_Noted(self._last_number, time.time(), source, fact, notable, error))

    def forget_others(self, registries: Container[Streams]) -> None:
        """Forget the facts of all registries but these, and the samples that may contain others."""
        for ring in (self._everyday, self._notable):
            kept = [each for each in ring if isinstance(each.source, str) or each.source in registries]
            if len(kept) < len(ring):
                ring.clear()
                ring.extend(kept)
                self.samples.clear()

    def _on_stream_fact(self, streams: Streams, fact: StreamFact) -> None:
        if isinstance(fact, StreamOpened):
            self.sample().opened += 1
            self.note(streams, fact, notable=False)
        elif isinstance(fact, StreamClosed):
            self.sample().closed += 1
            self.note(streams, fact, notable=fact.reason not in _EVERYDAY_REASONS or fact.exception is not None)
        else:
            self.note(streams, fact, notable=not isinstance(fact, StreamFirstEvent))

    def _on_hub_fact(self, name: str, fact: HubFact) -> None:
        if isinstance(fact, HubFlushed):
            sample = self.sample()
            sample.flush = fact.seconds if sample.flush is None else max(sample.flush, fact.seconds)
            return
        if isinstance(fact, HubPublished):
            sample = self.sample()
            sample.publish = fact.seconds if sample.publish is None else max(sample.publish, fact.seconds)
            if fact.outcome in _EVERYDAY_OUTCOMES:
                return
        elif isinstance(fact, HubDown):
            self.down[name] = fact
        elif isinstance(fact, HubResumed):
            self.down.pop(name, None)
        # A Hub is up once, when it starts. After a lost connection it has resumed.
        self.note(name, fact, notable=not isinstance(fact, HubUp))

    # Reading

    def facts_after(self, number: int) -> tuple[list[dict[str, Value]], int]:
        """Return the facts after a number, oldest first, and the number of the last one."""
        found = heapq.merge(
            *[[each for each in ring if each.number > number] for ring in (self._everyday, self._notable)], key=_number
        )
        return [_shown(each) for each in found], self._last_number

    def samples_since(self, second: int) -> list[list[Value]]:
        """Return the values of the samples since a second, oldest first."""
        return [sample.values() for sample in self.samples if sample.second >= second]


def _shown(noted: _Noted) -> dict[str, Value]:
    """Return a fact as a page shows it."""
    where = noted.source if isinstance(noted.source, str) else getattr(noted.fact, "path", "")
    text = _text_of(noted.fact) + (f", {noted.error} in its producer" if noted.error else "")
    return {
        "number": noted.number,
        "at": round(noted.at, 3),
        "name": type(noted.fact).__name__,
        "where": where[:MAX_TEXT],
        "text": text[:MAX_TEXT],
        "notable": noted.notable,
    }


def _text_of(fact: StreamFact | HubFact) -> str:  # noqa: PLR0911  # one for each class
    match fact:
        case StreamFirstEvent():
            return f"after {_seconds(fact.seconds)}"
        case StreamClosed():
            dropped = f", {fact.dropped} dropped" if fact.dropped else ""
            return f"{fact.reason} after {_seconds(fact.seconds)}, {fact.events} events, {fact.bytes} bytes{dropped}"
        case StreamRefused():
            return f"{fact.status}: {fact.limit or fact.why}"
        case EventsDropped():
            return f"{fact.count} events, {fact.total} in all"
        case HubUp():
            return f"{fact.records} records"
        case HubDown():
            return fact.error
        case HubResumed():
            return f"after {_seconds(fact.seconds)}, {fact.missed} records arrived late"
        case HubPublished():
            return f"{fact.outcome} after {_seconds(fact.seconds)}"
        case HubGap():
            return fact.reason
    return ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
