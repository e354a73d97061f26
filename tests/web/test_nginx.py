"""Streams behind nginx with its default settings: HTTP/1.0 to the upstream, and buffers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    CloseReason,
    EventStreamResponse,
    Hub,
    StreamClosed,
    as_handler,
    event_stream,
    setup,
    start_event_stream,
    topic_stream,
)
from aiohttp_interceptors.testing import open_stream
from tests.servers.nginx import Nginx
from tests.waiting import until, within

KINDS = ["generator", "channel", "topics", "response"]
GZIP = "gzip on; gzip_min_length 1; gzip_proxied any; gzip_types text/event-stream;"


class Site:
    """An application with a stream of each kind, which sends what a test puts."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.facts: list = []
        self.queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.app = web.Application()
        setup(self.app, self.hub, observer=self.facts.append)
        for name, handler in {
            "generator": event_stream(self.generate),
            "channel": as_handler(start_event_stream(self.produce)),
            "topics": topic_stream(self.hub, "a", replay=10),
            "response": self.respond,
        }.items():
            self.app.router.add_get(f"/{name}", handler)

    async def generate(self, request: web.Request):
        while (text := await self.queue.get()) is not None:
            yield text

    async def produce(self, channel, context) -> None:
        while (text := await self.queue.get()) is not None:
            await channel.put(text)
        channel.close()

    async def respond(self, request: web.Request) -> web.StreamResponse:
        response = EventStreamResponse()
        await response.prepare(request)
        while (text := await self.queue.get()) is not None:
            await response.send(text)
        return response

    async def send(self, kind: str, text: str) -> None:
        if kind == "topics":
            await self.hub.publish("a", text)
        else:
            self.queue.put_nowait(text)

    @property
    def reasons(self) -> list[str]:
        return [fact.reason for fact in self.facts if isinstance(fact, StreamClosed)]


@pytest.fixture
async def behind_nginx(serve, tmp_path):
    """Serve the application behind nginx: ``await behind_nginx(GZIP)``."""
    proxies: list[Nginx] = []

    async def start(settings: str = "") -> SimpleNamespace:
        site = Site()
        server = await serve(site.app)
        proxies.append(Nginx(tmp_path / "nginx", server.port, settings))
        await asyncio.to_thread(proxies[0].start)
        return SimpleNamespace(site=site, server=server, url=proxies[0].url)

    yield start
    for proxy in proxies:
        await asyncio.to_thread(proxy.stop)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", ["", GZIP], ids=["default", "gzip"])
async def test_each_event_arrives_before_the_next_one_is_sent(behind_nginx, session, kind, settings):
    """nginx would hold small events back until its buffer of 4 or 8 KiB is full."""
    behind = await behind_nginx(settings)
    await behind.site.send(kind, "0")
    async with open_stream(session, f"{behind.url}/{kind}") as stream:
        assert (await stream.next()).data == "0"
        for number in map(str, range(1, 20)):
            await behind.site.send(kind, number)
            assert (await stream.next()).data == number
        assert "no-transform" in stream.response.headers["Cache-Control"]
        if not settings:
            assert "Content-Encoding" not in stream.response.headers


@pytest.mark.parametrize("kind", KINDS)
async def test_the_headers_pass_before_the_first_event(behind_nginx, session, kind):
    """Except those of a generator, which are sent with its first event."""
    behind = await behind_nginx()
    if kind == "generator":
        await behind.site.send(kind, "0")
    async with open_stream(session, f"{behind.url}/{kind}") as stream:
        assert stream.response.status == 200
        assert stream.response.headers.get("Connection", "keep-alive") == "keep-alive"


@pytest.mark.parametrize("kind", ["generator", "channel", "topics"])
async def test_a_client_that_leaves_is_detected_through_nginx(behind_nginx, session, kind):
    behind = await behind_nginx()
    await behind.site.send(kind, "0")
    async with open_stream(session, f"{behind.url}/{kind}") as stream:
        await stream.next()
    await until(lambda: behind.site.reasons == [CloseReason.CLIENT_LEFT])


async def test_a_client_resumes_through_nginx(behind_nginx, session):
    behind = await behind_nginx()
    for number in "012":
        await behind.site.send("topics", number)
    async with open_stream(session, f"{behind.url}/topics") as stream:
        seen = (await stream.next()).id
    async with open_stream(session, f"{behind.url}/topics", last_event_id=seen) as stream:
        assert [(await stream.next()).data for _ in "12"] == ["1", "2"]


@pytest.mark.parametrize("kind", ["generator", "channel", "topics"])
async def test_a_stop_ends_streams_behind_nginx_as_complete(behind_nginx, session, kind):
    behind = await behind_nginx()
    await behind.site.send(kind, "0")
    async with open_stream(session, f"{behind.url}/{kind}") as stream:
        await stream.next()
        await within(behind.server.stop())
        assert await stream.rest() == []


async def test_a_connection_to_nginx_serves_the_next_stream(behind_nginx, session):
    """The upstream's connection is closed, and that of the client is not."""
    behind = await behind_nginx()
    for text in ("0", None, "1", None):
        await behind.site.send("channel", text)
    for number in "01":
        async with open_stream(session, f"{behind.url}/channel") as stream:
            assert [event.data for event in await stream.rest()] == [number]
    assert len({id(connection) for connection in session.connector._conns}) == 1
