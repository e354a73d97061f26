"""How open streams end when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

from aiohttp import web

from .._checks import check_seconds
from .._logging import log, log_fact
from ..exceptions import FATAL
from ..facts import StreamFact, StreamObserver, StreamRefused
from ..hub.hub import Hub
from ..sse import Event
from .context import before_commit
from .limits import KICKED, Key, LimitReached, Limits, OnLimit, Slot, take_slot
from .request import stopping

__all__ = ["AWAKE", "STREAMS", "Drain", "Drainable", "Streams", "setup"]


@dataclass(frozen=True, slots=True)
class Drain:
    """What ``setup`` does with open streams when the application stops; durations in seconds.

    New streams get 503 with a ``Retry-After``. Each open one gets what was put, the ``farewell`` if there is one, and
    a clean end of the body; those that use ``retry`` are told to come back a random time of up to ``spread`` later
    than usual, so that not all browsers return at once. Finite streams may go on for ``grace`` before; one that is not
    closed by then ends without the last chunk. A producer that has not come back to its channel is cancelled after
    four fifths of ``timeout``. Whatever is open ``timeout`` after its farewell, because its client does not read or its
    producer does not return, is aborted.
    """

    farewell: Event | None = None
    spread: float = 5.0
    grace: float = 5.0
    timeout: float = 1.0

    def __post_init__(self) -> None:
        if self.farewell is not None and not isinstance(self.farewell, Event):
            raise TypeError(f"farewell is an Event or None, not {self.farewell!r}")
        check_seconds("spread", self.spread, "", least=0)
        check_seconds("grace", self.grace, "", least=0)
        check_seconds("timeout", self.timeout, "")


T = TypeVar("T")

# The part of the drain's timeout in which a producer may come back to its channel, and a handler see that its stream
# is over. The rest is for the clean-up, once it was cancelled.
AWAKE = 0.8
# Seconds for streams that were aborted to run what remains of them: nobody of ours waits for anything any more.
ABORTED = 1.0


class Drainable(Protocol):
    """A stream, as its application sees it."""

    @property
    def finite(self) -> bool:
        """Whether it ends by itself after some time."""

    def say_farewell(self, drain: Drain) -> None:
        """End because the server stops."""

    def hurry(self) -> None:
        """Cancel a producer that has not come back to its channel."""

    def abort(self) -> None:
        """End, and do not wait for the client or the producer."""


class Streams:
    """The open streams of an application: who may open one, which there are, and how they end with it."""

    def __init__(
        self, drain: Drain | None = None, limits: Limits | None = None, observer: StreamObserver | None = None
    ) -> None:
        self.closing: bool = False
        self.patient: bool = True
        """Whether the producer of a stream that is over may come back to its channel."""
        self._drain = drain or Drain()
        self._limits = limits or Limits(None, None, None)
        self._observer = observer
        self._open: set[Drainable] = set()
        self._opening: set[asyncio.Timeout] = set()
        self._left: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        """Count those that are open."""
        return len(self._open)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Drainable]:
        """Walk over those that are open now."""
        return iter(list(self._open))

    @staticmethod
    def of(request: web.Request) -> Streams:
        """Return those of the innermost application that was set up, or else of all that were not."""
        found = _set_up(request.match_info.apps)
        return found[-1] if found else _OF_NO_SETUP

    def admit(self, request: web.Request, execution_id: int | str) -> Slot | None:
        """Take a place for a stream under the limits of all applications of the request, or raise the refusal.

        ``None`` if none of them has limits. The place is given back by itself.
        """
        limit = ""
        try:
            for streams in [self, *_set_up(request.match_info.apps)]:
                if streams.closing:  # a parent stops before its sub-applications do
                    raise stopping(streams._drain.spread)
            return take_slot(_limits_of(request.match_info.apps), request)
        except LimitReached as reached:
            refusal = reached.answer
            limit = reached.limit + _prefix_of(reached.limits, request.match_info.apps)
        except web.HTTPException as error:
            refusal = error
        why = (refusal.text or "").strip()
        self.tell(StreamRefused(execution_id, request.path, status=refusal.status, why=why, limit=limit))
        raise refusal

    async def unless_closing(
        self, request: web.Request, execution_id: int | str, before: Callable[[], Awaitable[T]]
    ) -> T:
        """Await what comes before a stream, or raise the refusal as soon as the application stops.

        Nothing else would end the wait for a client that sends no more of its request.
        """
        timeout = asyncio.timeout(0 if self.closing else None)
        try:
            async with timeout:
                if not self.closing:
                    self._opening.add(timeout)
                try:
                    return await before()
                finally:
                    self._opening.discard(timeout)
        except TimeoutError:
            if timeout.expired():
                self.admit(request, execution_id)  # which refuses
            raise

    def add(self, stream: Drainable) -> None:
        """Remember an open stream."""
        self._open.add(stream)
        if self.closing:  # it was let in before, and its head took until now
            self._say_farewell(stream)

    def discard(self, stream: Drainable) -> None:
        """Forget a stream that is over."""
        self._open.discard(stream)
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    def tell(self, fact: StreamFact) -> None:
        """Log a fact, and tell the observer; one that raises is logged and not told again."""
        log_fact(fact)
        if self._observer is not None:
            try:
                self._observer(fact)
            except FATAL:
                raise
            except BaseException as error:  # noqa: BLE001  # it only looks on
                self._observer = None
                log.exception("stream_observer_dropped", exc_info=error)

    def open(self) -> None:
        """Take new streams, also after a ``close``: an application can be served again. Idempotent."""
        self.closing = False
        self.patient = True

    async def close(self) -> None:
        """Take no new streams, and end the open ones as the drain says. Cancelling is safe: the rest is for aiohttp."""
        self.closing = True
        drain = self._drain
        opening, self._opening = self._opening, set()  # none is rescheduled again: it may be expiring then
        for timeout in opening:
            timeout.reschedule(asyncio.get_running_loop().time())
        if drain.grace and any(stream.finite for stream in self._open):
            for stream in self:
                if not stream.finite:
                    self._say_farewell(stream)
            await self._until(lambda: not any(stream.finite for stream in self._open), drain.grace)
        for stream in self:
            self._say_farewell(stream)
        await self._until(lambda: not self._open, drain.timeout * AWAKE)
        self.patient = False
        for stream in self:
            self._hurry(stream)
        await self._until(lambda: not self._open, drain.timeout * (1 - AWAKE))
        if self._open:
            log.warning("streams_aborted", streams=len(self._open), seconds=drain.timeout)
            for stream in self:
                self._abort(stream)
            await self._until(lambda: not self._open, ABORTED)

    def _say_farewell(self, stream: Drainable) -> None:
        """End a stream; one that fails at that keeps no other from its end."""
        try:
            stream.say_farewell(self._drain)
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # of one
            log.exception("stream_farewell_failed", exc_info=error)
            self._abort(stream)

    def _hurry(self, stream: Drainable) -> None:
        try:
            stream.hurry()
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # of one
            log.exception("stream_end_failed", exc_info=error)
            self._abort(stream)

    def _abort(self, stream: Drainable) -> None:
        try:
            stream.abort()
        except FATAL:
            raise
        except BaseException as error:  # noqa: BLE001  # of one
            log.exception("stream_abort_failed", exc_info=error)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until it holds, as streams leave, but not longer than that."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._left = asyncio.get_running_loop().create_future()
                    await self._left
        except TimeoutError:
            pass
        finally:
            self._left = None


STREAMS = web.AppKey("aiohttp_interceptors.streams", Streams)
"""Where an application that was set up has its open streams: ``len(request.config_dict[STREAMS])``."""

_OF_NO_SETUP = Streams()


def _set_up(apps: Sequence[web.Application]) -> list[Streams]:
    """List those of the applications that were set up, outermost first."""
    return [app[STREAMS] for app in apps if STREAMS in app]


def _limits_of(apps: Sequence[web.Application]) -> list[Limits]:
    """List the limits of the applications that were set up, innermost first."""
    return [streams._limits for streams in reversed(_set_up(apps)) if streams._limits.counts]


def _prefix_of(limits: Limits, apps: Sequence[web.Application]) -> str:
    """Tell which of the applications has these limits, for the log: where it was added, if it was added to another."""
    for outer, app in pairwise(apps):
        if STREAMS in app and app[STREAMS]._limits is limits:
            found = (resource for resource in outer.router.resources() if resource.get_info().get("app") is app)
            return "".join(f" of {resource.canonical}" for resource in found)
    return ""


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
