"""``EventSource`` over HTTP/2 behind those proxies of ``docs/deploy`` that have it."""

from __future__ import annotations

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import expect

from aiohttp_interceptors import CloseReason, Drain, Hub, setup, topic_stream
from tests.servers.proxies import PROXIES
from tests.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

STREAMS = 8  # more than the six connections to a host that a browser opens with HTTP/1.1
PAGE = f"""<!doctype html><link rel=icon href="data:,"><title>prices</title><p id=protocol></p><p id=got></p>
<script>
const got = {{}};
document.getElementById("protocol").textContent = performance.getEntriesByType("navigation")[0].nextHopProtocol;
for (let i = 0; i < {STREAMS}; i++) {{
  new EventSource("/prices").onmessage = ({{ data }}) => {{
    got[data] = (got[data] || 0) + 1;
    document.getElementById("got").textContent = Object.entries(got).map((pair) => pair.join(" × ")).join(", ");
  }};
}}
</script>"""


class Site:
    """An application with a page of several streams, which may stop and start again."""

    def __init__(self, port):
        self.port = port
        self.hub = Hub()
        self.open = 0
        self.reasons = []
        self._runner = None

    async def page(self, request):
        return web.Response(text=PAGE, content_type="text/html")

    async def start(self, heartbeat=None):
        app = web.Application()
        setup(app, drain=Drain(spread=0))
        prices = topic_stream(
            self.hub,
            "prices",
            heartbeat=heartbeat,
            retry=200,
            on_close=lambda context, reason: self.reasons.append(reason),
        )
        app.add_routes([web.get("/", self.page), web.get("/prices", prices)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self):
        await self._runner.cleanup()


@pytest.fixture(scope="module", params=[name for name, proxy in PROXIES.items() if proxy.http2])
def proxy(request, tmp_path_factory):
    proxy = PROXIES[request.param](tmp_path_factory.mktemp("proxy"))
    proxy.start()
    yield proxy
    proxy.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def site(proxy):
    site = Site(proxy.backend)
    await site.start()
    yield site
    await site.stop()


async def test_many_streams_of_a_page_share_a_connection_resume_and_leave(visit, proxy, site):
    page = await visit(proxy.url, ignore_https_errors=True)
    got = page.locator("#got")
    await expect(page.locator("#protocol")).to_have_text("h2")
    await until(lambda: site.hub.subscribers("prices") == STREAMS)
    expected = []
    for data in ("one", "two", "three"):
        await site.hub.publish("prices", data)
        expected.append(f"{data} × {STREAMS}")
        await expect(got).to_have_text(", ".join(expected))
    await site.stop()
    assert site.reasons == [CloseReason.SHUTDOWN] * STREAMS
    await site.hub.publish("prices", "meanwhile")
    await site.start()
    expected.append(f"meanwhile × {STREAMS}")
    await expect(got).to_have_text(", ".join(expected))
    site.reasons.clear()
    await page.close()
    await until(lambda: len(site.reasons) == STREAMS)
    assert set(site.reasons) == {CloseReason.CLIENT_LEFT}
