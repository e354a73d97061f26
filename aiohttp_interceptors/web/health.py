"""Handlers for health checks: whether the process lives, and whether it should receive requests."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from .._checks import check_seconds
from ..hub.hub import Hub
from .app import Streams
from .middleware import Handler

__all__ = ["live_handler", "ready_handler"]


def live_handler(*, max_lag: float = 5.0) -> Handler:
    """Make a handler that says whether the event loop runs, for the liveness probe of Kubernetes.

    It answers 200, or 503 if an iteration of the event loop took longer than ``max_lag``: a process whose loop is
    blocked answers late or never, and one that is merely busy answers. Brokers do not count: a restart would not help.

    Args:
        max_lag: Seconds that the handler may be delayed by the event loop.

    Returns:
        The handler. Its answer is JSON: ``{"live": true, "lag": 0.0003}``, with the delay in seconds.

    Raises:
        TypeError: ``max_lag`` is not a number.
        ValueError: ``max_lag`` is out of range.
    """
    check_seconds("max_lag", max_lag, "")

    async def live(_: web.Request) -> web.Response:
        lag = await _measure_lag()
        answer = {"live": lag <= max_lag, "lag": round(lag, 6)}
        return web.json_response(answer, status=200 if answer["live"] else 503, headers=_NO_STORE)

    return live


def ready_handler(*hubs: Hub) -> Handler:
    """Make a handler that says whether the process should receive requests, for the readiness probe of Kubernetes.

    It answers 200, or 503 while the application stops, or while a Hub has not received everything from its broker
    (``Hub.ready``). Streams stay open meanwhile.

    Args:
        *hubs: The Hubs of the application.

    Returns:
        The handler. Its answer is JSON: ``{"ready": true, "stopping": false, "hubs": [true], "streams": 12}``.

    Raises:
        TypeError: An argument is not a Hub.
    """
    for hub in hubs:
        if not isinstance(hub, Hub):
            raise TypeError(f"ready_handler takes Hubs, not {hub!r}")

    async def ready(request: web.Request) -> web.Response:
        stopping = any(streams.closing for streams in Streams.all_of(request))
        ready_hubs = [hub.ready for hub in hubs]
        is_ready = all(ready_hubs) and not stopping
        answer = {"ready": is_ready, "stopping": stopping, "hubs": ready_hubs, "streams": len(Streams.of(request))}
        return web.json_response(answer, status=200 if is_ready else 503, headers=_NO_STORE)

    return ready


_NO_STORE = {"Cache-Control": "no-store"}


async def _measure_lag() -> float:
    """Return the seconds that the event loop needs to run everything that is scheduled now."""
    started = time.monotonic()
    await asyncio.sleep(0)
    return time.monotonic() - started
