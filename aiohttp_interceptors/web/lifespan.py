"""What the library does with an application over its life: staged headers on every response, streams ended on stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from aiohttp import web

from ..hub.hub import Hub
from ..observe.facts import StreamObserver
from ..sse.event import Event
from .context import before_commit
from .drain import Drain
from .limits import KICKED, Key, Limits, OnLimit
from .streams import STREAMS, Streams

__all__ = ["setup"]


def setup(  # noqa: PLR0913  # each is an option of its own, and has a default
    app: web.Application,
    *hubs: Hub,
    drain: Drain | None = None,
    max_streams: int | None = None,
    max_streams_per_key: int | None = None,
    key: Key | None = None,
    on_limit: OnLimit = "refuse",
    kick_event: Event | None = KICKED,
    observer: StreamObserver | None = None,
) -> None:
    """Prepare an application, before it starts and before it is added to another one. Twice is once.

    Its ``hubs`` belong to its event loop from its start on, so that other threads can publish, and are closed with it,
    side by side; what one raises then, the cleanup raises, in an ``ExceptionGroup`` if it is several.
    An application can be served again after it was cleaned up, unless a Hub of its has a broker: that is closed for
    good, and the second start raises ``RuntimeError``.

    On stop, its open streams end as ``drain`` says, where aiohttp alone would wait for them. Staged
    ``response_headers`` also reach responses that a handler prepares itself, a WebSocket among them.

    From ``max_streams`` open streams on, a request for another gets 503; from ``max_streams_per_key`` on, of those for
    which ``key(request)`` is the same (a user, an address), 429; both with a ``Retry-After`` of its own. HEAD is not
    counted. A browser's ``EventSource`` does not reconnect after either. A stream counts until it is over or its
    connection is lost, and no longer while its producer cleans up. The streams of a sub-application count under its
    own limits and under those of each application around it that was set up.

    With ``on_limit="kick"`` the newest stream of a key wins: instead of the 429, the oldest one of that key ends as
    ``CloseReason.KICKED``. Its last event is ``kick_event`` (``None`` for none), by default named ``kicked``. A client
    that does not read is disconnected without it. The page should call ``EventSource.close()`` on that event: an
    ``EventSource`` that is not closed reconnects, and two tabs of it kick each other in turn. So each stream that a key
    may have is replaced at most 5 times in 60 seconds; a request beyond that gets the 429, after which its
    ``EventSource`` does not reconnect.

    ``observer(fact)`` is told what happens to streams: ``StreamOpened``, ``StreamClosed``, ``StreamRefused``,
    ``EventsDropped``.

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
    limits = Limits(max_streams, max_streams_per_key, key, on_limit, kick_event)
    if STREAMS in app:
        options = (drain, max_streams, max_streams_per_key, key, observer)
        if hubs or any(option is not None for option in options) or kick_event is not KICKED:
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
        opened: list[Hub] = []
        try:
            for hub in hubs:
                hub.open()
                opened.append(hub)
            yield
        finally:
            await _close(opened)

    return lives


async def _close(hubs: Sequence[Hub]) -> None:
    """Close Hubs side by side, so that one that fails or takes its time leaves no other one open."""
    ends = await asyncio.gather(*[hub.close() for hub in hubs], return_exceptions=True)
    errors = [end for end in ends if end is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("several Hubs failed to close", errors)


async def _on_startup(app: web.Application) -> None:
    app[STREAMS].open()


async def _on_shutdown(app: web.Application) -> None:
    await app[STREAMS].close()
