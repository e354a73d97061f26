"""The open streams of an application: which requests may open one, and how they end when the server stops.

``setup`` prepares an application. It stores a ``Streams`` registry under ``STREAMS``, which applies the limits of the
application and ends its streams as a ``Drain`` configures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol, TypeVar
from weakref import WeakSet

from aiohttp import web

from .._checks import check_seconds
from .._logging import log, log_fact, logs_everyday_facts
from .._observers import Observers
from ..exceptions import EXIT_EXCEPTIONS
from ..facts import EventsDropped, StreamClosed, StreamFact, StreamObserver, StreamOpened, StreamRefused
from ..hub.hub import Hub
from ..hub.owners import Owners, check_disconnect
from ..sse import Event
from .client import add_client, client_url
from .context import before_commit
from .limits import DEFAULT_KICK_EVENT, Key, LimitReached, Limits, OnLimit, Slot, acquire_slot, check_slot
from .request import invalid_value, route_of, server_stopping

__all__ = ["CANCEL_FRACTION", "STREAMS", "Drain", "Drainable", "Streams", "setup"]


T = TypeVar("T")

# Fraction of Drain.timeout after which producers and handlers are cancelled. The rest is for their clean-up.
CANCEL_FRACTION = 0.8
# Seconds to wait for aborted streams. Nothing in this library delays them any more.
ABORT_TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class Drain:
    """How the open streams of an application end when the server stops.

    New streams are refused with 503 and a ``Retry-After``. An open stream sends its buffered events, then the
    ``farewell`` event, then the end of its body.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: A duration is negative or infinite, or ``timeout`` is 0.
    """

    farewell: Event | None = None
    """Final event of each stream, or ``None`` for no final event."""
    spread: float = 5.0
    """Seconds over which clients reconnect. A random part is added to the ``retry`` of each stream that has one."""
    grace: float = 5.0
    """Seconds that finite streams may continue. A stream that is still open then ends without its last chunk."""
    timeout: float = 1.0
    """Seconds that a stream may take to end after its final event.

    After four fifths, a producer that has not returned to its channel is cancelled. After all of it, the stream is
    aborted: its client does not read, or its producer does not return.
    """

    def __post_init__(self) -> None:
        if self.farewell is not None and not isinstance(self.farewell, Event):
            raise TypeError(f"farewell is an Event or None, not {self.farewell!r}")
        check_seconds("spread", self.spread, "", minimum=0)
        check_seconds("grace", self.grace, "", minimum=0)
        check_seconds("timeout", self.timeout, "")


class Drainable(Protocol):
    """An open stream, as the registry of its application uses it."""

    @property
    def finite(self) -> bool:
        """Whether the stream ends by itself after some time."""

    def shut_down(self, drain: Drain) -> None:
        """Send the final event and end the stream."""

    def cancel_producer(self) -> None:
        """Cancel the producer if it has not returned to its channel."""

    def abort(self) -> None:
        """End the stream without waiting for its client or its producer."""


class Streams:
    """The registry of an application's open streams.

    ``len(streams)`` is the number of open streams, and iterating over the registry gives them. ``disconnect`` and
    ``add_observer`` are for applications, and all other methods are called by the library.

    Args:
        drain: How open streams end when the server stops.
        limits: The limits of the application.
        observer: A function that is called with each fact, or several.
    """

    def __init__(
        self,
        drain: Drain | None = None,
        limits: Limits | None = None,
        observer: StreamObserver | Sequence[StreamObserver] | None = None,
    ) -> None:
        self.closing: bool = False
        """Whether the server is stopping, so that new streams are refused."""
        self.allow_grace: bool = True
        """Whether the producer of a closed stream has its grace period to return to its channel."""
        self.owners: Owners = Owners()
        """The owners of the open streams of this application and its sub-applications."""
        self._drain = drain or Drain()
        self._limits = limits or Limits(None, None, None)
        self.separate: bool = False
        """Whether the streams are not counted by the applications around this one, as those of an inspector."""
        self._observers: Observers[StreamFact] = Observers(observer, "stream_observer_dropped")
        self._open: set[Drainable] = set()
        self._opening: set[asyncio.Timeout] = set()  # of requests in run_unless_shutdown
        self._discarded: asyncio.Future[None] | None = None  # done when the next stream is discarded
        self._client: web.AbstractResource | None = None  # the route of the client module

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self._open)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Drainable]:
        """Iterate over a copy, so that streams may end during the iteration."""
        return iter(list(self._open))

    @staticmethod
    def of(request: web.Request) -> Streams:
        """Return the registry of the innermost application with ``setup``, or the one that all others share.

        Args:
            request: A request of the application.
        """
        registries = _registries(request.match_info.apps)
        return registries[-1] if registries else _SHARED

    @staticmethod
    def all_of(request: web.Request) -> list[Streams]:
        """Return the registries of all applications of a request that have one, or the one that all others share.

        Args:
            request: A request of the innermost application.
        """
        return _registries(request.match_info.apps) or [_SHARED]

    @staticmethod
    def all_in(app: web.Application) -> list[Streams]:
        """Return the registries of an application and its sub-applications, and the shared one if it has none.

        Args:
            app: The outermost application.
        """
        found = [app[STREAMS]] if STREAMS in app else [_SHARED]
        for inner in _sub_applications(app):
            found += [streams for streams in Streams.all_in(inner) if streams is not _SHARED]
        return found

    @property
    def is_shared(self) -> bool:
        """Whether it is the one of all applications without ``setup``."""
        return self is _SHARED

    @staticmethod
    def all_of_process() -> list[Streams]:
        """Return the registries of all applications of this process, with the one that is shared."""
        return [_SHARED, *_ALL]

    def add_observer(self, observer: StreamObserver) -> None:
        """Call a function with the facts of this registry from now on, as ``observer=`` of ``setup`` does.

        Args:
            observer: A plain function of a fact. It is logged and removed if it raises.

        Raises:
            TypeError: The observer is not a function.
        """
        self._observers.add(observer)

    def remove_observer(self, observer: StreamObserver) -> None:
        """Do not call a function any more. Idempotent.

        Args:
            observer: The function that was added.
        """
        self._observers.remove(observer)

    @property
    def client_url(self) -> str:
        """The path of the module that ``setup(app, client=...)`` serves, with the version of its content.

        Browsers keep what they load from it, and load it again when a new release has another content. Plain
        ``client`` is a valid URL too, for which they ask the server each time.

        Raises:
            RuntimeError: The application does not serve the module.
        """
        if self._client is None:
            raise RuntimeError("setup(app) was called without client, so that the application serves no module")
        return client_url(self._client)

    def disconnect(self, owner: str, event: Event | None = None) -> None:
        """End all streams of an owner as ``kicked``, in this application and its sub-applications on this process.

        ``Hub.disconnect`` does it on all nodes.

        Args:
            owner: What the ``owner`` function of the streams returned, such as ``"user:7"``.
            event: The final event of the streams, or ``None`` for no such event.

        Raises:
            TypeError: An argument is of a wrong type.
            ValueError: The owner is empty or too long, or the event has an ID.
        """
        check_disconnect(owner, event)
        self.owners.disconnect(owner, event)

    # Opening a stream

    def admit(self, request: web.Request, execution_id: int | str) -> Slot | None:
        """Acquire a slot under the limits of all applications of a request.

        Args:
            request: The request for a stream.
            execution_id: Identifies the request in facts.

        Returns:
            The slot, which the stream releases, or ``None`` if there are no limits.

        Raises:
            web.HTTPException: The server is stopping or a limit is reached.
        """
        return self._admit(request, execution_id, acquire_slot)

    def check_admission(self, request: web.Request, execution_id: int | str) -> None:
        """Refuse a request that ``admit`` would refuse, before the application does any work for it.

        Args:
            request: The request for a stream.
            execution_id: Identifies the request in facts.

        Raises:
            web.HTTPException: The server is stopping or a limit is reached.
        """
        self._admit(request, execution_id, check_slot)

    def _admit(
        self, request: web.Request, execution_id: int | str, acquire: Callable[[Sequence[Limits], web.Request], T]
    ) -> T:
        limit = ""
        try:
            registries = _registries(request.match_info.apps)
            for streams in (self, *registries):
                if streams.closing:  # an application stops before its sub-applications do
                    raise server_stopping(streams._drain.spread)
            return acquire(_limits_of(registries), request)
        except LimitReached as reached:
            refusal = reached.response
            limit = reached.limit + _location_of(reached.limits, request.match_info.apps)
        except web.HTTPException as error:
            refusal = error
        self._report_refused(request, execution_id, refusal, (refusal.text or "").strip(), limit)
        raise refusal

    def _report_refused(
        self, request: web.Request, execution_id: int | str, refusal: web.HTTPException, why: str, limit: str = ""
    ) -> None:
        route = route_of(request)
        self.report(StreamRefused(execution_id, request.path, status=refusal.status, why=why, limit=limit, route=route))

    def check_derived(
        self, request: web.Request, execution_id: int | str, what: str, check: Callable[[object], str], value: object
    ) -> str:
        """Check a text that the application has made of a request, such as a topic, and return it.

        Most such texts contain a part of the path, of the query or of a token, so that the request is wrong, and not
        the application. The value is in the fact, and not in the response: the client may not know all of it.

        Args:
            request: The request for a stream.
            execution_id: Identifies the request in facts.
            what: The word for the text in the response.
            check: Returns the value if it is valid, and raises ``TypeError`` or ``ValueError`` otherwise.
            value: The value.

        Raises:
            TypeError: The value is no text: an error of the application.
            web.HTTPException: The text is invalid: the 400 response.
        """
        try:
            return check(value)
        except ValueError as error:
            refusal = invalid_value(what)
            self._report_refused(request, execution_id, refusal, str(error))
            raise refusal from error

    async def run_unless_shutdown(
        self, request: web.Request, execution_id: int | str, function: Callable[[], Awaitable[T]]
    ) -> T:
        """Await a function before a stream opens, and cancel it when the server stops.

        Without this, a client that does not send its request body would delay the shutdown.

        Args:
            request: The request for a stream.
            execution_id: Identifies the request in facts.
            function: The function to await.

        Raises:
            web.HTTPException: The server is stopping.
        """
        timeout = asyncio.timeout(0 if self.closing else None)
        try:
            async with timeout:
                if not self.closing:
                    self._opening.add(timeout)
                try:
                    return await function()
                finally:
                    self._opening.discard(timeout)
        except TimeoutError:
            if timeout.expired():
                self.admit(request, execution_id)  # raises the refusal
            raise

    @property
    def grace(self) -> float:
        """Seconds that finite streams may continue when the server stops."""
        return self._drain.grace

    def stop_timeout(self) -> float | None:
        """Return the seconds that a stream may take to end if the server is stopping, or else ``None``."""
        return self._drain.timeout if self.closing else None

    def add(self, stream: Drainable) -> None:
        """Add an open stream.

        Args:
            stream: The stream. It is shut down at once if the application is stopping.
        """
        self._open.add(stream)
        if self.closing:  # the stream was admitted before, and sending its headers took until now
            self._shut_down(stream)

    def discard(self, stream: Drainable) -> None:
        """Remove a closed stream. Idempotent.

        Args:
            stream: The stream.
        """
        self._open.discard(stream)
        if self._discarded is not None and not self._discarded.done():
            self._discarded.set_result(None)

    @property
    def reports_everyday_facts(self) -> bool:
        """Whether facts that happen all day are observed or logged."""
        return bool(self._observers) or logs_everyday_facts()

    def report(self, fact: StreamOpened | StreamClosed | StreamRefused | EventsDropped) -> None:
        """Log a fact and call the observers. An observer that raises is removed, and its exception is logged.

        Args:
            fact: What happened to a stream.
        """
        log_fact(fact)
        self._observers.tell(fact)

    # Starting and stopping the application

    def open(self) -> None:
        """Accept new streams, also after ``close``: an application can be served again. Idempotent."""
        self.closing = False
        self.allow_grace = True

    async def close(self) -> None:
        """Refuse new streams and end the open ones as the drain configures. Idempotent.

        Cancelling is safe: aiohttp closes the remaining connections.
        """
        self.closing = True
        drain = self._drain
        # Replaced first: a timeout that is expiring must not be rescheduled by a second call.
        opening, self._opening = self._opening, set()
        for timeout in opening:
            timeout.reschedule(asyncio.get_running_loop().time())
        if drain.grace and any(stream.finite for stream in self._open):
            for stream in self:
                if not stream.finite:
                    self._shut_down(stream)
            await self._wait_until(lambda: not any(stream.finite for stream in self._open), drain.grace)
        for stream in self:
            self._shut_down(stream)
        await self._wait_until(lambda: not self._open, drain.timeout * CANCEL_FRACTION)
        self.allow_grace = False
        for stream in self:
            if not _call(stream.cancel_producer, "stream_end_failed"):
                _call(stream.abort, "stream_abort_failed")
        await self._wait_until(lambda: not self._open, drain.timeout * (1 - CANCEL_FRACTION))
        if self._open:
            log.warning("streams_aborted", streams=len(self._open), seconds=drain.timeout)
            for stream in self:
                _call(stream.abort, "stream_abort_failed")
            await self._wait_until(lambda: not self._open, ABORT_TIMEOUT)

    def _shut_down(self, stream: Drainable) -> None:
        if not _call(partial(stream.shut_down, self._drain), "stream_farewell_failed"):
            _call(stream.abort, "stream_abort_failed")

    async def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition holds, checking it when a stream is discarded, or until the time is over."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._discarded = asyncio.get_running_loop().create_future()
                    await self._discarded
        except TimeoutError:
            pass
        finally:
            self._discarded = None


STREAMS = web.AppKey("aiohttp_interceptors.streams", Streams)
"""Key of an application's registry. ``len(request.config_dict[STREAMS])`` is the number of open streams."""

_SHARED = Streams()  # of all applications without setup
_ALL: WeakSet[Streams] = WeakSet()  # of all applications with setup


def setup(  # noqa: PLR0913  # each option is independent and has a default
    app: web.Application,
    *hubs: Hub,
    drain: Drain | None = None,
    max_streams: int | None = None,
    max_streams_per_key: int | None = None,
    key: Key | None = None,
    on_limit: OnLimit = "refuse",
    kick_event: Event | None = DEFAULT_KICK_EVENT,
    observer: StreamObserver | Sequence[StreamObserver] | None = None,
    client: str | None = None,
) -> None:
    """Set up the streams and the Hubs of an application.

    Call it before the application starts, and before it is added to another one. A second call without options does
    nothing.

    When the server stops, open streams end as ``drain`` configures; aiohttp alone would wait for them until its own
    timeout. Staged ``response_headers`` are also sent with responses that a handler prepares itself, such as a
    WebSocket.

    A stream counts under the limits from its response headers until it ends or its connection is lost, not while its
    producer cleans up. HEAD requests are not counted. A stream of a sub-application counts under the limits of each
    application around it that was set up. Refusals have a ``Retry-After``. An ``EventSource`` does not reconnect after
    a refusal.

    Args:
        app: The application.
        *hubs: Hubs to open when the application starts, so that other threads can publish, and to close concurrently
            when it is cleaned up. If closing fails, the cleanup raises the exception, or an ``ExceptionGroup`` of
            several. A Hub with a broker cannot be opened again: serving the application a second time raises
            ``RuntimeError``.
        drain: How open streams end when the server stops. Default: ``Drain()``.
        max_streams: Number of open streams from which another one is refused with 503; ``None`` for no limit.
        max_streams_per_key: The same for the streams of one key, which are refused with 429. Requires ``key``.
        key: A function of the request that returns what to count by, such as a user or an address.
        on_limit: ``"refuse"``, or ``"kick"``: a stream above ``max_streams_per_key`` opens, and the oldest stream of
            the key ends as ``CloseReason.KICKED``. For each stream that a key may have, at most 5 are kicked within 60
            seconds; then new streams are refused with 429.
        kick_event: The final event of a kicked stream, or ``None``. The default is named ``kicked``. The page should
            call ``EventSource.close()`` when it receives the event, or it reconnects and kicks the newer stream. A
            client that does not read is disconnected without the event.
        observer: A plain function, or a sequence of them, that is called with each fact: ``StreamOpened``,
            ``StreamFirstEvent``, ``StreamClosed``, ``StreamRefused`` and ``EventsDropped``. One that raises is logged
            and removed; the others stay.
        client: The path, such as ``"/event-stream.js"``, at which the application serves the module with which a page
            reads streams; ``None`` to serve no module. ``Streams.client_url`` is the URL for pages.

    Raises:
        TypeError: An argument has the wrong type, or only one of ``key`` and ``max_streams_per_key`` is given.
        ValueError: A limit is negative, or ``on_limit`` or ``client`` is invalid.
        RuntimeError: The application has started or was added to another one, or a second call has options.
    """
    if not isinstance(app, web.Application):
        raise TypeError(f"setup takes a web.Application, not {app!r}")
    if drain is not None and not isinstance(drain, Drain):
        raise TypeError(f"drain is a Drain, not {drain!r}")
    for hub in hubs:
        if not isinstance(hub, Hub):
            raise TypeError(f"setup takes the application and its Hubs, not {hub!r}")
    limits = Limits(max_streams, max_streams_per_key, key, on_limit, kick_event)
    streams = Streams(drain, limits, observer)
    if STREAMS in app:
        options = (drain, max_streams, max_streams_per_key, key, observer, client)
        if hubs or any(option is not None for option in options) or kick_event is not DEFAULT_KICK_EVENT:
            raise RuntimeError("setup(app) was called before; give it all its options in one call")
        return
    if app.frozen or app.pre_frozen:
        raise RuntimeError("call setup(app) before the application starts, and before add_subapp")
    streams._client = add_client(app, client)
    app[STREAMS] = streams
    _ALL.add(streams)
    app.on_response_prepare.append(before_commit)
    app.on_startup.append(_on_startup)
    if hubs:
        _link_owners(hubs, app[STREAMS].owners)
        app.cleanup_ctx.append(partial(_hub_lifespan, hubs))
        app.on_shutdown.append(partial(_end_listeners, hubs))  # first: a WebSocket that listens would delay the stop
    app.on_shutdown.append(partial(_on_shutdown, hubs))


def _link_owners(hubs: Sequence[Hub], owners: Owners) -> None:
    for hub in hubs:
        hub._owners.link(owners)


async def _on_startup(app: web.Application) -> None:
    app[STREAMS].open()


async def _on_shutdown(hubs: Sequence[Hub], app: web.Application) -> None:
    streams = app[STREAMS]
    await asyncio.gather(streams.close(), *[hub.drain_runs(streams.grace * CANCEL_FRACTION) for hub in hubs])


async def _end_listeners(hubs: Sequence[Hub], _: web.Application) -> None:
    for hub in hubs:
        hub.end_listeners()


async def _hub_lifespan(hubs: Sequence[Hub], _: web.Application) -> AsyncIterator[None]:
    opened: list[Hub] = []
    try:
        for hub in hubs:
            hub.open()
            opened.append(hub)
        yield
    finally:
        await _close_hubs(opened)


async def _close_hubs(hubs: Sequence[Hub]) -> None:
    """Close Hubs concurrently, so that one that fails or hangs does not keep another one open."""
    results = await asyncio.gather(*[hub.close() for hub in hubs], return_exceptions=True)
    errors = [result for result in results if result is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("several Hubs failed to close", errors)


def _call(method: Callable[[], None], event: str) -> bool:
    """Call a method of a stream and return whether it succeeded. An exception is logged: other streams must end too."""
    try:
        method()
    except EXIT_EXCEPTIONS:
        raise
    except BaseException as error:  # noqa: BLE001  # see above
        log.exception(event, exc_info=error)
        return False
    return True


def _registries(apps: Sequence[web.Application]) -> list[Streams]:
    """Return the registries of the applications with ``setup``, outermost first."""
    found = [app.get(STREAMS) for app in apps]
    return [streams for streams in found if streams is not None]


def _limits_of(registries: Sequence[Streams]) -> list[Limits]:
    """Return the limits of these applications, innermost first, up to one whose streams are separate."""
    found: list[Limits] = []
    for streams in reversed(registries):
        if streams._limits.enabled:
            found.append(streams._limits)
        if streams.separate:
            break
    return found


def _sub_applications(app: web.Application) -> Iterator[web.Application]:
    for resource in app.router.resources():
        inner = resource.get_info().get("app")
        if inner is not None:
            yield inner


def _location_of(limits: Limits, apps: Sequence[web.Application]) -> str:
    """Return " of " and the prefix of the sub-application with these limits, or "" for the outermost application."""
    for outer, app in pairwise(apps):
        if STREAMS in app and app[STREAMS]._limits is limits:
            found = (resource for resource in outer.router.resources() if resource.get_info().get("app") is app)
            return "".join(f" of {resource.canonical}" for resource in found)
    return ""
