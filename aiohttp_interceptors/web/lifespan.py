"""What the library does with an application over its life: staged headers on every response, streams ended on stop."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from ..sse.channel import CloseReason
from .context import RequestContext

__all__ = ["Streams", "setup"]


class Endable(Protocol):
    """A stream, as the application sees it."""

    def end(self, reason: CloseReason) -> None:
        """End it, at once."""


class Streams:
    """The open streams of an application."""

    def __init__(self) -> None:
        self.closing: bool = False
        self._open: set[Endable] = set()

    @classmethod
    def of(cls, request: web.Request) -> Streams:
        """Return those of the innermost application that was set up, or else of this stream alone."""
        apps = reversed(request.match_info.apps)
        return next((app[_STREAMS] for app in apps if _STREAMS in app), None) or cls()

    def add(self, stream: Endable) -> None:
        """Remember an open stream."""
        self._open.add(stream)

    def discard(self, stream: Endable) -> None:
        """Forget a stream that is over."""
        self._open.discard(stream)

    def close(self) -> None:
        """End all streams and take no new ones."""
        self.closing = True
        for stream in list(self._open):
            stream.end(CloseReason.SHUTDOWN)


_STREAMS = web.AppKey("aiohttp_interceptors.streams", Streams)


def setup(app: web.Application) -> None:
    """Prepare an application, before it starts and before it is added to another one. Twice is once.

    On stop, its open streams end and their clients see a clean end, where aiohttp alone would wait for them. Staged
    ``response_headers`` also reach responses that a handler prepares itself, a WebSocket among them. Raises
    ``RuntimeError`` when it is too late.
    """
    if not isinstance(app, web.Application):
        raise TypeError(f"setup takes a web.Application, not {app!r}")
    if _STREAMS in app:
        return
    if app.frozen or app.pre_frozen:
        raise RuntimeError("setup(app) comes before the application starts, and before add_subapp")
    app[_STREAMS] = Streams()
    app.on_response_prepare.append(_before_commit)
    app.on_shutdown.append(_on_shutdown)


async def _before_commit(request: web.Request, response: web.StreamResponse) -> None:
    """Merge what is staged into a response that goes out while its chain still runs."""
    context = RequestContext.of(request)
    if context is not None:
        context.stage_into(response)


async def _on_shutdown(app: web.Application) -> None:
    app[_STREAMS].close()
