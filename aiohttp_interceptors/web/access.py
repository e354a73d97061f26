"""Access to a stream over its life: whose it is, until when it may be open, and whether it still may."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol, TypeAlias

from aiohttp import web

from .._checks import check_synchronous
from .._logging import log
from .._tasks import check_cancelled
from ..channel import CloseReason
from ..exceptions import EXIT_EXCEPTIONS
from ..hub.owners import Owners, check_owner
from ..sse import Event
from .app import Streams
from .context import RequestContext
from .timers import TIMER_SLACK, Timer, timer_queue

__all__ = ["Access", "AccessGuard", "ExpiresAt", "Owner", "Revalidate", "access_of", "check_derived", "to_unix_time"]


Owner: TypeAlias = Callable[[RequestContext], str | Iterable[str] | None]
ExpiresAt: TypeAlias = Callable[[RequestContext], float | dt.datetime | None]
Revalidate: TypeAlias = Callable[[RequestContext], bool | Awaitable[bool]]

JITTER = 0.2  # the random part of an interval, so that streams that were opened together are not asked together
# Intervals after which a revalidation that does not end is given up: a timeout has cancelled it after one.
MAX_INTERVALS = 1.5
# Seconds after which a stream looks at the clock again. Timers do not follow a clock that is set, or a machine that
# was suspended.
MAX_CLOCK_ERROR = 60.0
MAX_TIME = 253_402_300_800.0  # the end of the year 9999; an earlier moment that is given in milliseconds is later


class Access(NamedTuple):
    """What the application decided about a stream before its headers were sent."""

    owners: tuple[str, ...]
    """Whose stream it is."""
    expires_at: float | None
    """When it expires, in seconds of the Unix epoch; ``None``: never."""

    @property
    def expires_in(self) -> float:
        """The seconds until it expires."""
        return float("inf") if self.expires_at is None else self.expires_at - time.time()

    def check_expiry(self) -> None:
        """Raise a 401 if it has expired."""
        if self.expires_in <= 0:
            raise web.HTTPUnauthorized(text="The credentials have expired.\n")


def access_of(context: RequestContext, owner: Owner | None, expires_at: ExpiresAt | None) -> Access:
    """Ask the application's functions about a stream.

    Raises what they raise, an error for a wrong result, and the 400 response for an invalid owner.
    """
    owners = None if owner is None else check_synchronous(owner(context), "owner")
    if owners is None or isinstance(owners, str):
        owners = () if owners is None else (owners,)
    elif not isinstance(owners, Iterable):
        raise TypeError(f"owner returns a str, several, or None, not {owners!r}")
    moment = None if expires_at is None else check_synchronous(expires_at(context), "expires_at")
    expires = to_unix_time(moment, "expires_at returns")
    return Access(tuple([check_derived(context, "owner", check_owner, owner) for owner in owners]), expires)


def check_derived(context: RequestContext, what: str, check: Callable[[object], str], value: object) -> str:
    """Check a text that the application has made of a request. See ``Streams.check_derived``."""
    request = context.request
    return Streams.of(request).check_derived(request, context.execution_id, what, check, value)


def to_unix_time(moment: object, what: str = "expires_at is") -> float | None:
    """Return a moment in seconds of the Unix epoch. Raises ``TypeError`` or ``ValueError`` for a wrong one.

    ``what`` begins the message.
    """
    if moment is None:
        return None
    if isinstance(moment, dt.datetime):
        if moment.tzinfo is None:
            raise ValueError(f"{what} a datetime with a time zone, not {moment!r}")
        moment = moment.timestamp()
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise TypeError(f"{what} seconds of the Unix epoch, a datetime, or None, not {moment!r}")
    if not moment <= MAX_TIME:  # nor is NaN
        raise ValueError(f"{what} seconds of the Unix epoch until the year 9999, not {moment!r}")
    return float(moment)


class GuardedStream(Protocol):
    """An open stream, as its guard uses it."""

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream ended; ``None`` while it is open."""

    def end(self, reason: CloseReason) -> None:
        """End the stream."""

    def kick(self, kick_event: Event | None) -> None:
        """End the stream as ``kicked``, with this final event."""


class AccessGuard:
    """Ends a stream that has expired, that the application does not allow any more, or whose owner is disconnected.

    It exists before its stream, so that a disconnect reaches one that is opening.

    Args:
        context: The context of the request.
        access: What was decided about the stream.
        registries: Where its owners are to be known.
        revalidate: The application's function that decides whether the stream may go on, or ``None``.
        interval: Seconds between two calls of it.
    """

    __slots__ = (
        "_access",
        "_ask_at",
        "_asked_at",
        "_asking",
        "_context",
        "_interval",
        "_kick_events",
        "_registries",
        "_revalidate",
        "_stream",
        "_timer",
        "_variables",
    )

    def __init__(
        self,
        context: RequestContext,
        access: Access,
        registries: Iterable[Owners],
        revalidate: Revalidate | None,
        interval: float,
    ) -> None:
        self._context = context
        self._access = access
        self._registries = tuple(registries)
        self._revalidate = revalidate
        self._interval = interval
        self._stream: GuardedStream | None = None  # while it is open
        self._kick_events: list[Event | None] = []  # of disconnects while it was opening
        self._timer: Timer | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0  # these two in seconds of the event loop's clock
        self._ask_at = 0.0
        # The timer runs with the context variables of any request.
        self._variables = None if revalidate is None else contextvars.copy_context()

    # Before the stream is open.

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose stream it is."""
        return self._access.owners

    @property
    def requested_at(self) -> float:
        """When the stream was requested, in seconds of ``time.monotonic``."""
        return self._context._received_at

    def check_expiry(self) -> None:
        """Raise a 401 if the stream has expired."""
        self._access.check_expiry()

    def register(self) -> None:
        """Register the owners. ``stop`` is to be called in any case."""
        for registry in self._registries:
            registry.add(self, self._access.owners)

    def kick(self, kick_event: Event | None) -> None:
        """End the stream as ``kicked``, now or when it opens."""
        if self._stream is None:
            self._kick_events.append(kick_event)
        else:
            self._stream.kick(kick_event)

    # While it is open.

    def start(self, stream: GuardedStream) -> None:
        """Guard a stream that has opened. It may end at once."""
        self._stream = stream
        if self._kick_events:
            stream.kick(self._kick_events[0])
        if self._revalidate is not None or self._access.expires_at is not None:
            now = asyncio.get_running_loop().time()
            self._ask_at = now + self._random_interval()
            if stream.reason is None:
                self._timer = timer_queue().add(self, self._due(now))

    def stop(self) -> None:
        """Release everything, because the stream has ended or was not opened. Idempotent."""
        self._stream = None
        for registry in self._registries:
            registry.discard(self, self._access.owners)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None and self._asking is not asyncio.current_task():
            self._asking.cancel()

    def _random_interval(self) -> float:
        return self._interval * random.uniform(1 - JITTER, 1)  # noqa: S311  # not for security

    def _due(self, now: float) -> float:
        """Return when the stream expires, is asked about, or looks at the clock again, whichever comes first."""
        due = [] if self._revalidate is None else [self._ask_at]
        if self._access.expires_at is not None:
            due.append(now + min(max(self._access.expires_in, 0.0), MAX_CLOCK_ERROR))
        return min(due)

    def on_timer(self, now: float) -> float | None:
        """End the stream if it has expired, or ask whether it may go on. Return when to call this again."""
        stream = self._stream
        if stream is None or stream.reason is not None:
            return None
        if self._access.expires_in <= TIMER_SLACK:
            stream.end(CloseReason.EXPIRED)
            return None
        if self._revalidate is not None and self._ask_at <= now + TIMER_SLACK:
            self._ask_at = now + self._random_interval()
            if self._asking is None or self._asking.done():
                self._asked_at = now
                asking = self._ask(self._revalidate)
                self._asking = asyncio.get_running_loop().create_task(asking, context=self._variables)
            elif now >= self._asked_at + MAX_INTERVALS * self._interval:
                self._fail(TimeoutError("revalidate did not end when it was cancelled"))
                return None
        return self._due(now)

    async def _answer(self, revalidate: Revalidate) -> bool:
        answer: object = revalidate(self._context)
        if inspect.isawaitable(answer):
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
            self._fail(error)
        else:
            if not allowed and self._stream is not None:
                self._stream.kick(None)

    def _fail(self, error: BaseException) -> None:
        """End the stream because its revalidation failed."""
        log.exception(
            "stream_revalidation_failed",
            execution_id=self._context.execution_id,
            path=self._context.request.path,
            exc_info=error,
        )
        if self._stream is not None:
            self._stream.end(CloseReason.ERROR)
