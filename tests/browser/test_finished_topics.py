"""An ``EventSource`` that reads a run: it resumes, is told of the end, and then stops by itself."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import expect

from aiohttp_interceptors import Hub, setup, topic_stream

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PAGE = """<!doctype html><link rel=icon href="data:,"><title>answer</title><p id=text></p><p id=end></p><p id=state></p>
<script>
const source = new EventSource("/answer"), show = (id, text) => document.getElementById(id).textContent += text;
source.onmessage = (event) => show("text", event.data);
source.addEventListener("end", (event) => show("end", JSON.parse(event.data).state));
source.onerror = () => { if (source.readyState === EventSource.CLOSED) show("state", "stopped"); };
</script>"""


class Site:
    """An application with one answer, and the statuses of the requests for it."""

    def __init__(self):
        self.hub = Hub()
        self.statuses = []
        self.url = ""

    async def count(self, request, response):
        if request.path == "/answer":
            self.statuses.append(response.status)

    async def page(self, request):
        return web.Response(text=PAGE, content_type="text/html")


@pytest_asyncio.fixture(loop_scope="module")
async def site():
    site = Site()
    app = web.Application()
    setup(app, site.hub)
    app.on_response_prepare.append(site.count)
    app.add_routes(
        [web.get("/", site.page), web.get("/answer", topic_stream(site.hub, "answer", replay=100, retry=20))]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield site
    await runner.cleanup()


async def test_a_page_reads_a_run_to_its_end_stops_and_gets_all_of_it_after_a_reload(visit, site):
    go_on = asyncio.Event()

    async def words():
        yield "one "
        await go_on.wait()
        yield "two "

    await site.hub.run("answer", words)
    page = await visit(site.url)
    await expect(page.locator("#text")).to_have_text("one ")
    await page.reload()  # the reader leaves in the middle
    await expect(page.locator("#text")).to_have_text("one ")
    go_on.set()
    await expect(page.locator("#text")).to_have_text("one two ")
    await expect(page.locator("#end")).to_have_text("finished")
    await expect(page.locator("#state")).to_have_text("stopped")
    assert site.statuses[-1] == 204
    await page.reload()
    await expect(page.locator("#text")).to_have_text("one two ")
    await expect(page.locator("#state")).to_have_text("stopped")
    assert site.statuses.count(204) == 2
