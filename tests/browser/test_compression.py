"""An ``EventSource`` that joins a compressed stream in mid-stream: Chromium decompresses it, and counts few bytes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from playwright.async_api import expect

from aiohttp_interceptors import Hub, setup, topic_stream
from aiohttp_interceptors.compression import MIN_SHARED
from aiohttp_interceptors.testing import open_stream
from tests.waiting import TIMEOUT

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PAGE = """<!doctype html><link rel=icon href="data:,"><title>rows</title><p id=state></p><p id=count></p><p id=last></p>
<script>
const source = new EventSource("/rows"), show = (id, text) => document.getElementById(id).textContent = text;
let count = 0;
source.onopen = () => show("state", "open");
source.onmessage = (event) => { show("last", event.data.split(" ")[0]); show("count", `${++count}`); };
</script>"""


def row(number: int) -> str:
    return f"{number} " + " ".join(f"field-{index}={number * index}" for index in range(100))


@pytest_asyncio.fixture(loop_scope="module")
async def site():
    hub = Hub()
    app = web.Application()
    setup(app, hub)

    async def page(request):
        return web.Response(text=PAGE, content_type="text/html")

    app.add_routes([web.get("/", page), web.get("/rows", topic_stream(hub, "rows", compress=True))])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield hub, f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


async def test_a_page_joins_a_stream_that_others_share(visit, site):
    hub, url = site
    async with ClientSession() as session, AsyncExitStack() as stack:
        for _ in range(MIN_SHARED):
            await stack.enter_async_context(open_stream(session, f"{url}rows", headers={"Accept-Encoding": "gzip"}))
        for number in range(50):
            await hub.publish("rows", row(number))
        page = await visit(url)
        finished = asyncio.get_running_loop().create_future()
        devtools = await page.context.new_cdp_session(page)
        devtools.once("Network.loadingFinished", lambda event: finished.set_result(event["encodedDataLength"]))
        await devtools.send("Network.enable")
        await expect(page.locator("#state")).to_have_text("open")
        size = 0
        for number in range(100, 150):
            await hub.publish("rows", row(number))
            size += len(row(number))
            await expect(page.locator("#last")).to_have_text(str(number))
        await expect(page.locator("#count")).to_have_text("50")
        await hub.finish("rows")  # then Chromium reports how much it has received
        async with asyncio.timeout(TIMEOUT):
            received = await finished
        assert size / 20 < received < size / 2
        await page.context.close()
