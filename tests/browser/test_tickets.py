"""An ``EventSource`` with a ticket: it opens, reconnects to the same URL, and is refused after the logout."""

from __future__ import annotations

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import expect

from aiohttp_interceptors import Hub, as_handler, setup, topic_stream
from aiohttp_interceptors.ready import TICKET, Tickets
from aiohttp_interceptors.web.app import STREAMS

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PAGE = """<!doctype html><link rel=icon href="data:,"><title>orders</title><p id=text></p><p id=state></p>
<script>
const show = (id, text) => { document.getElementById(id).textContent += text; };
(async () => {
  const { ticket } = await (await fetch("/ticket", { method: "POST", headers: { Authorization: "Bearer x" } })).json();
  const source = new EventSource(`/orders?ticket=${ticket}`);
  source.onopen = () => show("state", "open ");
  source.onmessage = (event) => show("text", event.data);
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) show("state", "refused"); };
})();
</script>"""


class Site:
    """An application whose stream of orders needs a ticket."""

    def __init__(self):
        self.hub = Hub()
        self.tickets = Tickets("a secret of the tests, which is long enough", self.hub)
        self.app = web.Application()
        self.statuses = []
        self.cookies = []
        self.url = ""

    async def page(self, request):
        return web.Response(text=PAGE, content_type="text/html")

    async def issue(self, request):
        assert request.headers["Authorization"] == "Bearer x"
        return web.json_response({"ticket": self.tickets.issue("user:7", "orders.7")})

    async def count(self, request, response):
        if request.path == "/orders":
            self.statuses.append(response.status)
            self.cookies.append("Set-Cookie" in response.headers)


@pytest_asyncio.fixture(loop_scope="module")
async def site():
    site = Site()
    setup(site.app, site.hub)
    site.app.on_response_prepare.append(site.count)
    orders = topic_stream(
        site.hub,
        lambda context: context[TICKET].topics,
        owner=lambda context: context[TICKET].owner,
        expires_at=lambda context: context[TICKET].expires_at,
        retry=20,
    )
    site.app.add_routes(
        [
            web.get("/", site.page),
            web.post("/ticket", site.issue),
            web.get("/orders", as_handler(site.tickets.redeem, orders)),
        ]
    )
    runner = web.AppRunner(site.app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://localhost:{runner.addresses[0][1]}/"  # an origin for which Chromium keeps Secure cookies
    yield site
    await runner.cleanup()


async def test_an_event_source_reconnects_with_its_ticket_until_the_logout(visit, site, console_errors):
    page = await visit(site.url)
    text, state = page.locator("#text"), page.locator("#state")
    await expect(state).to_have_text("open ")
    await site.hub.publish("orders.7", "one ")
    await expect(text).to_have_text("one ")
    for stream in site.app[STREAMS]:
        stream.abort()
    await expect(state).to_have_text("open open ")
    await site.hub.publish("orders.7", "two ")
    await expect(text).to_have_text("one two ")
    assert (site.statuses, site.cookies) == ([200, 200], [True, False])

    await site.hub.disconnect("user:7")
    await expect(state).to_have_text("open open refused")
    assert site.statuses[2:] == [401]

    await page.reload()  # signed in again
    await expect(state).to_have_text("open ")
    assert site.statuses[3:] == [200]
    console_errors[:] = [each for each in console_errors if "401" not in each and "ERR_INCOMPLETE" not in each]
