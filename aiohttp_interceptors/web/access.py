"""Access to a stream over its life: whose it is, until when it may be open, and whether it still may."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from aiohttp import web

from .._checks import check_synchronous
from .._logging import log
from .._tasks import check_cancelled
from ..channel import CloseReason
from ..exceptions import EXIT_EXCEPTIONS
from ..hub.owners import OwnedStream, Owners, check_owner
from .context import RequestContext
from .timers import TIMER_SLACK, Timer, timer_queue

__all__ = ["Access", "AccessGuard", "ExpiresAt", "Owner", "Revalidate", "access_of"]


Owner: TypeAlias = Callable[[RequestContext], str | Iterable[str] | None]
ExpiresAt: TypeAlias = Callable[[RequestContext], float | dt.datetime | None]
Revalidate: TypeAlias = Callable[[RequestContext], bool | Awaitable[bool]]

JITTER = 0.2  # the random part of an interval, so that streams that were opened together are not asked together


@dataclass(frozen=True, slots=True)
class Access:
    """What was decided about a stream before its headers were sent."""

    requested_at: float
    """When the stream was requested, in seconds of the event loop's clock."""
    owners: tuple[str, ...]
    """Whose stream it is."""
    expires_at: float | None
    """When it expires, in seconds of the Unix epoch; ``None``: never."""


def access_of(
    context: RequestContext, requested_at: float, owner: Owner | None, expires_at: ExpiresAt | None
) -> Access:
    """Ask the application's functions about a stream. Raises what they raise, and a 401 if the stream has expired."""
    owners = None if owner is None else check_synchronous(owner(context), "owner")
    names = (owners,) if isinstance(owners, str) else tuple(owners or ())
    expires = None if expires_at is None else _to_epoch(expires_at(context))
    if expires is not None and expires <= time.time():
        raise web.HTTPUnauthorized(text="The credentials have expired.\n")
    return Access(requested_at, tuple(map(check_owner, names)), expires)


def _to_epoch(moment: object) -> float | None:
    if moment is None:
        return None
    if isinstance(moment, dt.datetime):
        if moment.tzinfo is None:
            raise ValueError(f"expires_at is a datetime with a time zone, not {moment!r}")
        return moment.timestamp()
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise TypeError(f"expires_at returns seconds of the Unix epoch, a datetime, or None, not {moment!r}")
    return float(moment)


class GuardedStream(OwnedStream, Protocol):
    """An open stream, as its guard uses it."""

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream ended; ``None`` while it is open."""

    def end(self, reason: CloseReason) -> None:
        """End the stream."""


class AccessGuard:
    """Ends a stream that has expired, that the application does not allow any more, or whose owner is disconnected.

    Args:
        stream: The stream.
        context: The context of its request.
        access: What was decided before its headers were sent.
        registries: Where its owners are known.
        revalidate: The application's function that decides whether the stream may go on, or ``None``.
        interval: Seconds between two calls of it.
    """

    __slots__ = ("_asking", "_context", "_interval", "_registries", "_revalidate", "_stream", "_timer", "access")

    def __init__(
        self,
        stream: GuardedStream,
        context: RequestContext,
        access: Access,
        registries: list[Owners],
        revalidate: Revalidate | None,
        interval: float,
    ) -> None:
        self.access: Access = access
        self._stream = stream
        self._context = context
        self._registries = registries
        self._revalidate = revalidate
        self._interval = interval
        self._timer: Timer | None = None
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Register the owners, and start the timer. The stream may end at once."""
        for registry in self._registries:
            registry.add(self._stream, self.access.owners)
        delay = self._delay()
        if delay is not None and self._stream.reason is None:
            self._timer = timer_queue().add(self, asyncio.get_running_loop().time() + delay)

    def stop(self) -> None:
        """Release everything, because the stream has ended. Idempotent."""
        for registry in self._registries:
            registry.discard(self._stream, self.access.owners)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None and self._asking is not asyncio.current_task():
            self._asking.cancel()

    def _delay(self) -> float | None:
        """Return the seconds until the stream expires or is asked about, whichever comes first."""
        delays = [] if self.access.expires_at is None else [max(self.access.expires_at - time.time(), 0.0)]
        if self._revalidate is not None:
            delays.append(self._interval * random.uniform(1 - JITTER, 1))  # noqa: S311  # not for security
        return min(delays, default=None)

    def on_timer(self, now: float) -> float | None:
        """End the stream if it has expired, or ask whether it may go on. Return when to call this again."""
        if self._stream.reason is not None:
            return None
        expires_at = self.access.expires_at
        if expires_at is not None and expires_at <= time.time() + TIMER_SLACK:
            self._stream.end(CloseReason.EXPIRED)
            return None
        if self._revalidate is not None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask(self._revalidate))
        delay = self._delay()
        return None if delay is None else now + delay

    async def _answer(self, revalidate: Revalidate) -> bool:
        answer = revalidate(self._context)
        if not isinstance(answer, bool):
            async with asyncio.timeout(self._interval):
                answer = await answer
        if not isinstance(answer, bool):
            raise TypeError(f"revalidate returns a bool, not {answer!r}")
        return answer

    async def _ask(self, revalidate: Revalidate) -> None:
        """Ask the application, and end the stream if it says no, or raises."""
        try:
            allowed = await self._answer(revalidate)
        except EXIT_EXCEPTIONS:
            raise
        except BaseException as error:  # noqa: BLE001  # without an answer the client has to ask again
            check_cancelled()
            log.exception(
                "stream_revalidation_failed",
                execution_id=self._context.execution_id,
                path=self._context.request.path,
                exc_info=error,
            )
            self._stream.end(CloseReason.ERROR)
            return
        if not allowed:
            self._stream.kick(None)
