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

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# Names are imported when first used, so that the chain alone (a worker's, a test's) needs no aiohttp.
_HOMES = {
    ".chain.context": ("Context", "ContextKey"),
    ".chain.execute": ("execute",),
    ".chain.failure": ("Failure",),
    ".chain.interceptor": ("Interceptor",),
    ".chain.sugar": ("after", "around", "before", "on_error"),
    ".errors": ("ChannelFull", "NoResponse", "QueueClosed", "ResponseCommitted"),
    ".observe.debug": ("debug_observer",),
    ".observe.facts": ("StageRan",),
    ".sse.channel": ("CloseReason", "EventChannel"),
    ".sse.event": ("Event",),
    ".sse.wire": ("Decoder", "encode"),
    ".web.context": ("RequestContext",),
    ".web.lifespan": ("setup",),
    ".web.middleware": ("as_handler", "intercept", "interceptor_middleware"),
    ".web.response": ("EventStreamResponse",),
    ".web.stream": ("event_stream", "start_event_stream"),
    ".web.uncaught": ("uncaught_exception",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
