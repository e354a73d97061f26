"""Server-Sent Events, interceptors and a broadcast hub for aiohttp.

The public names, by use:

**Daily.** ``setup`` prepares an application. ``event_stream`` and ``start_event_stream`` run a producer, which yields
``Event`` objects or puts them into an ``EventChannel``; a ``CloseReason`` says why a stream ended. ``before``,
``after``, ``around`` and ``on_error`` create an ``Interceptor`` from a function. ``interceptor_middleware`` runs
interceptors for an application, ``intercept`` for a handler, and ``as_handler`` for a route. All of them receive a
``RequestContext``, in which a ``ContextKey`` identifies a typed value.

**Hub.** A ``Hub`` keeps each published event as a ``Record`` of its topic, and ``topic_stream`` is a handler that sends
the records of some topics to a client; ``start_topic_stream`` is the interceptor in it. A client that resumes receives
what it missed, a ``Snapshot``, or a ``Gap`` with its ``GapReason``. ``Compression`` says how streams are compressed. A
``Subscriber`` changes the topics of an open stream. ``Hub.listen`` returns a ``Listener``, which iterates over records
in the process and raises ``Lagged`` if some are missing, and ``publish_handler`` publishes what it is sent. ``Hub.run``
returns a ``Run`` with a ``RunState``: a generator whose events are published, and which goes on when its readers have
left.

**Operating.** ``Drain`` says how the open streams end when the server stops. ``STREAMS`` is the key of an application's
``Streams``, which contains each open ``Stream`` with its ``StreamStatistics``; ``HubStatistics`` are those of a Hub.
``live_handler`` and ``ready_handler`` answer health checks.
Observers receive ``StreamOpened``, ``StreamFirstEvent``, ``StreamClosed``, ``StreamRefused``, ``EventsDropped``,
``StageRan``, ``HubUp``, ``HubDown``, ``HubResumed``, ``HubPublished``, ``HubFlushed`` and ``HubGap``.
``debug_observer`` logs what each stage changed. ``uncaught_exception`` is an interceptor that responds to unhandled
exceptions, and ``StopReconnecting`` makes browsers stop reconnecting. The exceptions are ``ChannelFull``,
``EventTooLarge``, ``NoResponse``, ``QueueClosed``, ``ResponseCommitted``, ``RunExists``, ``TooManyRuns``,
``TopicFinished``, and ``BrokerError`` with its subclasses ``BrokerDown``, ``BrokerRefused`` and ``OutcomeUnknown``.

**Advanced.** ``default_encoder`` makes events of values, and ``wants_event_stream`` says whether a client asks for a
stream or for JSON. ``openapi`` describes a stream as an ``OpenAPIFragment``. ``execute`` runs interceptors with a
``Context`` without a request; a ``Failure`` is an exception of a stage, and where it was raised. ``encode`` and
``Decoder`` convert events to bytes and back. ``SlidingQueue``, ``DroppingQueue`` and ``ConflatingQueue`` drop events
instead of waiting for a slow client; they are ``LossyQueue`` classes, and report drops with ``dropped_comment`` or
``dropped_event``. ``EventStreamResponse`` replaces the response class of aiohttp-sse.

Modules: ``aiohttp_interceptors.brokers`` has the brokers ``sqlite``, ``redis``, ``postgres`` and ``nats``,
``aiohttp_interceptors.observe`` the metrics of ``prometheus``, the traces of ``opentelemetry`` and the page of
``inspector``, ``aiohttp_interceptors.ready`` ready-made interceptors, ``aiohttp_interceptors.hub.broker`` the protocol
for other brokers, and ``aiohttp_interceptors.testing`` helpers for tests.
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
    from .compression import Compression as Compression
    from .debug import debug_observer as debug_observer
    from .decorators import after as after
    from .decorators import around as around
    from .decorators import before as before
    from .decorators import on_error as on_error
    from .encoder import default_encoder as default_encoder
    from .exceptions import BrokerDown as BrokerDown
    from .exceptions import BrokerError as BrokerError
    from .exceptions import BrokerRefused as BrokerRefused
    from .exceptions import ChannelFull as ChannelFull
    from .exceptions import EventTooLarge as EventTooLarge
    from .exceptions import NoResponse as NoResponse
    from .exceptions import OutcomeUnknown as OutcomeUnknown
    from .exceptions import QueueClosed as QueueClosed
    from .exceptions import ResponseCommitted as ResponseCommitted
    from .exceptions import RunExists as RunExists
    from .exceptions import TooManyRuns as TooManyRuns
    from .exceptions import TopicFinished as TopicFinished
    from .facts import EventsDropped as EventsDropped
    from .facts import HubDown as HubDown
    from .facts import HubFlushed as HubFlushed
    from .facts import HubGap as HubGap
    from .facts import HubPublished as HubPublished
    from .facts import HubResumed as HubResumed
    from .facts import HubUp as HubUp
    from .facts import StageRan as StageRan
    from .facts import StreamClosed as StreamClosed
    from .facts import StreamFirstEvent as StreamFirstEvent
    from .facts import StreamOpened as StreamOpened
    from .facts import StreamRefused as StreamRefused
    from .hub.hub import Hub as Hub
    from .hub.hub import HubStatistics as HubStatistics
    from .hub.hub import Subscriber as Subscriber
    from .hub.listener import Lagged as Lagged
    from .hub.listener import Listener as Listener
    from .hub.record import Gap as Gap
    from .hub.record import GapReason as GapReason
    from .hub.record import Record as Record
    from .hub.runs import Run as Run
    from .hub.runs import RunState as RunState
    from .interceptor import Interceptor as Interceptor
    from .queues import ConflatingQueue as ConflatingQueue
    from .queues import DroppingQueue as DroppingQueue
    from .queues import LossyQueue as LossyQueue
    from .queues import SlidingQueue as SlidingQueue
    from .queues import dropped_comment as dropped_comment
    from .queues import dropped_event as dropped_event
    from .schema import OpenAPIFragment as OpenAPIFragment
    from .schema import openapi as openapi
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
    from .web.health import live_handler as live_handler
    from .web.health import ready_handler as ready_handler
    from .web.middleware import as_handler as as_handler
    from .web.middleware import intercept as intercept
    from .web.middleware import interceptor_middleware as interceptor_middleware
    from .web.middleware import uncaught_exception as uncaught_exception
    from .web.publish import publish_handler as publish_handler
    from .web.request import StopReconnecting as StopReconnecting
    from .web.request import wants_event_stream as wants_event_stream
    from .web.response import EventStreamResponse as EventStreamResponse
    from .web.stream import Stream as Stream
    from .web.stream import StreamStatistics as StreamStatistics
    from .web.topic_stream import Snapshot as Snapshot
    from .web.topic_stream import start_topic_stream as start_topic_stream
    from .web.topic_stream import topic_stream as topic_stream

__version__ = "0.1.0"

# Names are imported when first used, so that the modules left of ``web`` work without aiohttp.
_NAMES_BY_MODULE = {
    "chain": "Context ContextKey Failure execute",
    "channel": "CloseReason EventChannel",
    "compression": "Compression",
    "debug": "debug_observer",
    "decorators": "after around before on_error",
    "encoder": "default_encoder",
    "exceptions": "BrokerDown BrokerError BrokerRefused ChannelFull EventTooLarge NoResponse OutcomeUnknown "
    "QueueClosed ResponseCommitted RunExists TooManyRuns TopicFinished",
    "facts": "EventsDropped HubDown HubFlushed HubGap HubPublished HubResumed HubUp StageRan StreamClosed "
    "StreamFirstEvent StreamOpened StreamRefused",
    "hub.hub": "Hub HubStatistics Subscriber",
    "hub.listener": "Lagged Listener",
    "hub.record": "Gap GapReason Record",
    "hub.runs": "Run RunState",
    "interceptor": "Interceptor",
    "queues": "ConflatingQueue DroppingQueue LossyQueue SlidingQueue dropped_comment dropped_event",
    "schema": "OpenAPIFragment openapi",
    "sse": "Decoder Event encode",
    "web.app": "Drain STREAMS Streams setup",
    "web.context": "RequestContext",
    "web.event_stream": "event_stream start_event_stream",
    "web.health": "live_handler ready_handler",
    "web.middleware": "as_handler intercept interceptor_middleware uncaught_exception",
    "web.publish": "publish_handler",
    "web.request": "StopReconnecting wants_event_stream",
    "web.response": "EventStreamResponse",
    "web.stream": "Stream StreamStatistics",
    "web.topic_stream": "Snapshot start_topic_stream topic_stream",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605  # a type checker reads the imports above


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
