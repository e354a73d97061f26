"""Interceptors for aiohttp, and Server-Sent Events done right.

The map:

* **The chain**: an ``Interceptor`` has ``enter``, ``leave`` and ``error`` stages; ``before``, ``after``, ``around``
  and ``on_error`` make one of a function. ``execute`` runs a ``Context`` through some; ``ContextKey`` names a typed
  value in it; ``debug_observer`` logs what each stage changed.
* **In aiohttp**: ``interceptor_middleware`` for an application, ``intercept`` for a handler, ``as_handler`` for a
  route; a ``RequestContext`` has the request and the response; ``setup`` prepares an application;
  ``uncaught_exception`` answers what nobody handled.
* **Streams**: ``start_event_stream`` and ``event_stream`` give a producer an ``EventChannel`` to put an ``Event`` into;
  a ``CloseReason`` says why a stream ended. ``EventStreamResponse`` does it for aiohttp-sse's interface.
  ``SlidingQueue``, ``DroppingQueue`` and ``ConflatingQueue`` are for producers that never wait; ``StopReconnecting``
  tells a browser to stay away.
* **The Hub**: ``publish`` an event under a topic of a ``Hub``, and ``start_topic_stream`` has it on every stream that
  asked for it, as a ``Record`` with an id; a client that was away goes on where it was, after a ``Snapshot`` of the
  state or told of the ``Gap`` and its ``GapReason``. ``HubStatistics`` is what it holds and has done; a ``Subscriber``
  is what it knows of one stream.
* **Between processes**: a Hub with a broker of ``aiohttp_interceptors.brokers`` (``sqlite``, ``redis``, ``postgres``,
  ``nats``) publishes to all processes that have the same, and outlives each. ``HubUp``, ``HubDown`` and ``HubResumed``
  tell how that is; publishing raises a ``BrokerError``: ``BrokerDown``, ``OutcomeUnknown`` or ``BrokerRefused``.
* **All streams of an application**: ``setup`` limits them and ends them as a ``Drain`` says; ``STREAMS`` is where an
  application has its ``Streams``, and ``context.stream`` is a request's ``Stream`` with its ``StreamStatistics``. What
  happens to them is told as ``StreamOpened``, ``StreamClosed``, ``StreamRefused`` and ``EventsDropped``.
* **Testing** your own: ``aiohttp_interceptors.testing``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chain.context import Context as Context
    from .chain.context import ContextKey as ContextKey
    from .chain.execute import execute as execute
    from .chain.failure import Failure as Failure
    from .chain.interceptor import Interceptor as Interceptor
    from .chain.sugar import after as after
    from .chain.sugar import around as around
    from .chain.sugar import before as before
    from .chain.sugar import on_error as on_error
    from .errors import BrokerDown as BrokerDown
    from .errors import BrokerError as BrokerError
    from .errors import BrokerRefused as BrokerRefused
    from .errors import ChannelFull as ChannelFull
    from .errors import EventTooLarge as EventTooLarge
    from .errors import NoResponse as NoResponse
    from .errors import OutcomeUnknown as OutcomeUnknown
    from .errors import QueueClosed as QueueClosed
    from .errors import ResponseCommitted as ResponseCommitted
    from .hub.gap import Gap as Gap
    from .hub.gap import GapReason as GapReason
    from .hub.hub import Hub as Hub
    from .hub.record import Record as Record
    from .hub.statistics import HubStatistics as HubStatistics
    from .hub.subscriber import Subscriber as Subscriber
    from .observe.debug import debug_observer as debug_observer
    from .observe.facts import EventsDropped as EventsDropped
    from .observe.facts import HubDown as HubDown
    from .observe.facts import HubResumed as HubResumed
    from .observe.facts import HubUp as HubUp
    from .observe.facts import StageRan as StageRan
    from .observe.facts import StreamClosed as StreamClosed
    from .observe.facts import StreamOpened as StreamOpened
    from .observe.facts import StreamRefused as StreamRefused
    from .sse.channel import CloseReason as CloseReason
    from .sse.channel import EventChannel as EventChannel
    from .sse.event import Event as Event
    from .sse.queues import ConflatingQueue as ConflatingQueue
    from .sse.queues import DroppingQueue as DroppingQueue
    from .sse.queues import LossyQueue as LossyQueue
    from .sse.queues import SlidingQueue as SlidingQueue
    from .sse.queues import dropped_comment as dropped_comment
    from .sse.queues import dropped_event as dropped_event
    from .sse.wire import Decoder as Decoder
    from .sse.wire import encode as encode
    from .web.context import RequestContext as RequestContext
    from .web.drain import Drain as Drain
    from .web.lifespan import setup as setup
    from .web.middleware import as_handler as as_handler
    from .web.middleware import intercept as intercept
    from .web.middleware import interceptor_middleware as interceptor_middleware
    from .web.refusal import StopReconnecting as StopReconnecting
    from .web.response import EventStreamResponse as EventStreamResponse
    from .web.snapshot import Snapshot as Snapshot
    from .web.start import event_stream as event_stream
    from .web.start import start_event_stream as start_event_stream
    from .web.stream import Stream as Stream
    from .web.stream import StreamStatistics as StreamStatistics
    from .web.streams import STREAMS as STREAMS
    from .web.streams import Streams as Streams
    from .web.topics import start_topic_stream as start_topic_stream
    from .web.uncaught import uncaught_exception as uncaught_exception

__version__ = "0.1.0"

# Names are imported when first used, so that the chain alone (a worker's, a test's) needs no aiohttp.
_HOMES = {
    "chain.context": "Context ContextKey",
    "chain.execute": "execute",
    "chain.failure": "Failure",
    "chain.interceptor": "Interceptor",
    "chain.sugar": "after around before on_error",
    "errors": "BrokerDown BrokerError BrokerRefused ChannelFull EventTooLarge NoResponse OutcomeUnknown QueueClosed "
    "ResponseCommitted",
    "hub.gap": "Gap GapReason",
    "hub.hub": "Hub",
    "hub.record": "Record",
    "hub.statistics": "HubStatistics",
    "hub.subscriber": "Subscriber",
    "observe.debug": "debug_observer",
    "observe.facts": "EventsDropped HubDown HubResumed HubUp StageRan StreamClosed StreamOpened StreamRefused",
    "sse.channel": "CloseReason EventChannel",
    "sse.event": "Event",
    "sse.queues": "ConflatingQueue DroppingQueue LossyQueue SlidingQueue dropped_comment dropped_event",
    "sse.wire": "Decoder encode",
    "web.context": "RequestContext",
    "web.drain": "Drain",
    "web.lifespan": "setup",
    "web.middleware": "as_handler intercept interceptor_middleware",
    "web.refusal": "StopReconnecting",
    "web.response": "EventStreamResponse",
    "web.snapshot": "Snapshot",
    "web.start": "event_stream start_event_stream",
    "web.stream": "Stream StreamStatistics",
    "web.streams": "STREAMS Streams",
    "web.topics": "start_topic_stream",
    "web.uncaught": "uncaught_exception",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME)  # noqa: PLE0605  # a type checker reads the imports above


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
