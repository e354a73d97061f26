"""``inspector``: makes the sub-application with the page, its streams and its actions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from aiohttp import web

from ...chain import ContextKey
from ...compression import BodyEncoder
from ...exceptions import BrokerError
from ...facts import HubObserver, StreamObserver
from ...hub.hub import Hub
from ...hub.owners import check_owner
from ...interceptor import Interceptor, InterceptorLike
from ...ready import csrf, json_body, security_headers
from ...sse import Event
from ...web.app import STREAMS, Streams, setup
from ...web.context import RequestContext
from ...web.event_stream import event_stream
from ...web.middleware import Handler, intercept, interceptor_middleware
from .feed import Feed, Sampler
from .raw import RawView, Write, mask
from .recorder import Recorder
from .streams import ListedStream, Query, Scope, find_stream

__all__ = ["inspector"]


MAX_STREAMS = 20  # streams that all pages of an inspector have open; each page has one, and one for a raw view
MAX_BODY = 4096  # bytes of the JSON of an action
MAX_AGE = 900.0  # seconds, after which the streams of a page are opened again, and so authorized again
RETRY = 1000  # milliseconds
MAX_TOPIC = 255  # characters of the filter of topics
RAW_INTERVAL = 0.25  # seconds between two events of a raw view
PAGE = Path(__file__).parent / "page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
OTHER_PROCESS = (
    "This stream is one of another process than the one that this request has reached. "
    "Give the inspector of each process an address of its own.\n"
)
HEADERS = {"Content-Security-Policy": CSP, "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store"}
FILES = {
    "inspector.css": "text/css",
    "inspector.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _End:
    """The body of a request to end one stream, which is one of the process that the page is connected to."""

    process: str
    stream: str


@dataclass(frozen=True, slots=True)
class _Disconnect:
    """The body of a request to end all streams of an owner."""

    owner: str


def _refuse_other_sites(context: RequestContext) -> None:
    """Refuse a stream to the page of another site, which cannot read it, but could open as many as are allowed."""
    if context.request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        raise web.HTTPForbidden(text="This request comes from a page of another site.\n")


REFUSE_OTHER_SITES = Interceptor("refuse_other_sites", _refuse_other_sites)
END = ContextKey[_End]("inspector.end")
DISCONNECT = ContextKey[_Disconnect]("inspector.disconnect")


def inspector(
    *hubs: Hub,
    interceptors: Iterable[InterceptorLike[RequestContext]] = (),
    public: bool = False,
    show_data: bool = False,
    origins: Iterable[str] = (),
) -> web.Application:
    """Make a sub-application with a page that shows open streams, topics and Hubs, and can end streams.

    ``app.add_subapp("/inspector", inspector(hub, interceptors=[require_admin]))``

    The page shows the streams of the application that it is mounted in, and of all its sub-applications, in this
    process: also streams without a Hub, and those of applications without ``setup``. Served by itself, on a port of its
    own, it shows those of all applications of the process. Its own streams are left out, and do not count under the
    limits of the applications around it.

    Args:
        *hubs: The Hubs whose topics and brokers the page shows. ``hub.disconnect`` of each is called to end all
            streams of an owner. ``setup`` opens and closes them, not this.
        interceptors: Interceptors that refuse all users but operators. They run for each request: the page, its
            streams and its actions. Whether they refuse any cannot be checked.
        public: Every client may see the page and end streams. For development, or a port that only operators reach.
        show_data: The raw view of a stream shows the data, IDs and comments of events. Otherwise each of their bytes is
            shown as ``x``.
        origins: The page's own origin, such as ``"https://admin.example.com"``, behind a proxy that changes ``Host``.

    Returns:
        The sub-application, for ``add_subapp``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There is no interceptor, and ``public`` is not set, or a Hub is given twice.
    """
    for hub in hubs:
        if not isinstance(hub, Hub):
            raise TypeError(f"inspector takes Hubs, not {hub!r}")
        if hubs.count(hub) > 1:
            raise ValueError(f"inspector takes each Hub once, and was given {hub!r} twice")
    for name, flag in ("public", public), ("show_data", show_data):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is a bool, not {flag!r}")
    if not isinstance(interceptors, Iterable):
        raise TypeError(f"interceptors are a list of interceptors, not {interceptors!r}")
    chosen = tuple(each for each in interceptors if each is not None)
    if not chosen and not public:
        raise ValueError(
            "inspector() shows users and can end their streams, so it needs interceptors that refuse others: "
            "inspector(hub, interceptors=[require_admin]); public=True allows every client"
        )
    names = ["Hub"] if len(hubs) == 1 else [f"Hub {number}" for number in range(1, len(hubs) + 1)]
    headers = security_headers(csp=CSP, referrer_policy="no-referrer")
    middleware = interceptor_middleware(headers, *chosen, csrf(origins=origins))
    app = web.Application(middlewares=[middleware])
    setup(app, max_streams=MAX_STREAMS)
    app[STREAMS].separate = True
    _Inspector(dict(zip(names, hubs, strict=True)), show_data=show_data).mount(app)
    return app


class _Inspector:
    """The handlers and the state of one inspector."""

    def __init__(self, hubs: dict[str, Hub], *, show_data: bool) -> None:
        self._hubs = hubs
        self._show_data = show_data
        self._recorder = Recorder()
        self._process = ""  # what a page sends back, so that a request to another process is recognised
        self._sampler = Sampler(hubs, self._recorder)
        self._root: web.Application | None = None  # known from the first request on
        self._stream_observers: dict[Streams, StreamObserver] = {}
        self._hub_observers: dict[Hub, HubObserver] = {}

    def mount(self, app: web.Application) -> None:
        """Add the routes and the hooks of the application."""
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)
        router = app.router
        router.add_get("/", _file_handler("index.html", "text/html"))
        router.add_get("", _redirect)  # second: in an application that is served by itself both paths are "/"
        for name, content_type in FILES.items():
            router.add_get(f"/{name}", _file_handler(name, content_type))
        stream = event_stream(buffer=1, retry=RETRY, max_age=MAX_AGE, max_event_size=None)
        router.add_get("/feed", intercept(REFUSE_OTHER_SITES)(stream(self.feed)))
        router.add_get("/raw", intercept(REFUSE_OTHER_SITES)(stream(self.raw)))
        router.add_post("/end", intercept(json_body(END, _End, max_size=MAX_BODY))(self.end))
        disconnecting = json_body(DISCONNECT, _Disconnect, max_size=MAX_BODY)
        router.add_post("/disconnect", intercept(disconnecting)(self.disconnect))

    # Observing

    async def _start(self, _: web.Application) -> None:
        """Observe the Hubs, and the registries of all applications: which one is around this one is not known yet."""
        self._process = token_hex(8)
        for name, hub in self._hubs.items():
            self._hub_observers[hub] = observer = self._recorder.hub_observer(name)
            hub.add_observer(observer)
        self._observe([streams for streams in Streams.all_of_process() if not streams.separate])

    async def _stop(self, _: web.Application) -> None:
        await self._sampler.close()
        for hub, observer in self._hub_observers.items():
            hub._dispatcher.observers.remove(observer)
        self._hub_observers.clear()
        self._observe([])
        self._root = None

    def _observe(self, registries: list[Streams]) -> None:
        """Observe these registries, and no others."""
        for streams in self._stream_observers.keys() - set(registries):
            streams.remove_observer(self._stream_observers.pop(streams))
        for streams in registries:
            if streams not in self._stream_observers:
                self._stream_observers[streams] = observer = self._recorder.stream_observer(streams)
                streams.add_observer(observer)

    def _scope_of(self, request: web.Request) -> Scope:
        """Return what a page shows: the outermost application, or all of the process if that is this one."""
        root = request.match_info.apps[0]
        if STREAMS in root and root[STREAMS].separate:
            scope = Scope(None, Streams.all_of_process())
        else:
            scope = Scope(root, Streams.all_in(root))
        if self._root is not root:
            self._root = root
            observed = [streams for streams in scope.registries if not streams.separate]
            self._observe(observed)
            self._recorder.forget_others(observed)
        return scope

    async def _find(self, request: web.Request, process: str, key: str) -> ListedStream:
        """Return an open stream. Raises a 409 for one of another process, and a 404 for one that has ended."""
        scope = self._scope_of(request)
        if process != self._process:
            raise web.HTTPConflict(text=OTHER_PROCESS)
        stream = await find_stream(scope.streams(), key)
        if stream is None:
            raise web.HTTPNotFound(text="This stream has ended.\n")
        return stream

    # Streams of the page

    async def feed(self, context: RequestContext) -> AsyncGenerator[Event, None]:
        """Send a sample each second."""
        parameters = context.request.query
        try:
            query = Query(
                parameters.get("filter", ""),
                parameters.get("sort", "behind"),
                parameters.get("order", "descending") == "descending",
            )
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        scope = self._scope_of(context.request)
        topics = parameters.get("topics", "")[:MAX_TOPIC]
        feed = Feed(self._process, scope, self._hubs, self._recorder, query, topics)
        loop = asyncio.get_running_loop()
        self._sampler.page_opened()
        try:
            while True:
                began = loop.time()
                yield Event(await feed.next(), "sample")
                await asyncio.sleep(max(0.0, began + feed.interval - loop.time()))
        finally:
            self._sampler.page_closed()

    async def raw(self, context: RequestContext) -> AsyncGenerator[Event, None]:
        """Send what a stream sends, until it ends."""
        parameters = context.request.query
        stream = await self._find(context.request, parameters.get("process", ""), parameters.get("stream", ""))
        view, connection = RawView(), stream.connection
        connection.tap(view)
        try:
            compressed = isinstance(connection.encoder, BodyEncoder)
            shown = _size_only if compressed else self._shown
            yield Event(json.dumps({"masked": not self._show_data, "compressed": compressed}), "tap")
            has_ended = False
            while not has_ended:
                await view.changed.wait()
                has_ended = view.has_ended  # what was written before is taken, too
                writes, skipped = view.take()
                yield Event(json.dumps({"writes": list(map(shown, writes)), "skipped": skipped}), "writes")
                if not has_ended:
                    await asyncio.sleep(RAW_INTERVAL)
            yield Event("", "ended")
        finally:
            connection.untap(view)

    def _shown(self, write: Write) -> dict[str, object]:
        data = write.data if self._show_data else mask(write)
        return {"at": write.at, "size": write.size, "shown": len(data), "text": data.decode(errors="backslashreplace")}

    # Actions

    async def end(self, request: web.Request) -> web.Response:
        """End one stream."""
        body = RequestContext.of(request)[END]
        (await self._find(request, body.process, body.stream)).kick(None)
        return web.json_response({"ended": 1}, headers=HEADERS)

    async def disconnect(self, request: web.Request) -> web.Response:
        """End all streams of an owner: of this process first, then on all nodes."""
        try:
            owner = check_owner(RequestContext.of(request)[DISCONNECT].owner)
        except ValueError as error:
            raise web.HTTPUnprocessableEntity(text=f"{error}\n") from None
        for streams in self._scope_of(request).registries:
            streams.disconnect(owner)
        results = await asyncio.gather(*[hub.disconnect(owner) for hub in self._hubs.values()], return_exceptions=True)
        for result in results:
            if isinstance(result, BrokerError):
                why = "The streams of this process have ended, and other processes may not know of it"
                raise web.HTTPBadGateway(text=f"{why}: {result}\n")
            if result is not None:
                raise result
        return web.json_response({"disconnected": owner}, headers=HEADERS)


def _size_only(write: Write) -> dict[str, object]:
    return {"at": write.at, "size": write.size, "shown": 0, "text": ""}


async def _redirect(request: web.Request) -> web.Response:
    """Redirect to the page, whose addresses are relative. A proxy may have removed a part of the path in front."""
    raise web.HTTPFound(f"{request.path.rpartition('/')[2]}/")


def _file_handler(name: str, content_type: str) -> Handler:
    """Make the handler of a file of the page, which is read now."""
    body = (PAGE / name).read_bytes()

    async def file(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    return file
