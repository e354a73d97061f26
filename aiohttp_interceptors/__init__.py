"""Interceptors for aiohttp, and Server-Sent Events done right.

The map:

* **The chain**: an ``Interceptor`` has ``enter``, ``leave`` and ``error`` stages; ``before``, ``after``, ``around`` and
  ``on_error`` make one of a function. ``execute`` runs a ``Context`` through some; ``ContextKey`` names a typed value
  in it; ``debug_observer`` logs what each stage changed.
* **In aiohttp**: ``interceptor_middleware`` for an application, ``intercept`` for a handler, ``as_handler`` for a route;
  a ``RequestContext`` has the request and the response; ``setup`` prepares an application; ``uncaught_exception``
  answers what nobody handled.
* **Streams**: ``start_event_stream`` and ``event_stream`` give a producer an ``EventChannel`` to put an ``Event`` into;
  a ``CloseReason`` says why a stream ended. ``EventStreamResponse`` does it for aiohttp-sse's interface.
* **Testing** your own: ``aiohttp_interceptors.testing``.
"""

from __future__ import annotations

from .chain.context import Context, ContextKey
from .chain.execute import execute
from .chain.failure import Failure
from .chain.interceptor import Interceptor
from .chain.sugar import after, around, before, on_error
from .errors import ChannelFull, NoResponse, QueueClosed, ResponseCommitted
from .observe.debug import debug_observer
from .observe.facts import StageRan
from .sse.channel import CloseReason, EventChannel
from .sse.event import Event
from .sse.wire import Decoder, encode
from .web.context import RequestContext
from .web.lifespan import setup
from .web.middleware import as_handler, intercept, interceptor_middleware
from .web.response import EventStreamResponse
from .web.stream import event_stream, start_event_stream
from .web.uncaught import uncaught_exception

__version__ = "0.1.0"

__all__ = [
    "ChannelFull",
    "CloseReason",
    "Context",
    "ContextKey",
    "Decoder",
    "Event",
    "EventChannel",
    "EventStreamResponse",
    "Failure",
    "Interceptor",
    "NoResponse",
    "QueueClosed",
    "RequestContext",
    "ResponseCommitted",
    "StageRan",
    "after",
    "around",
    "as_handler",
    "before",
    "debug_observer",
    "encode",
    "event_stream",
    "execute",
    "intercept",
    "interceptor_middleware",
    "on_error",
    "setup",
    "start_event_stream",
    "uncaught_exception",
]
