"""The page of the inspector in a browser."""

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio
from aiohttp import ClientSession, TCPConnector, web
from playwright.async_api import expect

from aiohttp_interceptors import STREAMS, Hub, as_handler, before, setup, start_event_stream, topic_stream
from aiohttp_interceptors.observe.inspector import inspector
from aiohttp_interceptors.testing import open_stream
from tests.browser.accessibility import violations
from tests.browser.color import color, contrast
from tests.listener import listen
from tests.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

ROWS = "#streams tbody tr"
MARKUP = "<img/src=x/onerror=document.title='broken'>"


async def waits(channel, context):
    await channel.wait_closed()


def owner_of(context):
    return context.request.query.getall("owner", [])


def topic_of(context):
    return context.request.match_info["topic"]


class Site:
    """An application with an inspector, which can be restarted on the same port."""

    def __init__(self, **options):
        self.options = {"public": True, **options}
        self.port = 0

    async def start(self):
        self.hub = Hub()
        self.app = web.Application()
        setup(self.app, self.hub)
        self.app.router.add_get("/news/{topic}", topic_stream(self.hub, topic_of, owner=owner_of, heartbeat=None))
        self.app.router.add_get("/clock", as_handler(start_event_stream(waits, owner=owner_of)))
        self.app.add_subapp("/inspector", inspector(self.hub, **self.options))
        self.runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=1.0)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port, backlog=1024).start()
        self.port = self.runner.addresses[0][1]
        return self

    async def stop(self):
        await self.runner.cleanup()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/inspector/"

    @property
    def open(self):
        return len(self.app[STREAMS])

    @asynccontextmanager
    async def streams(self, *paths):
        """Open streams at these paths, in this order."""
        async with ClientSession(connector=TCPConnector(limit=0)) as session, AsyncExitStack() as stack:
            for path in paths:
                await stack.enter_async_context(open_stream(session, f"http://127.0.0.1:{self.port}{path}"))
            await until(lambda: self.open >= len(paths))
            yield


@pytest_asyncio.fixture(loop_scope="module")
async def site():
    sites = []

    async def start(**options):
        sites.append(await Site(**options).start())
        return sites[-1]

    yield start
    for each in sites:
        await each.stop()


async def live(page):
    await expect(page.locator("#state")).to_have_text("Live")


def row(page, text):
    return page.locator(ROWS).filter(has_text=text)


# What it shows.


async def test_five_hundred_streams_are_shown(site, visit):
    site = await site()
    async with site.streams(*[f"/news/room.{number % 20}?owner=user:{number}" for number in range(500)]):
        page = await visit(site.address)
        await expect(page.locator(ROWS)).to_have_count(500)
        await expect(page.locator("#stream-count")).to_have_text("500 open, and 1 of this inspector")
        await expect(page.locator("#topics tbody tr")).to_have_count(20)
        await expect(page.locator(".hub")).to_contain_text("subscribers500")
        owners = await page.locator(f"{ROWS} td:nth-child(3)").all_text_contents()
        assert sorted(owners) == sorted(f"user:{number}" for number in range(500))


async def test_streams_appear_and_disappear(site, visit):
    site = await site()
    page = await visit(site.address)
    await expect(page.locator("#no-streams")).to_have_text("No stream is open.")
    async with site.streams("/clock"):
        await expect(page.locator(ROWS)).to_have_count(1)
        await expect(row(page, "/clock")).to_contain_text("channel")
    await expect(page.locator(ROWS)).to_have_count(0)
    await expect(page.locator("#facts li").first).to_contain_text("StreamClosed")


async def test_a_stalled_client_is_seen_and_ended_by_a_click(site, visit):
    site = await site()
    stalled = await listen(site, "/news/a?owner=slow", receive_buffer=4096)
    async with site.streams("/news/a?owner=quick"):
        page = await visit(site.address)
        await live(page)
        behind, unsent = (page.locator(f"{ROWS}:first-child td:nth-child({column})") for column in (8, 9))
        for number in range(1, 4):  # it grows
            before = await behind.text_content()
            for _ in range(30):
                await site.hub.publish("a", "x" * 4000)
                await asyncio.sleep(0)
            await expect(behind).not_to_have_text(before)
            assert int(await behind.text_content()) > 10 * number
        await expect(unsent).to_have_text(re.compile(r"^[\d.]+ kB$"))
        first = page.locator(ROWS).first
        await expect(first).to_contain_text("slow")
        await first.get_by_role("button").click()
        await expect(page.locator("#detail-fields")).to_contain_text("and the client does not read")
        await page.get_by_role("button", name="End this stream").click()
        assert site.open == 2  # it asks first
        await page.get_by_role("button", name="Cancel").click()
        assert site.open == 2
        await page.get_by_role("button", name="End this stream").click()
        await page.get_by_role("button", name="End stream", exact=True).click()
        await expect(page.locator("#message")).to_have_text("The stream was ended.")
        await until(lambda: site.open == 1)
        await expect(page.locator("#detail-gone")).to_be_visible()
        await page.get_by_role("button", name="Close").click()
        await expect(page.locator(ROWS)).to_have_count(1)
        await expect(page.locator(ROWS)).to_contain_text("quick")
    await stalled.raw.close()


async def test_all_streams_of_an_owner_end_by_a_click(site, visit):
    site = await site()
    async with site.streams("/news/a?owner=user:7", "/clock?owner=user:7", "/clock?owner=user:8"):
        page = await visit(site.address)
        await row(page, "/news/a").get_by_role("button").click()
        await page.get_by_role("button", name="End all of user:7").click()
        await expect(page.locator("#confirm-text")).to_contain_text("All streams of user:7 end, on all nodes")
        await page.get_by_role("button", name="End all", exact=True).click()
        await expect(page.locator("#message")).to_have_text("The streams of user:7 were ended.")
        await until(lambda: site.open == 1)
        await expect(page.locator(ROWS)).to_have_count(1)
        await expect(page.locator(ROWS)).to_contain_text("user:8")


async def test_a_click_anywhere_in_a_row_opens_its_stream(site, visit):
    site = await site()
    async with site.streams("/clock", "/news/a?owner=user:7"):
        page = await visit(site.address)
        await row(page, "/news/a").get_by_role("cell", name="user:7").click()
        await expect(page.locator("#detail-title")).to_have_text("/news/a")


async def test_a_selection_of_text_in_a_row_opens_nothing(site, visit):
    site = await site()
    async with site.streams("/clock?owner=user:7"):
        page = await visit(site.address)
        box = await row(page, "/clock").get_by_role("cell", name="user:7").bounding_box()
        await page.mouse.move(box["x"] + 10, box["y"] + 12)
        await page.mouse.down()
        await page.mouse.move(box["x"] + 40, box["y"] + 12)
        await page.mouse.up()
        assert await page.evaluate("getSelection().toString()") in "user:7"
        await expect(page.locator("#detail")).to_be_hidden()


async def test_nothing_can_be_done_with_a_stream_that_has_ended(site, visit):
    site = await site()
    async with site.streams("/clock?owner=user:7"):
        page = await visit(site.address)
        await row(page, "/clock").get_by_role("button").click()
        buttons = page.locator("#detail").get_by_role("button", name=re.compile("^(End|Watch)"))
        await expect(buttons).to_have_text(["End this stream", "End all of user:7", "Watch"])
        for number in range(3):
            await expect(buttons.nth(number)).to_be_enabled()
        await buttons.last.focus()
    for number in range(3):
        await expect(buttons.nth(number)).to_be_disabled()
    await expect(page.get_by_role("button", name="Close")).to_be_focused()


async def test_an_action_that_is_refused_says_so(site, visit, console_errors):
    site = await site()
    async with site.streams("/clock"):
        page = await visit(site.address)
        await row(page, "/clock").get_by_role("button").click()
        await page.get_by_role("button", name="End this stream").click()
        next(iter(site.app[STREAMS])).kick(None)
        await page.get_by_role("button", name="End stream", exact=True).click()
        await expect(page.locator("#message")).to_have_text("Refused (404): This stream has ended.")
    console_errors[:] = [text for text in console_errors if "404" not in text]


async def test_the_filter_and_the_order_are_those_of_the_server(site, visit):
    site = await site()
    async with site.streams("/news/b?owner=user:7", "/news/a?owner=user:8", "/clock?owner=user:7"):
        page = await visit(site.address)
        await expect(page.locator(ROWS)).to_have_count(3)
        await page.get_by_role("button", name="Path", exact=True).click()
        names = page.locator(f"{ROWS} th")
        await expect(names).to_have_text(["/clock", "/news/a", "/news/b"])
        await expect(page.locator("#streams thead th").first).to_have_attribute("aria-sort", "ascending")
        await page.get_by_role("button", name="Path", exact=True).click()
        await expect(names).to_have_text(["/news/b", "/news/a", "/clock"])
        await page.locator("#filter").fill("owner:user:7 news")
        await expect(names).to_have_text(["/news/b"])
        await expect(page.locator("#stream-count")).to_contain_text("3 open, 1 match")
        await page.locator("#filter").fill("nothing")
        await expect(page.locator("#no-streams")).to_have_text("No stream matches.")


@pytest.mark.parametrize("show_data", [False, True])
async def test_the_bytes_of_a_stream_are_shown(site, visit, show_data):
    site = await site(show_data=show_data)
    async with site.streams("/news/a"):
        page = await visit(site.address)
        await row(page, "/news/a").get_by_role("button").click()
        await page.get_by_role("button", name="Watch").click()
        await expect(page.locator("#raw-state")).to_contain_text("Waiting for the next write")
        event_id = await site.hub.publish("a", "secret\nline")
        text = f"id: {event_id}\\n\ndata: secret\\n\ndata: line\\n\n\\n\n\\r\\n\n"
        masked = f"id: {'x' * len(event_id)}\\n\ndata: xxxxxx\\n\ndata: xxxx\\n\n\\n\n\\r\\n\n"
        await expect(page.locator("#raw")).to_contain_text((text if show_data else masked).strip())
        if not show_data:
            assert "secret" not in await page.locator("#raw").text_content()
            await expect(page.locator("#raw-state")).to_contain_text("shown as x")
        await page.get_by_role("button", name="Stop").click()
        await until(lambda: not any("Tap" in type(each.connection._transport).__name__ for each in site.app[STREAMS]))


async def test_markup_in_paths_topics_owners_and_facts_is_shown_as_text(site, visit):
    site = await site()
    path = f"/news/{MARKUP.replace('/', '%2F').replace('<', '%3C').replace('>', '%3E')}?owner=<b>owner</b>"
    async with site.streams(path.replace("%2F", "%20").replace("%20", "-")):
        topic = MARKUP.replace("/", "-")
        await site.hub.publish(topic, "x")
        page = await visit(site.address)
        await expect(page.locator(ROWS)).to_contain_text(f"/news/{topic}")
        await expect(page.locator(f"{ROWS} td:nth-child(3)")).to_have_text("<b>owner</b>")
        await expect(page.locator(f"{ROWS} td:nth-child(4)")).to_have_text(topic)
        await expect(page.locator("#topics tbody")).to_contain_text(topic)
        await expect(page.locator("#facts")).to_contain_text(f"/news/{topic}")
        await page.locator(ROWS).get_by_role("button").click()
        await expect(page.locator("#detail-title")).to_have_text(f"/news/{topic}")
        await page.get_by_role("button", name="End all of <b>owner</b>").click()
        await expect(page.locator("#confirm-text")).to_contain_text("All streams of <b>owner</b> end")
        assert await page.evaluate("document.querySelectorAll('img, main b').length") == 0
        assert await page.title() == "Inspector"


# How it looks.


async def test_the_page_and_its_dialogs_have_no_violations_for_axe(site, visit):
    site = await site()
    page = await visit(site.address)
    await live(page)
    assert await violations(page) == []  # without streams
    stalled = await listen(site, "/news/a?owner=slow", receive_buffer=4096)
    async with site.streams("/clock", "/news/b?owner=user:7"):
        await expect(page.locator(ROWS)).to_have_count(3)
        for _ in range(200):
            await site.hub.publish("a", "x" * 4000)
        await expect(page.locator(".slow").first).to_be_visible()
        assert await violations(page) == []
        await row(page, "/news/b").get_by_role("button").click()
        await page.get_by_role("button", name="Watch").click()
        await expect(page.locator("#raw-state")).to_contain_text("Waiting for the next write")
        await site.hub.publish("b", "x")
        await expect(page.locator("#raw .end").first).to_be_visible()
        assert await violations(page) == []
        await page.get_by_role("button", name="End this stream").click()
        assert await violations(page) == []
        await page.get_by_role("button", name="End stream", exact=True).click()
        await expect(page.locator("#detail-gone")).to_be_visible()
        assert await violations(page) == []
    await stalled.raw.close()


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_does_not_scroll_sideways_and_can_be_read(site, visit, width, scheme):
    site = await site()
    long = "x" * 120
    async with site.streams("/clock", f"/news/{long}?owner={long}&owner=user:7", f"/news/{'a.' * 60}b"):
        await site.hub.publish(long, "x")
        page = await visit(site.address)
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme=scheme)
        await live(page)
        await expect(page.locator(ROWS)).to_have_count(3)
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        assert (
            await page.evaluate(
                "Math.max(...[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth))"
            )
            == 0
        )
        await row(page, f"/news/{long}").get_by_role("button").click()
        await page.get_by_role("button", name="End this stream").click()
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        assert await page.locator("#detail").evaluate("it => it.scrollWidth - it.clientWidth") == 0
        back = await color(page, "body", "background-color")
        card = await color(page, ".scroll", "background-color")
        for selector, behind in (
            ("body", back),
            ("#filter-help", back),
            ("#streams thead button", card),
            (f"{ROWS} button", card),
            (".hub-state", card),
            ("#end-stream", card),
            (".key.one", card),
            (".key.two", card),
            (".key.three", card),
        ):
            assert contrast(await color(page, selector, "color"), behind) >= 4.5, selector


async def test_plots_are_drawn(site, visit):
    site = await site()
    async with site.streams("/news/a"):
        page = await visit(site.address)
        await live(page)
        await site.hub.publish("a", "x")
        await expect(page.locator("#plot-events svg")).to_have_attribute(
            "aria-label", re.compile(r"^Events per second: published \d, delivered \d; highest 1$")
        )
        for number in (1, 2):
            line = page.locator("#plot-events path").nth(number)
            assert (await line.get_attribute("d")).startswith("M")


# The keyboard.


async def focused(page):
    return await page.evaluate("document.activeElement.id || document.activeElement.textContent")


async def press_until(page, key, name):
    for _ in range(30):
        await page.keyboard.press(key)
        if await focused(page) == name:
            return
    pytest.fail(f"{key} does not lead to {name}")


async def test_a_stream_is_found_and_ended_with_the_keyboard_alone(site, visit):
    site = await site()
    async with site.streams(*[f"/news/a{number}?owner=user:7" for number in range(4)], "/clock"):
        page = await visit(site.address)
        await expect(page.locator(ROWS)).to_have_count(5)
        await page.keyboard.press("Tab")  # the link to the filter
        await page.keyboard.press("Enter")
        if await focused(page) != "filter":
            await press_until(page, "Tab", "filter")
        await page.keyboard.type("news")
        await expect(page.locator(ROWS)).to_have_count(4)
        await press_until(page, "Tab", "/news/a0")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        assert await focused(page) == "/news/a2"
        await page.keyboard.press("Enter")
        await expect(page.locator("#detail-title")).to_have_text("/news/a2")
        await press_until(page, "Tab", "end-stream")
        await page.keyboard.press("Enter")
        assert await focused(page) == "confirm-no"
        await page.keyboard.press("Escape")
        await expect(page.locator("#confirm")).to_be_hidden()
        assert site.open == 5
        assert await focused(page) == "end-stream"
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        assert await focused(page) == "confirm-yes"
        await page.keyboard.press("Enter")
        await until(lambda: site.open == 4)
        await expect(page.locator("#detail-gone")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#detail")).to_be_hidden()
        await expect(page.locator("#streams tbody :focus")).to_have_count(1)


async def test_the_focus_stays_on_a_stream_while_the_list_changes(site, visit):
    site = await site()
    async with site.streams("/news/a", "/news/b"):
        page = await visit(site.address)
        await expect(page.locator(ROWS)).to_have_count(2)
        await page.get_by_role("button", name="Age").click()
        await page.get_by_role("button", name="Age").click()  # the youngest first
        await expect(page.locator(f"{ROWS} th")).to_have_text(["/news/b", "/news/a"])
        await row(page, "/news/b").get_by_role("button").focus()
        async with site.streams("/news/c"):
            await expect(page.locator(f"{ROWS} th")).to_have_text(["/news/c", "/news/b", "/news/a"])
            assert await focused(page) == "/news/b"
            assert await page.locator(f"{ROWS} [tabindex='0']").all_text_contents() == ["/news/b"]


# The connection.


async def test_the_page_dims_when_the_server_is_away_and_comes_back(site, visit, console_errors):
    site = await site()
    page = await visit(site.address)
    await live(page)
    fresh = await color(page, "main", "color")
    await site.stop()
    await expect(page.locator("#state")).to_have_text("The connection was lost. Reconnecting …")
    await expect(page.locator("main")).not_to_have_css("color", f"rgb({', '.join(map(str, fresh))})")
    assert await violations(page) == []
    await site.start()
    async with site.streams("/clock"):
        await live(page)
        await expect(page.locator(ROWS)).to_have_count(1)
        await expect(page.locator("main")).to_have_css("color", f"rgb({', '.join(map(str, fresh))})")
    console_errors[:] = [text for text in console_errors if "ERR_CONNECTION_REFUSED" not in text]


async def test_a_page_that_is_not_allowed_any_more_says_so(site, visit, console_errors):
    allowed = True

    def check(context):
        if not allowed:
            raise web.HTTPForbidden

    site = await site(public=False, interceptors=[before(check)])
    page = await visit(site.address)
    await live(page)
    allowed = False
    for registry in site.app[STREAMS].all_in(site.app):
        for stream in registry:
            stream.kick(None)
    await expect(page.locator("#state")).to_have_text("The server refuses this page (403). Reload it to sign in again.")
    allowed = True
    await live(page)
    console_errors[:] = [text for text in console_errors if "403" not in text]


async def test_a_page_that_is_paused_stands_still_and_catches_up(site, visit):
    site = await site()
    async with site.streams("/clock"):
        page = await visit(site.address)
        await expect(page.locator(ROWS)).to_have_count(1)
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#state")).to_have_text("Paused")
        offset = page.locator(".numbers > div", has_text="offset").locator("dd")
        await site.hub.publish("a", "x")
        async with site.streams("/news/a"):
            await page.locator("#filter").fill("news")  # asking for something else shows it
            await expect(page.locator(f"{ROWS} th")).to_have_text(["/news/a"])
            await expect(offset).to_have_text("1")
            await site.hub.publish("a", "x")
            await page.get_by_role("button", name="Pause").click()
            await live(page)
            await expect(offset).to_have_text("2")
