"""An application with a Hub and a page that uses ``event-stream.js``, and what tests ask of the page."""

from __future__ import annotations

import json

from aiohttp import web

from aiohttp_interceptors import STREAMS, Hub, setup, topic_stream
from tests.waiting import TIMEOUT

PAGE = """<!doctype html><link rel=icon href="data:,"><title>client</title>
<script type=module>
import { EventStream, Parser } from "/event-stream.js";
window.seen = []; window.errors = []; window.states = []; window.EventStream = EventStream; window.Parser = Parser;
window.open_ = (url, options) => {
  window.source = new EventStream(url, options);
  const note = ({ type, data }) => seen.push(type === "message" ? data : type);
  for (const type of ["message", "gap", "other"]) source.addEventListener(type, note);
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
        self.news = topic_stream(self.hub, "news", retry=20, heartbeat=0.2)
        self.routes = [web.get("/news", self.news)]
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


async def start(page, url="/news", **options):
    await page.evaluate(f"open_({json.dumps(url)}, {json.dumps(options)})")


async def seen(page, expected):
    """Wait until a page has received as many events as expected, and compare them."""
    await page.wait_for_function(f"seen.length >= {len(expected)}", timeout=TIMEOUT * 1000)
    assert await page.evaluate("seen") == expected
