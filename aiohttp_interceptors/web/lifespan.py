"""What the library does with an application over its life: staged headers on every response, streams ended on stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

from aiohttp import web

from ..hub.hub import Hub
from ..observe.facts import StreamObserver
from .context import before_commit
from .drain import Drain
from .limits import Key, Limits
from .streams import STREAMS, Streams

__all__ = ["setup"]


def setup(
    app: web.Application,
    *hubs: Hub,
    drain: Drain | None = None,
    max_streams: int | None = None,
    max_streams_per_key: int | None = None,
    key: Key | None = None,
    observer: StreamObserver | None = None,
) -> None:
    """Prepare an application, before it starts and before it is added to another one. Twice is once.

    Its ``hubs`` belong to its event loop from its start on, so that other threads can publish, and are closed with it.
    An application can be served again after it was cleaned up, unless a Hub of its has a broker: that is closed for
    good, and the second start raises ``RuntimeError``.

    On stop, its open streams end as ``drain`` says, where aiohttp alone would wait for them. Staged
    ``response_headers`` also reach responses that a handler prepares itself, a WebSocket among them.

    From ``max_streams`` open streams on, a request for another gets 503; from ``max_streams_per_key`` on, of those for
    which ``key(request)`` is the same (a user, an address), 429; both with a ``Retry-After`` of its own. HEAD is not
    counted. A browser's ``EventSource`` does not come back after either. ``observer(fact)`` is told what happens to
    streams: ``StreamOpened``, ``StreamClosed``, ``StreamRefused``, ``EventsDropped``.

    Raises ``TypeError`` or ``ValueError`` for what cannot work, ``RuntimeError`` when it is too late.
    """
    if not isinstance(app, web.Application):
        raise TypeError(f"setup takes a web.Application, not {app!r}")
    if drain is not None and not isinstance(drain, Drain):
        raise TypeError(f"drain is a Drain, not {drain!r}")
    if observer is not None and not callable(observer):
        raise TypeError(f"observer is a function of a fact, not {observer!r}")
    for hub in hubs:
        if not isinstance(hub, Hub):
            raise TypeError(f"setup takes the application and its Hubs, not {hub!r}")
    limits = Limits(max_streams, max_streams_per_key, key)
    if STREAMS in app:
        if hubs or any(option is not None for option in (drain, max_streams, max_streams_per_key, key, observer)):
            raise RuntimeError("setup(app) was called before; give it all its options in one call")
        return
    if app.frozen or app.pre_frozen:
        raise RuntimeError("setup(app) comes before the application starts, and before add_subapp")
    app[STREAMS] = Streams(drain, limits, observer)
    app.on_response_prepare.append(before_commit)
    app.on_startup.append(_on_startup)
    app.on_shutdown.append(_on_shutdown)
    if hubs:
        app.cleanup_ctx.append(_lives_of(hubs))


def _lives_of(hubs: tuple[Hub, ...]) -> Callable[[web.Application], AsyncIterator[None]]:
    async def lives(_: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:  # one that does not open, or close, leaves no other one open
            for hub in hubs:
                hub.open()
                stack.push_async_callback(hub.close)
            yield

    return lives


async def _on_startup(app: web.Application) -> None:
    app[STREAMS].open()


async def _on_shutdown(app: web.Application) -> None:
    await app[STREAMS].close()
