"""Clients of others that join a compressed stream which many streams share."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import sys
from contextlib import AsyncExitStack

import httpx
import pytest
from aiohttp import ClientSession, TCPConnector, web
from httpx_sse import aconnect_sse

from aiohttp_interceptors import Event, Hub, as_handler, setup, start_topic_stream
from aiohttp_interceptors.compression import MIN_SHARED
from aiohttp_interceptors.testing import open_stream
from tests.conftest import Server
from tests.servers.proxies import PROXIES
from tests.waiting import TIMEOUT, within

GZIP = {"Accept-Encoding": "gzip"}
FETCH = """
const response = await fetch(process.argv[1], { headers: { Accept: "text/event-stream" } });
let text = "";
for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
  text += part;
  const frames = text.split("\\n\\n");
  text = frames.pop();
  for (const frame of frames) {
    const data = frame.split("\\n").filter((line) => line.startsWith("data: "));
    if (data.length) console.log(data[0].slice(6));
  }
}
"""


def text(number: int) -> str:
    return f"{number}: " + " ".join(f"field-{number * index % 97}={number + index}" for index in range(60))


class Site:
    """A compressed stream, and the streams that share it."""

    def __init__(self, hub: Hub, server: Server) -> None:
        self.hub, self.runner, self.url = hub, server.runner, f"{server.url}/"
        self.number = 0

    async def publish(self) -> str:
        self.number += 1
        await self.hub.publish("t", Event(text(self.number)))
        return text(self.number)


@pytest.fixture
async def site(serve, session):
    hub = Hub()
    app = web.Application()
    setup(app, hub)
    app.router.add_get("/", as_handler(start_topic_stream(hub, "t", compress=True, prime=False)))
    server = await serve(app)
    site = Site(hub, server)
    async with AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(open_stream(session, site.url, headers=GZIP)) for _ in range(MIN_SHARED)
        ]
        for _ in range(20):
            expected = await site.publish()
            for other in others:
                assert (await other.next()).data == expected
        yield site


async def test_httpx(site):
    async with httpx.AsyncClient(timeout=TIMEOUT) as client, aconnect_sse(client, "GET", site.url) as source:
        assert source.response.headers["Content-Encoding"] == "gzip"
        events = source.aiter_sse()
        for _ in range(10):
            expected = await site.publish()
            assert (await within(anext(events))).data == expected
        await events.aclose()


@pytest.mark.parametrize("program", ["curl", "node"])
async def test_a_program(site, program):
    if shutil.which(program) is None:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(f"{program} is not installed")
    command = {
        "curl": ["curl", "--silent", "--no-buffer", "--compressed", site.url],
        "node": ["node", "--input-type=module", "--eval", FETCH, site.url],
    }
    before = site.hub.statistics().subscribers
    process = await asyncio.create_subprocess_exec(*command[program], stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(TIMEOUT):
            while site.hub.statistics().subscribers == before:
                await asyncio.sleep(0)
        for _ in range(10):
            expected = await site.publish()
            while not (line := (await within(process.stdout.readline())).decode().strip()).endswith(expected):
                assert not line.startswith("data:"), line
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="the proxies are those of Debian")
@pytest.mark.parametrize("program", PROXIES)
async def test_a_client_behind_a_proxy(site, program, tmp_path):
    proxy = PROXIES[program](tmp_path)
    proxy.start()
    try:
        await web.TCPSite(site.runner, "127.0.0.1", proxy.backend).start()
        tls = proxy.scheme == "https" and ssl.create_default_context(cafile=proxy.authority)
        trusted = TCPConnector(ssl=tls)
        async with (
            ClientSession(connector=trusted) as session,
            open_stream(session, f"{proxy.url}/", headers=GZIP) as stream,
        ):
            assert stream.response.headers["Content-Encoding"] == "gzip"
            for _ in range(10):
                expected = await site.publish()
                assert (await stream.next()).data == expected
    finally:
        proxy.kill()
