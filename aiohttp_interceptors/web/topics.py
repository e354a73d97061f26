"""The interceptor that makes a request a stream of what is published under some topics of a Hub."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Coroutine
from dataclasses import replace

from ..chain.interceptor import Interceptor, check_call
from ..hub.hub import Hub
from ..hub.policy import OnGap, Policy
from .connection import Connection
from .context import RequestContext
from .opening import enter_stream
from .response import ChannelResponse
from .settings import OnClose
from .snapshot import SnapshotOf
from .stream import Stream
from .streams import Streams
from .topic_settings import Select, SubscriberReady, Topics, TopicSettings, names_of
from .topic_stream import TopicStream

__all__ = ["start_topic_stream"]


def start_topic_stream(  # noqa: PLR0913  # each is an option of its own, and has a default
    hub: Hub,
    topics: Topics,
    *,
    select: Select | None = None,
    snapshot: SnapshotOf | None = None,
    on_gap: OnGap = "signal",
    gap_event: str = "gap",
    replay: int = 0,
    prime: bool | None = None,
    stream_ready: SubscriberReady | None = None,
    heartbeat: float | None = 10.0,
    retry: int | None = None,
    on_close: OnClose | None = None,
    stall_timeout: float | None = 60.0,
    max_age: float | None = None,
    strict: bool = False,
    name: str | None = None,
) -> Interceptor[RequestContext]:
    """Make an interceptor that commits an event stream of a Hub's topics, and pauses the chain while it is open.

    ``topics`` are a name or a wildcard, some of them, or a function of the context, plain or ``async``, that gives
    them: it may raise an ``HTTPException``, and what it makes of a client's words it must check, for ``>`` is every
    topic there is. Each record goes out once, however many of them it matches.

    A client that returns with ``Last-Event-ID``, or with the query's ``lastEventId`` (of a polyfill) or
    ``last_event_id`` (of the page), goes on after that record. If some of what followed is not kept any more, or the
    id is none of this Hub's life, it is told first, by an event ``gap_event`` with the JSON ``{"reason", "after",
    "first"}``. A client without an id begins now, or with the latest ``replay`` records.

    With ``prime`` the first frame has ``retry`` (milliseconds) and the id to return with, although nothing was
    published: a client that is cut before its first event misses nothing. Many that are not browsers take such a frame
    for an event without data, so by default only a request of an ``EventSource`` gets it, which its headers tell.
    Without it ``retry`` waits for the first event.

    ``select(context, record)`` says whether a client gets a record. ``snapshot(context)``, plain or ``async``, gives
    the state that a stream begins with, as a list or an async iterable of events or as a ``Snapshot``: it is called
    when the stream has its position, and its events go out before any record. A client that returned and missed
    nothing has the state already, and gets none. ``stream_ready(subscriber, context)`` is called once the stream is
    registered: the stream hears of what is published then, and topics that it adds are gone on with as the others are.
    An ``async`` one runs after the snapshot, is cancelled when the stream ends, and ends it when it raises. Later
    ``subscriber.add`` and ``remove`` change the topics of the open stream.

    A client that reads slowly costs no memory and delays nobody: it gets from the history what it has missed. When
    that is gone, ``on_gap`` says what happens: ``"signal"`` tells it and goes on, ``"close"`` ends the stream, as
    ``lagged``, and ``"conflate"`` gives the latest event per topic and ``key``, and tells only of what no later event
    makes up for. ``heartbeat``, ``on_close``, ``stall_timeout``, ``max_age`` and ``strict`` as in
    ``start_event_stream``.

    Raises ``TypeError`` or ``ValueError`` for arguments that cannot work.
    """
    if not isinstance(hub, Hub):
        raise TypeError(f"hub is a Hub, not {hub!r}")
    policy = Policy(on_gap=on_gap, gap_event=gap_event, prime=prime is not False, replay=replay, retry=retry)
    settings = TopicSettings(
        select=select,
        snapshot=snapshot,
        stream_ready=stream_ready,
        policy=policy,
        unprimed=replace(policy, prime=False) if prime is None else None,
        heartbeat=heartbeat,
        retry=retry,
        on_close=on_close,
        stall_timeout=stall_timeout,
        max_age=max_age,
        strict=strict,
    )
    computed = topics if callable(topics) else None
    fixed = () if computed is not None else names_of(topics)
    if computed is not None:
        check_call("topics", "topics", computed, "context")
    if name is None:
        name = f"start_topic_stream({getattr(topics, '__name__', 'topics') if computed else ', '.join(fixed)})"

    def choose(context: RequestContext) -> Awaitable[tuple[str, ...]] | tuple[str, ...]:
        hub.check_open()  # one of another event loop, or one that was closed, says so while there can be another answer
        if computed is None:
            return fixed
        chosen = computed(context)
        return _awaited(chosen) if inspect.isawaitable(chosen) else names_of(chosen)

    def make(
        context: RequestContext,
        response: ChannelResponse,
        connection: Connection,
        streams: Streams,
        names: tuple[str, ...],
    ) -> Stream:
        return TopicStream(context, response, connection, streams, settings, hub, names)

    def enter(context: RequestContext) -> Coroutine[None, None, None]:
        if not isinstance(context, RequestContext):
            raise TypeError(f"{name} needs the RequestContext of an aiohttp request, not {context!r}")
        return enter_stream(context, settings, make, choose)

    return Interceptor(name, enter)


async def _awaited(topics: Awaitable[object]) -> tuple[str, ...]:
    return names_of(await topics)
