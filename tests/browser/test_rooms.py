"""The example's rooms in browsers: two users who write to each other, and what the pages show after failures."""

import re
import signal

import pytest
from playwright.async_api import expect

from tests.browser.color import color, contrast, luminance
from tests.program import program, serving
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TIMEOUT = 30_000  # milliseconds, long enough for a server to start and a browser to reconnect

expect.set_options(timeout=TIMEOUT)


async def opened(page):
    await expect(page.locator("#room-state")).to_have_text("open")
    await expect(page.locator("#here")).not_to_be_empty()
    return page


@pytest.fixture
def enter(server, visit):
    """Open a room in a new browser context."""

    async def enter(room="lobby"):
        return await opened(await visit(f"{server.address}rooms?room={room}"))

    return enter


async def say(page, text):
    await page.get_by_label("Your line").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Your line")).to_have_value("")


def lines(page):
    """The lines and the gaps that the page shows."""
    return page.locator("#lines span, #lines .gap")


async def record_states(page):
    """Append each previous state of the connection to ``window.states`` when it changes."""
    await page.evaluate(
        "() => { window.states = [];"
        "new MutationObserver(records => states.push(...records.map(record => record.oldValue)))"
        ".observe(document.getElementById('room-state'), { attributes: true, attributeOldValue: true }); }"
    )


async def test_lines_appear_on_both_pages_in_the_same_order(enter):
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


async def test_a_page_that_opens_later_shows_the_history(enter):
    ada = await enter()
    await say(ada, "hello")
    await expect(lines(await enter())).to_have_text(["hello"])
    await ada.reload()
    await expect(lines(ada)).to_have_text(["hello"])


async def test_all_pages_of_a_browser_sign_out_and_offer_nothing_until_they_are_reloaded(enter):
    ada, other_browser = await enter(), await enter()
    tab = await ada.context.new_page()
    await tab.goto(ada.url)
    await opened(tab)
    await ada.get_by_role("button", name="Sign out all my pages").click()
    for page in (ada, tab):
        await expect(page.locator("#room-state")).to_have_text("signed out; reload to come back")
        for name in ("Send", "Drop my connection", "Sign out all my pages"):
            await expect(page.get_by_role("button", name=name)).to_be_disabled()
    await expect(other_browser.locator("#here")).to_have_text("only you")
    await expect(other_browser.get_by_role("button", name="Send")).to_be_enabled()
    await tab.get_by_label("Your line").fill("not sent")
    await tab.keyboard.press("Enter")
    await tab.reload()
    await opened(tab)
    await say(tab, "back again")
    await expect(lines(other_browser)).to_have_text(["back again"])


async def test_markup_in_a_line_is_shown_as_text(enter):
    ada, grace = await enter(), await enter()
    markup = "<img src=x onerror=document.title='broken'><b>&amp;</b>"
    await ada.get_by_label("Your name").fill("<i>Ada</i>")
    await say(ada, markup)
    await expect(lines(grace)).to_have_text([markup])
    await expect(grace.locator("#lines strong")).to_have_text("<i>Ada</i>")
    assert await grace.locator("#lines :is(img, b, i)").count() == 0
    assert "broken" not in await grace.title()


async def test_a_dropped_connection_resumes_without_lost_or_repeated_lines(enter):
    ada, grace = await enter(), await enter()
    await say(grace, "before")
    await expect(lines(ada)).to_have_text(["before"])
    for page in (ada, grace):
        await record_states(page)
    await ada.get_by_role("button", name="Drop my connection").click()
    await expect(ada.locator("#room-state")).to_have_text("lost, reconnecting")
    await say(grace, "while Ada was disconnected")
    await opened(ada)
    await say(ada, "after")
    for page in (ada, grace):
        await expect(lines(page)).to_have_text(["before", "while Ada was disconnected", "after"])
        await expect(page.locator("#here")).to_have_text("2 here")
    assert await ada.evaluate("states") == ["open", "lost"]
    assert await grace.evaluate("states") == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_after_a_restart_no_line_is_missing_or_repeated(visit, console_errors, how, tmp_path):
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
    console_errors[:] = [text for text in console_errors if "ERR_" not in text]


async def test_two_servers_with_the_same_history_share_their_rooms(visit, console_errors, tmp_path):
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
    console_errors[:] = [text for text in console_errors if "ERR_" not in text]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_after_the_server_lost_its_history_both_pages_show_a_gap_and_resume(visit, console_errors, how):
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
        await expect(ada.get_by_label("Your line")).to_have_value("is anybody there?")
    async with program("--port", port) as process:
        await serving(process)
        await opened(ada)
        await ada.get_by_role("button", name="Send").click()
        await expect(ada.get_by_role("alert")).to_be_empty()
        await opened(grace)
        gap = re.compile("The server was restarted.*may be missing")
        for page in (ada, grace):
            await expect(lines(page)).to_have_text(["before", gap, "is anybody there?"])
        await grace.get_by_role("button", name="Drop my connection").click()
        await expect(grace.locator("#room-state")).to_have_text("lost, reconnecting")
        await say(ada, "still here")
        await expect(lines(grace)).to_have_text(["before", gap, "is anybody there?", "still here"])
        for page in (ada, grace):
            await page.context.close()
    console_errors[:] = [text for text in console_errors if "ERR_" not in text]


async def test_a_new_event_source_after_an_error_response_resumes(enter, console_errors):
    ada, grace = await enter(), await enter()
    await say(ada, "before")
    await ada.route("**/events/room?*", lambda route: route.fulfill(status=502, body="bad gateway"))
    async with ada.expect_response(lambda response: response.status == 502):  # the browser stops reconnecting
        await ada.get_by_role("button", name="Drop my connection").click()
    await say(grace, "meanwhile")
    await ada.unroute("**/events/room?*")
    await opened(ada)
    await expect(lines(ada)).to_have_text(["before", "meanwhile"])
    console_errors[:] = [text for text in console_errors if "502" not in text]


async def test_an_invalid_room_leads_back_to_the_lobby(server, visit, console_errors):
    page = await visit(f"{server.address}rooms?room=<b>a.>")
    await expect(page.get_by_text("not “<b>a.>”")).to_be_visible()
    await page.get_by_role("link", name="Go to the lobby").click()
    await opened(page)
    await expect(page.get_by_role("heading", name="lobby")).to_be_visible()
    console_errors[:] = [text for text in console_errors if "400" not in text]


async def test_an_empty_room_tells_how_long_its_lines_are_kept(enter, visit, console_errors, tmp_path):
    def empty(page):
        return page.evaluate("getComputedStyle(lines, '::before').content")

    page = await enter()
    assert await empty(page) == '"Nothing here yet. Lines are kept for an hour, in the memory of the server."'
    await say(page, "hello")
    assert await empty(page) == "none"
    async with program("--port", str(free_port()), environment={"HISTORY": str(tmp_path / "rooms.sqlite3")}) as process:
        page = await opened(await visit((await serving(process))["url"] + "/rooms"))
        assert "in a file, also when the server is restarted." in await empty(page)
        await page.context.close()
    console_errors[:] = [text for text in console_errors if "ERR_" not in text]


async def test_rooms_are_separate_and_can_be_changed_by_link_form_and_back_button(enter):
    page, other = await enter(), await enter("kitchen")
    await say(page, "in the lobby")
    await page.get_by_role("link", name="kitchen").click()
    await expect(page).to_have_title("kitchen – Rooms")
    await opened(page)
    await say(page, "in the kitchen")
    for tab in (page, other):
        await expect(lines(tab)).to_have_text(["in the kitchen"])
        await expect(tab.locator("#rooms [aria-current]")).to_have_text("kitchen")
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


async def test_the_newest_line_is_visible_unless_the_user_scrolled_up(enter):
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
    await say(grace, "another one")  # sending scrolls to the end
    await expect(lines(grace).last).to_have_text("another one")
    await expect(lines(grace).last).to_be_in_viewport()


async def test_the_page_works_with_the_keyboard_and_announces_only_new_lines(server, visit):
    page = await visit(f"{server.address}rooms")
    await expect(page.get_by_label("Your line")).to_be_focused()
    await opened(page)
    await expect(page.get_by_role("log", name="lobby")).to_have_attribute("aria-live", "polite")
    await page.keyboard.type("hello")
    await page.keyboard.press("Enter")
    await expect(lines(page)).to_have_text(["hello"])
    await expect(page.get_by_label("Your line")).to_be_focused()
    reached = []
    for _ in range(24):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    pages = ("README", "Machine monitor", "Experiments")
    for element in (*pages, "Inspector", "drop", "logout", "lobby", "kitchen", "other", "Go", "lines", "name"):
        assert element in reached
    assert await page.locator("#room-state").get_attribute("role") == "status"
    assert await page.locator("[aria-live], [role=status], [role=alert], output").count() == 3


async def test_the_history_is_not_announced(enter):
    """The log's ``aria-live`` changes after the last line of the history was added."""
    ada = await enter()
    for number in range(5):
        await say(ada, f"line {number}")
    await ada.add_init_script(
        "addEventListener('DOMContentLoaded', () => { window.ariaLive = [];"
        "new MutationObserver(() => ariaLive.push(lines.ariaLive)).observe(lines, { childList: true }); });"
    )
    await ada.reload()
    await opened(ada)
    await say(ada, "new")
    await expect(lines(ada)).to_have_count(6)
    values = await ada.evaluate("ariaLive")
    assert values[0] == "off"
    assert values[-1] == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 800, 1400])
async def test_the_page_fits_its_window_with_long_words(enter, width, scheme):
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
    await expect(page.locator("#lines .gap")).to_be_visible()
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
