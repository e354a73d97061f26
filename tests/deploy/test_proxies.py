"""Streams behind nginx, HAProxy, Apache, Caddy and Varnish, with the configurations of ``docs/deploy``."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

import pytest
from aiohttp import ClientSession, TCPConnector, web

from aiohttp_interceptors import (
    CloseReason,
    Drain,
    Event,
    Hub,
    StopReconnecting,
    event_stream,
    setup,
    topic_stream,
)
from tests.listener import Listener, listen
from tests.servers.proxies import PROXIES
from tests.waiting import TIMEOUT, run_other_tasks, until, within

if sys.platform == "win32":
    pytest.skip("the proxies are those of Debian", allow_module_level=True)

import resource

EVENTS = 10
REQUESTS = 20  # an event passes a proxy faster than so many requests, which are made one after the other
STREAMS = 500
EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
NO_LINGER = struct.pack("ii", 1, 0)  # l_onoff and l_linger


class Site:
    """An application behind a proxy, which may stop and start again."""

    def __init__(self, proxy):
        self.proxy = proxy
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
                web.post("/answer", event_stream(self.answer, heartbeat=None)),
                web.get("/unauthorized", self.refuse),
                web.get("/finished", event_stream(self.finish)),
                web.get("/ping", self.ping),
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

    async def ping(self, request):
        return web.Response(text="pong", headers={"Cache-Control": "no-store"})

    async def start(self):
        self._runner = web.AppRunner(self.make_app(), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.proxy.backend, backlog=4096).start()

    async def stop(self):
        await self._runner.cleanup()

    async def listen(self, path: str, **options) -> Listener:
        """Open a stream through the proxy."""
        listener = await listen(self.proxy, path, **options)
        self.listeners.append(listener)
        return listener

    async def publish(self, data: str) -> None:
        await self.history.publish("a", data)

    async def reachable(self, session) -> None:
        """Wait until the proxy has noticed that the application is back. Varnish waits for 0.25 s."""
        async with asyncio.timeout(TIMEOUT):
            status = 0
            while status != 200:
                async with session.get(f"{self.proxy.url}/ping") as response:
                    status = response.status

    async def overtaken(self, awaitable, session) -> bool:
        """Return whether what is awaited arrives before the answers to some requests through the same proxy."""
        task = asyncio.ensure_future(awaitable)
        for _ in range(REQUESTS):
            async with session.get(f"{self.proxy.url}/ping") as response:
                assert response.status == 200
            if task.done():
                await task
                return False
        task.cancel()
        return True


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request, tmp_path_factory):
    proxy = PROXIES[request.param](tmp_path_factory.mktemp("proxy"))
    proxy.start()
    yield proxy
    proxy.kill()


@pytest.fixture
async def site(proxy):
    site = Site(proxy)
    await site.start()
    yield site
    for listener in site.listeners:
        leave(listener)
    await run_other_tasks()  # their transports close
    await site.stop()


@pytest.fixture
async def session():
    async with ClientSession(connector=TCPConnector(ssl=False)) as session:
        yield session


@pytest.fixture
def many_files():
    """Allow as many open files as the streams and their clients need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 3 * STREAMS
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            pytest.skip(f"a process may open {hard} files here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def leave(listener: Listener) -> None:
    """Close a connection as a browser whose tab is closed: without waiting for the end of TLS."""
    listener.raw.writer.transport.abort()


async def test_an_event_arrives_before_the_next_one_is_published(site, session):
    """It overtakes requests through the same proxy, so that nothing held it back."""
    listener = await site.listen("/silent")
    for number in range(EVENTS):
        await site.publish(str(number))
        assert not await site.overtaken(listener.event(), session)
    assert [listener.status, listener.body.count(b"data: ")] == [200, EVENTS]


async def test_a_client_that_leaves_is_noticed(site):
    listener = await site.listen("/silent")
    await site.publish("x")
    assert await listener.data(1) == ["x"]
    leave(listener)
    if site.proxy.program == "apache2":  # the second write fails
        for _ in range(2):
            assert site.reasons == []
            await site.publish("x")
            await run_other_tasks()
    await until(lambda: site.reasons)
    assert site.reasons == [CloseReason.CLIENT_LEFT]


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


async def test_a_stop_ends_streams_completely_and_clients_resume_at_the_next_start(site, session):
    listener = await site.listen("/silent")
    await site.publish("one")
    assert await listener.data(1) == ["one"]
    await site.stop()
    events = await within(listener.rest())
    assert [event.name for event in events] == ["farewell"]
    assert (listener.complete, listener.retry) == (True, 700)
    assert site.reasons == [CloseReason.SHUTDOWN]
    async with session.get(f"{site.proxy.url}/ping") as response:
        assert response.status in (502, 503)  # a browser's EventSource gives up at these
    await site.publish("two")
    await site.start()
    await site.reachable(session)
    again = await site.listen("/silent", after=listener.last_event_id)
    assert await again.data(1) == ["two"]


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
        assert not await site.overtaken(response.content.readuntil(b"\n\n"), session)
    await site.words.put(None)
    assert await within(response.read()) == b""


async def test_many_streams_pass_and_leave(site, many_files):
    listeners = await asyncio.gather(*[site.listen("/lively") for _ in range(STREAMS)])
    for word in ("one", "two"):
        await site.publish(word)
        assert await asyncio.gather(*[listener.data(1) for listener in listeners]) == [[word]] * STREAMS
    for listener in listeners:
        leave(listener)
    await until(lambda: len(site.reasons) == STREAMS)
    assert set(site.reasons) == {CloseReason.CLIENT_LEFT}
