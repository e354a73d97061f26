"""The module ``event-stream.js`` in a browser: one connection for all tabs, resuming, renewing and ending."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aiohttp import web

from aiohttp_interceptors import STREAMS, Hub, as_handler, before, setup, topic_stream
from aiohttp_interceptors.testing import TcpProxy
from tests.waiting import TIMEOUT, until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PAGE = """<!doctype html><link rel=icon href="data:,"><title>client</title>
<script type=module>
import { EventStream, Parser } from "/event-stream.js";
window.seen = []; window.errors = []; window.states = []; window.EventStream = EventStream; window.Parser = Parser;
window.open_ = (url, options) => {
  window.source = new EventStream(url, options);
  for (const type of ["message", "gap", "other"]) source.addEventListener(type, ({ type, data }) => seen.push(type === "message" ? data : type));
  source.onerror = ({ reason, status, delay, final }) => errors.push({ reason, status, delay, final });
  source.onstatechange = () => states.push(source.readyState);
};
window.ready = true;
</script>"""


class Site:
    """An application with a Hub and a page, on a port that stays the same when it is restarted."""

    def __init__(self):
        self.hub = Hub()
        self.requests = []
        self.routes = []
        self.runner = None
        self.port = 0

    @property
    def url(self):
        return f"http://localhost:{self.port}/"

    @property
    def streams(self):
        return self.runner.app[STREAMS]

    def requested(self, path):
        return [request for request in self.requests if request.path == path]

    async def page(self, request):
        return web.Response(text=PAGE, content_type="text/html")

    async def note(self, request, response):
        self.requests.append(request)

    async def start(self):
        app = web.Application()
        setup(app, self.hub, client="/event-stream.js")
        app.on_response_prepare.append(self.note)
        app.add_routes([web.get("/", self.page), *self.routes])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        self.port = self.runner.addresses[0][1]

    async def stop(self):
        await self.runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def site():
    site = Site()
    site.routes = [web.get("/news", topic_stream(site.hub, "news", retry=20, heartbeat=0.2))]
    yield site
    if site.runner is not None:
        await site.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def tabs(browser):
    """Open tabs of one browser context."""
    context = await browser.new_context()

    async def open_tab(url):
        page = await context.new_page()
        await page.goto(url)
        await page.wait_for_function("window.ready", timeout=TIMEOUT * 1000)
        return page

    open_tab.context = context
    yield open_tab
    await context.close()


async def start(page, url="/news", **options):
    await page.evaluate(f"open_({json.dumps(url)}, {json.dumps(options)})")


async def seen(page, expected):
    """Wait until a page has received as many events as expected, and compare them."""
    await page.wait_for_function(f"seen.length >= {len(expected)}", timeout=TIMEOUT * 1000)
    assert await page.evaluate("seen") == expected


async def test_seven_tabs_share_one_connection_and_still_load_pages(site, tabs):
    await site.start()
    pages = [await tabs(site.url) for _ in range(7)]
    for page in pages:
        await start(page, identity="user:7")
    for page in pages:
        await page.wait_for_function("source.readyState === 1")
    await until(lambda: len(site.streams) == 1)
    await site.hub.publish("news", "one")
    for page in pages:
        await seen(page, ["one"])
    await tabs(site.url)
