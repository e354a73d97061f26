"""Streams behind nginx, HAProxy, Apache, Caddy and Varnish, with the configurations of ``docs/deploy``."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import ClientSession, TCPConnector, web

from aiohttp_interceptors import (
    STREAMS,
    CloseReason,
    Drain,
    Event,
    Hub,
    StopReconnecting,
    as_handler,
    event_stream,
    setup,
    start_event_stream,
    topic_stream,
)
from aiohttp_interceptors.ready import csrf
from tests.listener import Listener, listen
from tests.servers.process import free_port
from tests.servers.proxies import DEPLOY, PROXIES
from tests.waiting import TIMEOUT, run_other_tasks, until, within

if sys.platform == "win32":
    pytest.skip("the proxies are those of Debian", allow_module_level=True)

import resource

EVENTS = 10
REQUESTS = 20  # an event passes a proxy faster than so many requests, which are made one after the other
CLIENTS = 500
EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
NO_LINGER = struct.pack("ii", 1, 0)  # l_onoff and l_linger


class Site:
    """An application behind a proxy, which may stop and start again."""

    def __init__(self, proxy, port: int | None = None):
        self.proxy = proxy
        self.port = port or proxy.backend
        self.history = Hub()
        self.reasons: list[CloseReason] = []
        self.words: asyncio.Queue[str | None] = asyncio.Queue()
        self.bodies: list[int] = []
        self.listeners: list[Listener] = []
        self._runner: web.AppRunner | None = None

    def make_app(self) -> web.Application:
        app = web.Application(client_max_size=2**20)
        setup(app, drain=Drain(farewell=Event("bye", name="farewell"), spread=0))
        options = {"on_close": lambda context, reason: self.reasons.append(reason), "retry": 700}
        limited = web.Application()
        setup(limited, max_streams=0)
        limited.router.add_get("/", topic_stream(self.history, "a"))
        app.add_subapp("/limited", limited)
        app.add_routes(
            [
                web.get("/silent", topic_stream(self.history, "a", heartbeat=None, **options)),
                web.get("/lively", topic_stream(self.history, "a", heartbeat=0.1, **options)),
                web.get("/flood", as_handler(start_event_stream(flood, stall_timeout=1, **options))),
                web.post("/answer", event_stream(self.answer, heartbeat=None)),
                web.get("/unauthorized", self.refuse),
                web.get("/finished", event_stream(self.finish)),
                web.get("/ping", self.pong),
                web.get("/address", self.address),
                web.get("/socket", self.echo),
                web.post("/form", as_handler(csrf(), self.pong)),
            ]
        )
        return app

    async def answer(self, request: web.Request):
        self.bodies.append(len(await request.read()))
        while (word := await self.words.get()) is not None:
            yield word

    async def refuse(self, request):
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})

    async def finish(self, request: web.Request):
        raise StopReconnecting
        yield

    async def pong(self, request):
        return web.Response(text="pong", headers={"Cache-Control": "no-store"})

    async def echo(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def address(self, request):
        return web.Response(text=request.headers.getall("X-Forwarded-For")[-1].rpartition(",")[2].strip())

    async def start(self, **settings):
        self._runner = web.AppRunner(self.make_app(), access_log=None, shutdown_timeout=1.0, **settings)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=4096).start()

    async def stop(self):
        await self._runner.cleanup()

    async def listen(self, path: str, **options) -> Listener:
        """Open a stream through the proxy."""
        listener = await listen(self.proxy, path, **options)
        self.listeners.append(listener)
        return listener

    async def status(self, path: str) -> int | None:
        """Request a stream, and return the status, or ``None`` if the connection is closed without a response."""
        raw = await self.proxy.connect(f"GET {path} HTTP/1.1\nHost: x\nAccept: text/event-stream\n\n")
        line = await within(raw.reader.readline())
        raw.reset()
        await run_other_tasks()  # the transport closes
        return int(line.split()[1]) if line else None

    def cut(self) -> None:
        """Cut all streams."""
        for stream in self._runner.app[STREAMS]:
            stream.abort()

    async def publish(self, data: str) -> None:
        await self.history.publish("a", data)

    async def reachable(self, session) -> None:
        """Wait until the proxy has noticed that the application is back. Varnish waits for 0.25 s."""
        async with asyncio.timeout(TIMEOUT):
            while await self.ping(session) != 200:
                pass

    async def ping(self, session) -> int:
        """Make a request through the proxy, and return its status."""
        async with session.get(f"{self.proxy.url}/ping") as response:
            return response.status

    async def soon(self, condition, session, requests: int = REQUESTS) -> bool:
        """Return whether a condition holds before some requests are answered, which are made one after the other."""
        for _ in range(requests):
            assert await self.ping(session) == 200
            if condition():
                return True
        return False


async def flood(channel, context) -> None:
    """Put events until the stream ends."""
    while await channel.put("x" * 1000):
        pass


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request, tmp_path_factory):
    proxy = PROXIES[request.param](tmp_path_factory.mktemp("proxy"))
    proxy.start()
    yield proxy
    proxy.kill()


@pytest.fixture
async def site(proxy, request):
    cancellation = "handler_cancellation" in request.fixturenames and request.getfixturevalue("handler_cancellation")
    async with served(proxy, handler_cancellation=cancellation) as site:
        yield site


@asynccontextmanager
async def served(proxy, port: int | None = None, **settings: object):
    """Serve an application behind a proxy that runs."""
    site = Site(proxy, port)
    await site.start(**settings)
    yield site
    for listener in site.listeners:
        leave(listener)
    await run_other_tasks()  # their transports close
    await site.stop()


@pytest.fixture
async def changed(tmp_path):
    """Return a function that serves an application behind a proxy whose configuration was changed."""
    async with AsyncExitStack() as stack:

        async def start(program: str, changes: dict[str, str], **attributes: object) -> Site:
            proxy = PROXIES[program](tmp_path, changes, **attributes)
            proxy.start()
            stack.callback(proxy.kill)
            return await stack.enter_async_context(served(proxy))

        yield start


@pytest.fixture
async def session():
    async with ClientSession(connector=TCPConnector(ssl=False)) as session:
        yield session


@pytest.fixture
def many_files():
    """Allow as many open files as the streams and their clients need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 3 * CLIENTS
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            pytest.skip(f"a process may open {hard} files here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def arrives_soon(site: Site, listener: Listener, data: str, session, requests: int = REQUESTS) -> bool:
    """Publish an event, wait for it, and return whether it arrived before some requests were answered."""
    await site.publish(data)
    arriving = asyncio.ensure_future(listener.event())
    soon = await site.soon(arriving.done, session, requests)
    assert (await within(arriving)).data == data
    return soon


async def until_noticed(site: Site, session, count: int) -> None:
    """Wait until the application has seen the clients leave. Apache sees it by writing."""
    async with asyncio.timeout(TIMEOUT):
        while site.proxy.program == "apache2" and len(site.reasons) < count:
            await site.publish("x")
            await site.ping(session)
    await until(lambda: len(site.reasons) == count)
    assert set(site.reasons) == {CloseReason.CLIENT_LEFT}


def leave(listener: Listener) -> None:
    """Close a connection as a browser whose tab is closed: without waiting for the end of TLS."""
    listener.raw.writer.transport.abort()


async def test_an_event_arrives_before_the_next_one_is_published(site, session):
    """It passes requests through the same proxy, so that nothing held it back."""
    listener = await site.listen("/silent")
    for number in range(EVENTS):
        assert await arrives_soon(site, listener, str(number), session)
    assert [listener.status, listener.body.count(b"data: ")] == [200, EVENTS]


async def test_a_client_that_leaves_is_noticed(site, session, handler_cancellation):
    listener = await site.listen("/silent")
    await site.publish("x")
    assert await listener.data(1) == ["x"]
    leave(listener)
    await until_noticed(site, session, 1)


async def test_a_client_that_stops_reading_is_stalled(site):
    listener = await site.listen("/flood")
    listener.raw.writer.transport.pause_reading()
    await until(lambda: site.reasons)
    assert site.reasons == [CloseReason.STALLED]


@pytest.mark.parametrize("how", ["closes", "closes its end of TLS", "resets"])
async def test_with_heartbeats_a_client_that_leaves_in_any_way_is_noticed(site, how):
    listener = await site.listen("/lively")
    await listener.heartbeat()
    if how == "closes":
        leave(listener)
    elif how == "resets":
        listener.raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        leave(listener)
    else:
        listener.raw.writer.close()
    await until(lambda: site.reasons)
    assert site.reasons == [CloseReason.CLIENT_LEFT]


# The status while the application is down, at which an EventSource gives up. Without a response it tries again.
DOWN = {"nginx": 502, "haproxy": 503, "apache2": 503, "caddy": 502, "varnishd": None}


async def test_a_stop_ends_streams_completely_and_clients_resume_at_the_next_start(site, session):
    listener = await site.listen("/silent")
    await site.publish("one")
    assert await listener.data(1) == ["one"]
    await site.stop()
    events = await within(listener.rest())
    assert [event.name for event in events] == ["farewell"]
    assert (listener.complete, listener.retry) == (True, 700)
    assert site.reasons == [CloseReason.SHUTDOWN]
    assert await site.status("/silent") == DOWN[site.proxy.program]
    await site.publish("two")
    await site.start()
    await site.reachable(session)
    again = await site.listen("/silent", after=listener.last_event_id)
    assert await again.data(1) == ["two"]


async def test_a_stream_that_is_cut_does_not_look_complete_except_behind_caddy(site):
    listener = await site.listen("/silent")
    await site.publish("x")
    assert await listener.data(1) == ["x"]
    site.cut()
    assert await within(listener.rest()) == []
    assert listener.complete is (site.proxy.program == "caddy")


async def test_the_last_address_of_the_last_x_forwarded_for_is_that_of_the_client(site, session):
    async with session.get(f"{site.proxy.url}/address", headers={"X-Forwarded-For": "192.0.2.1"}) as response:
        assert await response.text() == "127.0.0.1"


async def test_a_form_of_the_page_itself_passes_the_check_of_its_origin(site, session):
    statuses = {}
    for origin in (site.proxy.url, "https://evil.example"):
        async with session.post(f"{site.proxy.url}/form", headers={"Origin": origin}) as response:
            statuses[origin] = response.status
    assert statuses == {site.proxy.url: 200, "https://evil.example": 403}


async def test_refusals_pass(site, session):
    async with session.get(f"{site.proxy.url}/unauthorized", headers=EVENT_SOURCE) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    async with session.get(f"{site.proxy.url}/finished", headers=EVENT_SOURCE) as response:
        assert (response.status, await response.read()) == (204, b"")
    async with session.get(f"{site.proxy.url}/limited/", headers=EVENT_SOURCE) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_the_answer_to_a_post_passes_word_by_word(site, session, accept):
    body = b"x" * 300_000
    asking = asyncio.ensure_future(session.post(f"{site.proxy.url}/answer", data=body, headers={"Accept": accept}))
    await site.words.put("word 0")
    response = await within(asking)
    assert (response.status, response.content_type, site.bodies) == (200, "text/event-stream", [len(body)])
    assert await within(response.content.readuntil(b"\n\n")) == b"data: word 0\n\n"
    for number in range(1, EVENTS):
        await site.words.put(f"word {number}")
        reading = asyncio.ensure_future(response.content.readuntil(b"\n\n"))
        assert await site.soon(reading.done, session)
        assert await reading == f"data: word {number}\n\n".encode()
    await site.words.put(None)
    assert await within(response.read()) == b""


async def test_many_streams_pass_and_leave(site, session, many_files):
    listeners = await asyncio.gather(*[site.listen("/silent") for _ in range(CLIENTS)])
    for word in ("one", "two"):
        await site.publish(word)
        assert await asyncio.gather(*[listener.data(1) for listener in listeners]) == [[word]] * CLIENTS
    for listener in listeners:
        leave(listener)
    await until_noticed(site, session, CLIENTS)


# What each line of a configuration is for, and what it must not contain.

TIMEOUTS = {
    "nginx": {"proxy_http_version 1.1;": "proxy_http_version 1.1; proxy_read_timeout 1s;"},
    "haproxy": {"timeout client 50s": "timeout client 1s", "timeout server 50s": "timeout server 1s"},
    "apache2": {"127.0.0.1:8080/": "127.0.0.1:8080/ timeout=1"},
    "varnishd": {},
}


@pytest.mark.parametrize("program", TIMEOUTS)
async def test_heartbeats_keep_a_stream_open_and_without_them_the_proxy_cuts_it(changed, program):
    """The timeout is a second here."""
    site = await changed(program, TIMEOUTS[program], parameters=("-p", "pipe_timeout=1"))
    silent, lively = await site.listen("/silent"), await site.listen("/lively")
    assert await within(silent.rest()) == []
    assert not silent.complete
    await until(lambda: site.reasons == [CloseReason.CLIENT_LEFT])
    await site.publish("x")
    assert await lively.data(1) == ["x"]


async def test_behind_nginx_with_http_1_0_a_stream_that_is_cut_looks_complete(changed):
    site = await changed("nginx", {"proxy_http_version 1.1;": ""})
    listener = await site.listen("/silent")
    site.cut()
    await within(listener.rest())
    assert listener.complete


async def test_nginx_that_ignores_our_header_holds_a_stream_back_until_its_end(changed, session):
    site = await changed("nginx", {"location / {": "location / { proxy_ignore_headers X-Accel-Buffering;"})
    opening = asyncio.ensure_future(session.get(f"{site.proxy.url}/silent", headers=EVENT_SOURCE))
    await until(lambda: site.history.subscribers("a"))
    await site.publish("x")
    assert not await site.soon(opening.done, session)
    await site.stop()
    assert b"data: x\n\n" in await within((await within(opening)).read())


async def test_caddy_that_compresses_sends_a_stream_as_it_is_from_the_first_heartbeat_on(changed, session):
    site = await changed("caddy", {"\treverse_proxy": "\tencode gzip\n\treverse_proxy"})
    async with session.get(f"{site.proxy.url}/lively", headers=EVENT_SOURCE) as response:
        assert "Content-Encoding" not in response.headers
        for number in range(EVENTS):
            await site.publish(str(number))
            reading = asyncio.ensure_future(response.content.readuntil(f"data: {number}\n\n".encode()))
            assert await site.soon(reading.done, session)


UNNOTICED = {
    "nginx": {"location / {": "location / { proxy_ignore_client_abort on;"},
    "haproxy": {"    option abortonclose": "    #"},
    "apache2": {},
    "varnishd": {"return (pipe)": "return (pass)"},
}


@pytest.mark.parametrize("program", UNNOTICED)
async def test_apache_and_others_with_other_settings_notice_only_by_writing_that_a_client_left(
    changed, session, program
):
    site = await changed(program, UNNOTICED[program])
    listener = await site.listen("/silent")
    leave(listener)
    assert not await site.soon(lambda: site.reasons, session)
    async with asyncio.timeout(TIMEOUT):
        while not site.reasons:
            await site.publish("x")
            await site.ping(session)
    assert site.reasons == [CloseReason.CLIENT_LEFT]


PLAIN = {" ssl crt /etc/ssl/shop-and-key.pem alpn h2,http/1.1": ""}


async def test_haproxy_without_tls_passes_an_event_at_once(changed, session):
    site = await changed("haproxy", PLAIN, scheme="http")
    listener = await site.listen("/silent")
    for number in range(EVENTS):
        assert await arrives_soon(site, listener, str(number), session)


async def test_haproxy_without_tls_and_http_no_delay_delays_events(changed, session):
    """By 0.2 s. On a busy machine a few of the requests may take longer."""
    site = await changed("haproxy", {**PLAIN, "    option http-no-delay": "    #"}, scheme="http")
    listener = await site.listen("/silent")
    soon = [await arrives_soon(site, listener, str(number), session, requests=5) for number in range(EVENTS)]
    assert not all(soon)


SEVERAL = {
    "nginx": {
        "http {": "http { upstream shop { server 127.0.0.1:8080 max_fails=0; server 127.0.0.1:8081 max_fails=0; }",
        "http://127.0.0.1:8080": "http://shop",
    },
    "haproxy": {
        "server one 127.0.0.1:8080": "server one 127.0.0.1:8080\n    server two 127.0.0.1:8081\n    option redispatch 1"
    },
    "caddy": {
        "reverse_proxy 127.0.0.1:8080": "reverse_proxy 127.0.0.1:8080 127.0.0.1:8081 {\n\t\tlb_try_duration 5s\n\t}"
    },
}


@pytest.mark.parametrize("program", SEVERAL)
async def test_the_streams_of_a_server_that_stops_go_to_the_other_one(changed, program):
    """No request is answered with an error, also the first one after the stop."""
    port = free_port()
    changes = {old: new.replace("8081", str(port)) for old, new in SEVERAL[program].items()}
    first = await changed(program, changes)
    async with served(first.proxy, port) as second:
        listeners = [await first.listen("/silent") for _ in range(6)]
        stay = second.history.subscribers("a")
        assert first.history.subscribers("a") + stay == len(listeners)
        await first.stop()
        again = [await first.listen("/silent") for _ in range(6)]
        assert [listener.status for listener in again] == [200] * 6
        assert second.history.subscribers("a") == stay + 6
        await second.publish("x")
        assert [await listener.data(1) for listener in again] == [["x"]] * 6


@pytest.mark.parametrize("program", SEVERAL)
async def test_servers_that_restart_one_after_the_other_leave_no_request_without_an_answer(changed, session, program):
    """Each comes back long before nginx, by default, would try it again."""
    port = free_port()
    changes = {old: new.replace("8081", str(port)) for old, new in SEVERAL[program].items()}
    first = await changed(program, changes)
    async with served(first.proxy, port) as second:
        for server in (first, second):
            await server.stop()
            assert [await first.ping(session) for _ in range(6)] == [200] * 6
            await server.start()
            assert [await first.ping(session) for _ in range(6)] == [200] * 6


@pytest.mark.parametrize("program", PROXIES)
async def test_a_reload_of_the_proxy_leaves_open_streams_as_they_are(changed, session, program):
    """The new configuration names another server."""
    first = await changed(program, {})
    async with served(first.proxy, free_port()) as second:
        stream = await first.listen("/silent")
        first.proxy.reload({str(first.port): str(second.port)})
        async with asyncio.timeout(TIMEOUT):
            while not second.history.subscribers("a"):
                await first.listen("/silent")
        await first.publish("x")
        assert await stream.data(1) == ["x"]
        count = first.history.subscribers("a")
        for listener in first.listeners[:count]:
            leave(listener)
        await until_noticed(first, session, count)


WEBSOCKETS = {
    "nginx": {
        "location / {": """location /socket {
            proxy_pass http://127.0.0.1:8080;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }
        location / {"""
    },
    "haproxy": {},
    "apache2": {"127.0.0.1:8080/": "127.0.0.1:8080/ upgrade=websocket"},
    "caddy": {},
    "varnishd": {
        'event-stream") {': 'event-stream" || req.http.Upgrade) {',
        'set bereq.http.Connection = "close";': """if (req.http.Upgrade) {
        set bereq.http.Upgrade = req.http.Upgrade;
        set bereq.http.Connection = req.http.Connection;
    } else {
        set bereq.http.Connection = "close";
    }""",
    },
}


@pytest.mark.parametrize("program", WEBSOCKETS)
async def test_a_websocket_passes_beside_a_stream(changed, session, program):
    site = await changed(program, WEBSOCKETS[program])
    listener = await site.listen("/silent")
    async with session.ws_connect(f"{site.proxy.url}/socket") as socket:
        await socket.send_str("one")
        assert await within(socket.receive_str()) == "one"
    assert await arrives_soon(site, listener, "two", session)


# Requests that a connection carries at the same time.
CONCURRENT = {"nginx": 128, "haproxy": 100, "caddy": 250}


@pytest.mark.parametrize("program", CONCURRENT)
async def test_a_connection_with_http_2_carries_as_many_streams_as_the_page_says(tmp_path, program):
    proxy = PROXIES[program](tmp_path)
    proxy.start()
    try:
        assert await concurrent_requests(proxy) == CONCURRENT[program]
    finally:
        proxy.kill()
    page = (DEPLOY.parent / "deploy.md").read_text()
    assert f"{CONCURRENT['nginx']} | {CONCURRENT['haproxy']} | six streams, see below | {CONCURRENT['caddy']} |" in page


async def concurrent_requests(proxy) -> int:
    """Return SETTINGS_MAX_CONCURRENT_STREAMS, which is number 3 (RFC 9113, 6.5)."""
    trusted = ssl.create_default_context(cafile=proxy.authority)
    trusted.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=trusted)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    head = await within(reader.readexactly(9))
    settings = await within(reader.readexactly(int.from_bytes(head[:3])))
    writer.transport.abort()
    await run_other_tasks()  # it closes
    return dict(struct.iter_unpack(">HI", settings))[3]
