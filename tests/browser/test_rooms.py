"""The rooms of the example in real browsers: two people who write to each other, and what they see when it fails."""

import re
import signal

import pytest
from playwright.async_api import expect

from tests.browser.color import color, contrast, luminance
from tests.program import program, serving
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PATIENCE = 30_000  # milliseconds
BACK = 30_000  # for a server that starts, and a browser that was told to come back within six seconds

expect.set_options(timeout=PATIENCE)


async def opened(page):
    await expect(page.locator("#room-state")).to_have_text("open", timeout=BACK)
    await expect(page.locator("#here")).not_to_be_empty()
    return page


@pytest.fixture
def enter(server, visit):
    """Come into a room as somebody with a browser of their own."""

    async def enter(room="lobby"):
        return await opened(await visit(f"{server.address}rooms?room={room}"))

    return enter


async def say(page, text):
    await page.get_by_label("Your line").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Your line")).to_have_value("")


def lines(page):
    """What was written, and where the page says that something is missing."""
    return page.locator("#lines span, #lines .gap")


async def states(page):
    """Note in ``window.states`` each state that the connection loses from now on, however short it was."""
    await page.evaluate(
        "() => { window.states = [];"
        "new MutationObserver(records => states.push(...records.map(record => record.oldValue)))"
        ".observe(document.getElementById('room-state'), { attributes: true, attributeOldValue: true }); }"
    )


async def test_what_one_writes_appears_for_both_in_one_order(enter):
    ada, grace = await enter(), await enter()
    await expect(ada.locator("#here")).to_have_text("2 here")
    await expect(grace.locator("#here")).to_have_text("2 here")
    await ada.get_by_label("Your name").fill("Ada")
    await say(ada, "hello")
    await say(grace, "good morning")
    await say(ada, "how are you?")
    for page in (ada, grace):
        await expect(lines(page)).to_have_text(["hello", "good morning", "how are you?"])
        await expect(page.locator("#lines strong").first).to_have_text("Ada")
    await grace.close()
    await expect(ada.locator("#here")).to_have_text("only you")


async def test_who_comes_later_sees_what_was_written(enter):
    ada = await enter()
    await say(ada, "hello")
    await expect(lines(await enter())).to_have_text(["hello"])
    await ada.reload()
    await expect(lines(ada)).to_have_text(["hello"])


async def test_what_is_written_is_text_and_no_markup(enter):
    ada, grace = await enter(), await enter()
    markup = "<img src=x onerror=document.title='broken'><b>&amp;</b>"
    await ada.get_by_label("Your name").fill("<i>Ada</i>")
    await say(ada, markup)
    await expect(lines(grace)).to_have_text([markup])
    await expect(grace.locator("#lines strong")).to_have_text("<i>Ada</i>")
    assert await grace.locator("#lines :is(img, b, i)").count() == 0
    assert "broken" not in await grace.title()


async def test_a_dropped_connection_comes_back_without_a_lost_or_repeated_line(enter):
    ada, grace = await enter(), await enter()
    await say(grace, "before")
    await expect(lines(ada)).to_have_text(["before"])
    for page in (ada, grace):
        await states(page)
    await ada.get_by_role("button", name="Drop my connection").click()
    await expect(ada.locator("#room-state")).to_have_text("lost, reconnecting")
    await say(grace, "while Ada was away")
    await opened(ada)
    await say(ada, "after")
    for page in (ada, grace):
        await expect(lines(page)).to_have_text(["before", "while Ada was away", "after"])
        await expect(page.locator("#here")).to_have_text("2 here")
    assert await ada.evaluate("states") == ["open", "lost"]
    assert await grace.evaluate("states") == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_after_a_restart_of_the_server_nothing_is_missing_or_twice(visit, complaints, how, tmp_path):
    port, history = str(free_port()), {"HISTORY": str(tmp_path / "rooms.sqlite3")}
    async with program("--port", port, environment=history) as process:
        address = (await serving(process))["url"] + "/rooms"
        ada, grace = await opened(await visit(address)), await opened(await visit(address))
        await say(ada, "before")
        await expect(lines(grace)).to_have_text(["before"])
        process.send_signal(how)
        await process.wait()
        await expect(grace.locator("#room-state")).to_have_text("lost, reconnecting")
    async with program("--port", port, environment=history) as process:
        await serving(process)
        await opened(ada)
        await say(ada, "after")
        await opened(grace)
        for page in (ada, grace):
            await expect(lines(page)).to_have_text(["before", "after"])
        await grace.reload()
        await expect(lines(grace)).to_have_text(["before", "after"])
        for page in (ada, grace):
            await page.context.close()
    complaints[:] = [text for text in complaints if "ERR_" not in text]


async def test_two_servers_with_one_history_are_one(visit, complaints, tmp_path):
    history = {"HISTORY": str(tmp_path / "rooms.sqlite3")}
    async with (
        program("--port", str(free_port()), environment=history) as one,
        program("--port", str(free_port()), environment=history) as other,
    ):
        ada = await opened(await visit((await serving(one))["url"] + "/rooms"))
        grace = await opened(await visit((await serving(other))["url"] + "/rooms"))
        assert await ada.locator("#server").text_content() != await grace.locator("#server").text_content()
        await say(ada, "hello")
        await say(grace, "hello, Ada")
        for page in (ada, grace):
            await expect(lines(page)).to_have_text(["hello", "hello, Ada"])
            await expect(page.locator("#here")).to_have_text("2 here")
        for page in (ada, grace):
            await page.context.close()
    complaints[:] = [text for text in complaints if "ERR_" not in text]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_after_the_server_has_lost_its_history_both_are_told_of_the_gap_and_go_on(visit, complaints, how):
    port = str(free_port())
    async with program("--port", port) as process:
        address = (await serving(process))["url"] + "/rooms"
        ada, grace = await opened(await visit(address)), await opened(await visit(address))
        await say(ada, "before")
        await expect(lines(grace)).to_have_text(["before"])
        process.send_signal(how)
        await process.wait()
        for page in (ada, grace):
            await expect(page.locator("#room-state")).to_have_text("lost, reconnecting")
            await expect(page.locator("#here")).to_be_empty()
        await ada.get_by_label("Your line").fill("is anybody there?")
        await ada.keyboard.press("Enter")
        await expect(ada.get_by_role("alert")).to_have_text("Not sent: the server does not answer.")
        await expect(ada.get_by_label("Your line")).to_have_value("is anybody there?")  # not lost
    async with program("--port", port) as process:
        await serving(process)
        await opened(ada)
        await ada.get_by_role("button", name="Send").click()
        await expect(ada.get_by_role("alert")).to_be_empty()
        await opened(grace)
        gap = re.compile("The server was started anew.*may be missing")
        for page in (ada, grace):
            await expect(lines(page)).to_have_text(["before", gap, "is anybody there?"])
        await grace.get_by_role("button", name="Drop my connection").click()
        await expect(grace.locator("#room-state")).to_have_text("lost, reconnecting")
        await say(ada, "still here")
        await expect(lines(grace)).to_have_text(["before", gap, "is anybody there?", "still here"])  # told once
        for page in (ada, grace):
            await page.context.close()
    complaints[:] = [text for text in complaints if "ERR_" not in text]


async def test_a_source_that_was_refused_begins_anew_where_the_old_one_was(enter, complaints):
    ada, grace = await enter(), await enter()
    await say(ada, "before")
    await ada.route("**/events/room?*", lambda route: route.fulfill(status=502, body="bad gateway"))
    async with ada.expect_response(lambda response: response.status == 502):  # at which the browser gives up
        await ada.get_by_role("button", name="Drop my connection").click()
    await say(grace, "meanwhile")
    await ada.unroute("**/events/room?*")
    await opened(ada)
    await expect(lines(ada)).to_have_text(["before", "meanwhile"])
    complaints[:] = [text for text in complaints if "502" not in text]


async def test_rooms_are_apart_and_changing_them_is_a_link_a_form_and_the_way_back(enter):
    page, other = await enter(), await enter("kitchen")
    await say(page, "in the lobby")
    await page.get_by_role("link", name="kitchen").click()
    await expect(page).to_have_title("kitchen – Rooms")
    await opened(page)
    await say(page, "in the kitchen")
    for each in (page, other):
        await expect(lines(each)).to_have_text(["in the kitchen"])
        await expect(each.locator("#rooms [aria-current]")).to_have_text("kitchen")
    name = await page.get_by_label("Your name").input_value()
    await page.get_by_label("Another room").fill("Tea-Time")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="tea-time")).to_be_visible()
    await expect(page.locator("#rooms [aria-current]")).to_have_text("tea-time")
    await expect(page.locator("#here")).to_have_text("only you")
    await expect(page.get_by_label("Your name")).to_have_value(name)
    assert await lines(page).count() == 0
    await page.go_back()
    await expect(lines(page)).to_have_text(["in the kitchen"])
    await page.get_by_label("Another room").fill("a.>")
    await page.keyboard.press("Enter")
    assert await page.get_by_label("Another room").evaluate("field => field.validity.patternMismatch")
    await expect(page).to_have_title("kitchen – Rooms")


async def test_the_newest_line_is_in_sight_unless_somebody_reads_further_up(enter):
    ada, grace = await enter(), await enter()
    for number in range(30):
        await say(ada, f"line {number}")
    for page in (ada, grace):
        await expect(lines(page).last).to_have_text("line 29")
        await expect(lines(page).last).to_be_in_viewport()
        await page.set_viewport_size({"width": 400, "height": 700})
        await expect(lines(page).last).to_be_in_viewport()
    await grace.locator("#lines").focus()
    await grace.keyboard.press("Home")
    await expect(lines(grace).first).to_be_in_viewport()
    await say(ada, "a new one")
    await expect(lines(grace).last).to_have_text("a new one")
    await expect(lines(grace).first).to_be_in_viewport()
    await expect(lines(ada).last).to_be_in_viewport()
    await say(grace, "another one")  # who writes wants to see it
    await expect(lines(grace).last).to_have_text("another one")
    await expect(lines(grace).last).to_be_in_viewport()


async def test_the_keyboard_does_it_all_and_a_screen_reader_is_told_of_new_lines_only(server, visit):
    page = await visit(f"{server.address}rooms")
    await expect(page.get_by_label("Your line")).to_be_focused()
    await opened(page)
    await expect(page.get_by_role("log", name="lobby")).to_have_attribute("aria-live", "polite")
    await page.keyboard.type("hello")
    await page.keyboard.press("Enter")
    await expect(lines(page)).to_have_text(["hello"])
    await expect(page.get_by_label("Your line")).to_be_focused()
    reached = []
    for _ in range(12):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    for each in ("Machine monitor", "drop", "lobby", "kitchen", "other", "Go", "lines", "name"):
        assert each in reached
    assert await page.locator("#room-state").get_attribute("role") == "status"
    assert await page.locator("[aria-live], [role=status], [role=alert], output").count() == 3


async def test_the_history_is_not_read_out(enter):
    """The log becomes live when the history is there: its ``aria-live`` changes after the last of these lines came."""
    ada = await enter()
    for number in range(5):
        await say(ada, f"line {number}")
    await ada.add_init_script(
        "addEventListener('DOMContentLoaded', () => { window.silent = [];"
        "new MutationObserver(() => silent.push(lines.ariaLive)).observe(lines, { childList: true }); });"
    )
    await ada.reload()
    await opened(ada)
    await say(ada, "new")
    await expect(lines(ada)).to_have_count(6)
    values = await ada.evaluate("silent")
    assert values[0] == "off"
    assert values[-1] == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 800, 1400])
async def test_the_page_fits_its_window_whatever_is_written(enter, width, scheme):
    page = await enter("a-room-of-the-longest-name-yet")
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": width, "height": 900})
    await page.get_by_label("Your name").fill("M" * 30)
    await say(page, "M" * 500)
    await expect(lines(page)).to_have_count(1)
    wide = await page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate("lines.scrollWidth <= lines.clientWidth")


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
async def test_text_is_readable_in_light_and_dark(enter, server, scheme, light):
    page = await enter()
    await page.emulate_media(color_scheme=scheme)
    await say(page, "hello")
    await server.stop()
    await server.start()
    await expect(page.locator("#lines .gap")).to_be_visible(timeout=BACK)
    await page.evaluate("document.getElementById('unsent').textContent = 'Not sent.'")
    assert (luminance(await color(page, "body", "background-color")) > 0.5) is light
    card = await color(page, ".card", "background-color")
    body = await color(page, "body", "background-color")
    for selector, background in [
        ("h1", body), ("header nav :link", body), ("footer", body), ("h2", card), ("#here", card), ("label", card),
        ("#rooms :link", card), ("#lines strong", card), ("#lines time", card), ("#lines .gap", card),
        ("#unsent", card), ("input", await color(page, "input", "background-color")),
    ]:  # fmt: skip
        assert contrast(await color(page, selector, "color"), background) >= 4.5, selector
    assert contrast(await color(page, "input", "border-top-color"), card) >= 3
