"""An ``EventSource`` of a page of another origin, which sends its cookies, and what the browser lets it read."""

from __future__ import annotations

import aiohttp_cors
import pytest
import pytest_asyncio
from aiohttp import web

from aiohttp_interceptors import as_handler, before, event_stream, interceptor_middleware, setup
from aiohttp_interceptors.ready import cors

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PAGE = """<!doctype html><link rel=icon href="data:,"><title>page</title><p id=text></p><p id=state></p><script>
const text = document.getElementById("text"), state = document.getElementById("state");
const open = (url) => {
  const source = new EventSource(url, {withCredentials: true});
  source.onmessage = (event) => { text.textContent += event.data; source.close(); state.textContent = "read"; };
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) state.textContent = "refused"; };
};
const read = (url) => fetch(url, {credentials: "include"}).then(
  (response) => { state.textContent = response.status; }, () => { state.textContent = "unreadable"; });
</script>"""


@event_stream
async def events(request: web.Request):
    yield f"cookie {request.cookies.get('session')}"


@before
async def refuse(context) -> None:
    raise web.HTTPForbidden


class Servers:
    """Servers of pages at two origins, and one of streams, which lists the first origin."""

    def __init__(self) -> None:
        self.runners: list[web.AppRunner] = []

    async def start(self, app: web.Application) -> str:
        runner = web.AppRunner(app, access_log=None)
        self.runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def page(self) -> str:
        async def page(request: web.Request) -> web.Response:
            response = web.Response(text=PAGE, content_type="text/html")
            response.set_cookie("session", "ada")  # of the host, whatever the port
            return response

        app = web.Application()
        app.router.add_get("/", page)
        return await self.start(app)

    async def streams(self, by: str, origin: str) -> str:
        app = web.Application()
        setup(app)
        if by == "cors":
            app.middlewares.append(interceptor_middleware(cors([origin], credentials=True)))
        app.router.add_get("/events", events)
        app.router.add_get("/refused", as_handler(refuse))
        if by == "aiohttp-cors":
            allowed = aiohttp_cors.setup(app, defaults={origin: aiohttp_cors.ResourceOptions(allow_credentials=True)})
            for route in list(app.router.routes()):
                allowed.add(route)
        return await self.start(app)


@pytest_asyncio.fixture(loop_scope="module")
async def servers():
    servers = Servers()
    yield servers
    for runner in servers.runners:
        await runner.cleanup()


async def state_of(page) -> str:
    await page.wait_for_function("document.getElementById('state').textContent")
    return await page.locator("#state").text_content()


@pytest.mark.parametrize("by", ["cors", "aiohttp-cors"])
async def test_a_page_of_a_listed_origin_reads_the_stream_with_its_cookies(visit, servers, by):
    origin = await servers.page()
    url = await servers.streams(by, origin)
    page = await visit(origin)
    await page.evaluate(f"open('{url}/events')")
    assert await state_of(page) == "read"
    assert await page.locator("#text").text_content() == "cookie ada"


@pytest.mark.parametrize("by", ["cors", "aiohttp-cors"])
async def test_a_page_of_a_listed_origin_reads_the_status_of_a_refusal(visit, servers, console_errors, by):
    origin = await servers.page()
    url = await servers.streams(by, origin)
    page = await visit(origin)
    await page.evaluate(f"read('{url}/refused')")
    assert await state_of(page) == "403"
    console_errors[:] = [text for text in console_errors if "403" not in text]


@pytest.mark.parametrize("by", ["cors", "aiohttp-cors"])
@pytest.mark.parametrize(("how", "state"), [("open('{}/events')", "refused"), ("read('{}/refused')", "unreadable")])
async def test_a_page_of_another_origin_reads_nothing(visit, servers, console_errors, by, how, state):
    url = await servers.streams(by, await servers.page())
    page = await visit(await servers.page())
    await page.evaluate(how.format(url))
    assert await state_of(page) == state
    assert await page.locator("#text").text_content() == ""
    assert console_errors
    console_errors[:] = [text for text in console_errors if not any(word in text for word in ("CORS", "ERR_", "403"))]
