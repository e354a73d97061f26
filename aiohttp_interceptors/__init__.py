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
    from .chain import Context as Context
    from .chain import ContextKey as ContextKey
    from .chain import Failure as Failure
    from .chain import execute as execute
    from .channel import CloseReason as CloseReason
    from .channel import EventChannel as EventChannel
    from .debug import debug_observer as debug_observer
    from .decorators import after as after
    from .decorators import around as around
    from .decorators import before as before
    from .decorators import on_error as on_error
    from .exceptions import BrokerDown as BrokerDown
    from .exceptions import BrokerError as BrokerError
    from .exceptions import BrokerRefused as BrokerRefused
    from .exceptions import ChannelFull as ChannelFull
    from .exceptions import EventTooLarge as EventTooLarge
    from .exceptions import NoResponse as NoResponse
    from .exceptions import OutcomeUnknown as OutcomeUnknown
    from .exceptions import QueueClosed as QueueClosed
    from .exceptions import ResponseCommitted as ResponseCommitted
    from .facts import EventsDropped as EventsDropped
    from .facts import HubDown as HubDown
    from .facts import HubResumed as HubResumed
    from .facts import HubUp as HubUp
    from .facts import StageRan as StageRan
    from .facts import StreamClosed as StreamClosed
    from .facts import StreamOpened as StreamOpened
    from .facts import StreamRefused as StreamRefused
    from .hub.hub import Hub as Hub
    from .hub.hub import HubStatistics as HubStatistics
    from .hub.hub import Subscriber as Subscriber
    from .hub.record import Gap as Gap
    from .hub.record import GapReason as GapReason
    from .hub.record import Record as Record
    from .interceptor import Interceptor as Interceptor
    from .queues import ConflatingQueue as ConflatingQueue
    from .queues import DroppingQueue as DroppingQueue
    from .queues import LossyQueue as LossyQueue
    from .queues import SlidingQueue as SlidingQueue
    from .queues import dropped_comment as dropped_comment
    from .queues import dropped_event as dropped_event
    from .sse import Decoder as Decoder
    from .sse import Event as Event
    from .sse import encode as encode
    from .web.app import STREAMS as STREAMS
    from .web.app import Drain as Drain
    from .web.app import Streams as Streams
    from .web.app import setup as setup
    from .web.context import RequestContext as RequestContext
    from .web.event_stream import event_stream as event_stream
    from .web.event_stream import start_event_stream as start_event_stream
    from .web.middleware import as_handler as as_handler
    from .web.middleware import intercept as intercept
    from .web.middleware import interceptor_middleware as interceptor_middleware
    from .web.middleware import uncaught_exception as uncaught_exception
    from .web.request import StopReconnecting as StopReconnecting
    from .web.response import EventStreamResponse as EventStreamResponse
    from .web.stream import Stream as Stream
    from .web.stream import StreamStatistics as StreamStatistics
    from .web.topic_stream import Snapshot as Snapshot
    from .web.topic_stream import start_topic_stream as start_topic_stream

__version__ = "0.1.0"

# Names are imported when first used, so that the chain alone (a worker's, a test's) needs no aiohttp.
_HOMES = {
    "chain": "Context ContextKey Failure execute",
    "channel": "CloseReason EventChannel",
    "debug": "debug_observer",
    "decorators": "after around before on_error",
    "exceptions": "BrokerDown BrokerError BrokerRefused ChannelFull EventTooLarge NoResponse OutcomeUnknown "
    "QueueClosed ResponseCommitted",
    "facts": "EventsDropped HubDown HubResumed HubUp StageRan StreamClosed StreamOpened StreamRefused",
    "hub.hub": "Hub HubStatistics Subscriber",
    "hub.record": "Gap GapReason Record",
    "interceptor": "Interceptor",
    "queues": "ConflatingQueue DroppingQueue LossyQueue SlidingQueue dropped_comment dropped_event",
    "sse": "Decoder Event encode",
    "web.app": "Drain STREAMS Streams setup",
    "web.context": "RequestContext",
    "web.event_stream": "event_stream start_event_stream",
    "web.middleware": "as_handler intercept interceptor_middleware uncaught_exception",
    "web.request": "StopReconnecting",
    "web.response": "EventStreamResponse",
    "web.stream": "Stream StreamStatistics",
    "web.topic_stream": "Snapshot start_topic_stream",
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
