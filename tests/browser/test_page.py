"""The example's page of the machine in a browser."""

import asyncio
import re
import signal

import pytest
from playwright.async_api import expect

from tests.browser.color import color, contrast, luminance
from tests.program import program, serving
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TIMEOUT = 30.0  # seconds

COUNT = "document.getElementById('load-count').dataset"


async def until(page, condition):
    """Wait until a JavaScript condition holds. The page's policy forbids eval, which ``wait_for_function`` uses."""
    check = (
        f"() => new Promise(done => {{ const check = () => ({condition}) ? done() : setTimeout(check, 10); check(); }})"
    )
    async with asyncio.timeout(TIMEOUT):
        await page.evaluate(check)


async def samples(page, number):
    """Wait until ``number`` more samples were received."""
    count = int(await page.evaluate(f"{COUNT}.count ?? 0"))
    await until(page, f"{COUNT}.count >= {count + number}")


async def opened(page):
    await expect(page.locator("#load-state")).to_have_text("open", timeout=TIMEOUT * 1000)
    await samples(page, 1)


async def record_changes(page, element, attribute):
    """Append each previous value of an attribute to ``window[attribute]`` when it changes."""
    await page.evaluate(
        f"() => {{ const values = window['{attribute}'] = [];"
        "new MutationObserver(records => values.push(...records.map(record => record.oldValue)))"
        f".observe(document.getElementById('{element}'),"
        f"{{ attributeFilter: ['{attribute}'], attributeOldValue: true }}); }}"
    )


def picture(card):
    """JavaScript for the pixels of a card's chart as a string."""
    return f"document.querySelector('#{card} canvas').toDataURL()"


async def test_events_arrive_and_the_numbers_move(page):
    await opened(page)
    before = await page.evaluate(f"{COUNT}.last")
    await samples(page, 10)
    assert int(await page.evaluate(f"{COUNT}.last")) >= int(before) + 10
    await expect(page.locator("#cpu [data-value=mean]")).to_have_text(re.compile(r"^\d+ %$"))
    await expect(page.locator("#memory [data-value=used]")).to_have_text(re.compile(r"^[\d.]+ [kMGT]?B$"))
    await expect(page.locator("#memory [data-value=of]")).to_have_text(re.compile(r"^of [\d.]+ [kMGT]?B$"))
    for card, value in [("network", "received"), ("network", "sent"), ("disk", "read"), ("disk", "written")]:
        text = re.compile(r"^([\d.]+ [kMGT]?B/s|not available)$")
        await expect(page.locator(f"#{card} [data-value={value}]")).to_have_text(text)


async def test_the_numbers_on_the_page_change_with_the_machine(page):
    await opened(page)
    text = "document.querySelector('main').innerText"
    before = await page.evaluate(text)
    await until(page, f"{text} !== {before!r}")


async def test_each_chart_draws_its_lines_and_they_move(page):
    await opened(page)
    cores = await page.locator("#cpu .key li").count()
    assert cores > 0
    for card, lines in [("cpu", cores + 1), ("memory", 1), ("network", 2), ("disk", 2)]:
        await expect(page.locator(f"#{card} figure")).to_have_attribute("data-lines", str(lines))
        drawn = await page.evaluate(
            f"(() => {{ const canvas = document.querySelector('#{card} canvas');"
            "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
            "return data.filter((value, index) => index % 4 === 3 && value > 0).length; })()"
        )
        assert drawn > 100
        before = await page.evaluate(picture(card))
        await until(page, f"{picture(card)} !== {before!r}")


async def test_a_page_that_opens_later_gets_the_history_at_once(page, server):
    await until(page, f"{COUNT}.last >= 65")
    before = int(await page.evaluate(f"{COUNT}.last"))
    later = await page.context.new_page()
    await later.goto(server.address)
    await until(later, f"{COUNT}.count >= 60")
    count, last = await later.evaluate(f"[Number({COUNT}.count), Number({COUNT}.last)]")
    assert last - count + 1 < before  # the first sample was taken before the page was opened
    await expect(later.locator("#cpu figure")).to_have_attribute("data-samples", "60")


async def test_reloading_starts_again(page):
    await opened(page)
    await page.reload()
    await opened(page)
    await expect(page.locator("#load-count")).to_have_text(re.compile(r"^\d+ samples, none missing, none repeated$"))


async def test_a_dropped_stream_resumes_without_missing_or_repeated_samples(page):
    await opened(page)
    await record_changes(page, "load-count", "data-last")
    await record_changes(page, "load-state", "data-state")
    await samples(page, 5)
    await page.get_by_role("button", name="Drop my connection").click()
    await until(page, "window['data-state'].length === 2")
    await expect(page.locator("#load-state")).to_have_text("open")
    await samples(page, 30)
    assert await page.evaluate("window['data-state']") == ["open", "lost"]
    seen = [int(number) for number in await page.evaluate("window['data-last']")]
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert len(seen) > 30
    await expect(page.locator("#load-count")).to_have_text(re.compile(r"^\d+ samples, none missing, none repeated$"))


async def test_only_the_stream_of_the_page_with_the_button_is_dropped(page, server):
    other = await page.context.new_page()
    await other.goto(server.address)
    await opened(other)
    await opened(page)
    for tab in (page, other):
        await record_changes(tab, "load-state", "data-state")
    await page.get_by_role("button", name="Drop my connection").click()
    await until(page, "window['data-state'].length === 2")
    await samples(other, 5)
    assert await other.evaluate("window['data-state']") == []


async def test_the_page_resumes_after_a_restart_of_the_server(page, server, console_errors):
    await samples(page, 30)
    await server.stop()
    await expect(page.locator("#load-state")).to_have_text("lost, reconnecting")
    await server.start()
    await expect(page.locator("#load-state")).to_have_text("open", timeout=TIMEOUT * 1000)
    await samples(page, 5)
    await expect(page.locator("#load-count")).to_have_text(re.compile(r"^\d+ samples, none missing, none repeated$"))
    console_errors[:] = [text for text in console_errors if "ERR_CONNECTION_REFUSED" not in text]


async def test_numbers_that_are_no_longer_true_are_dimmed(page, server, console_errors):
    await opened(page)
    number = page.locator("#cpu .number")
    fresh = await number.evaluate("element => getComputedStyle(element).color")
    await expect(page.locator("#load-stale")).to_be_empty()
    await server.stop()
    await expect(page.locator("#load-stale")).to_have_text(re.compile(r"^The numbers are from .*\d.*\.$"))
    assert await number.evaluate("element => getComputedStyle(element).color") != fresh
    assert contrast(await color(page, "#cpu .number", "color"), await color(page, ".card", "background-color")) >= 4.5
    await server.start()
    await expect(page.locator("#load-stale")).to_be_empty(timeout=TIMEOUT * 1000)
    assert await number.evaluate("element => getComputedStyle(element).color") == fresh
    console_errors[:] = [text for text in console_errors if "ERR_CONNECTION_REFUSED" not in text]


async def test_numbers_of_a_server_that_is_silent_are_dimmed_although_the_connection_is_open(visit):
    async with program("--port", str(free_port())) as process:
        page = await visit((await serving(process))["url"])
        await opened(page)
        process.send_signal(signal.SIGSTOP)
        await expect(page.locator("#load-stale")).to_have_text(re.compile("^The numbers are from "))
        await expect(page.locator("#load-state")).to_have_text("open")
        process.send_signal(signal.SIGCONT)
        await expect(page.locator("#load-stale")).to_be_empty()
        await page.context.close()


async def test_the_charts_show_where_a_restarted_server_lost_its_history(page, server, console_errors):
    await samples(page, 30)
    await expect(page.locator("#load-lost")).to_be_empty()
    await expect(page.locator("#memory figure")).to_have_attribute("data-lost", "0")
    # The history of the new server may push the mark out of a chart before a poll sees it.
    await page.evaluate(
        "() => { window.marked = new Set();"
        "const observer = new MutationObserver(records => records.forEach("
        "({ target }) => target.dataset.lost === '1' && window.marked.add(target)));"
        "document.querySelectorAll('figure').forEach("
        "figure => observer.observe(figure, { attributeFilter: ['data-lost'] })); }"
    )
    await server.stop()
    async with asyncio.timeout(TIMEOUT):
        while not console_errors:  # the browser has tried to reconnect
            await samples(page, 0)
    await server.start()
    await until(page, "window.marked.size === document.querySelectorAll('figure').length")
    await expect(page.locator("#load-lost")).to_have_text(
        re.compile("^The server was restarted or replaced, and its history is lost: nothing is known from .* to .*"),
        timeout=TIMEOUT * 1000,
    )
    await samples(page, 65)
    await expect(page.locator("#memory figure")).to_have_attribute("data-lost", "0")  # it has left the chart
    await expect(page.locator("#load-lost")).not_to_be_empty()
    console_errors[:] = [text for text in console_errors if "ERR_CONNECTION_REFUSED" not in text]


async def test_a_page_that_moves_to_another_server_draws_each_moment_once(page, server, visit, console_errors):
    async with program("--port", str(free_port())) as process:
        url = (await serving(process))["url"]
        other = await visit(url)
        await samples(other, 3)  # its history begins before the page moves there
        await samples(page, 10)
        await page.route("**/events/load?*", lambda route: route.fulfill(status=502, body="bad gateway"))
        await page.get_by_role("button", name="Drop my connection").click()
        await expect(page.locator("#load-state")).to_have_text("lost, reconnecting")
        await page.unroute("**/events/load?*")
        await page.route("**/events/load?*", lambda route: route.continue_(url=f"{url}/events/load"))
        await expect(page.locator("#load-state")).to_have_text("open")
        await samples(page, 3)
        times = await page.evaluate("document.querySelector('#memory figure').dataset.times.split(' ').map(Number)")
        assert times == sorted(set(times))
        for tab in (page, other):
            await tab.context.close()
    console_errors[:] = [text for text in console_errors if not re.search("ERR_|502", text)]


async def test_a_page_that_was_away_for_too_long_shows_what_it_lost(page, server, visit, console_errors):
    other = await visit(server.address)
    await opened(page)
    await page.route("**/events/load?*", lambda route: route.abort())
    await page.get_by_role("button", name="Drop my connection").click()
    await expect(page.locator("#load-state")).to_have_text("lost, reconnecting")
    last = int(await page.evaluate(f"{COUNT}.last"))
    await until(other, f"{COUNT}.last > {last + 70}")  # the server keeps 60 samples
    await page.unroute("**/events/load?*")
    await expect(page.locator("#load-lost")).to_have_text(
        re.compile(r"^The page was away for too long and lost \d+ samples: "), timeout=TIMEOUT * 1000
    )
    await expect(page.locator("#load-count")).to_have_text(re.compile(r"samples, \d+ missing, none repeated$"))
    console_errors[:] = [text for text in console_errors if "ERR_FAILED" not in text]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 800, 1400])
async def test_the_page_fits_its_window(page, width, scheme):
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": width, "height": 900})
    await opened(page)
    wide = await page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for card in ("cpu", "memory", "network", "disk"):
        chart, figure = await page.evaluate(
            f"['canvas', ''].map(of => document.querySelector('#{card} figure ' + of).getBoundingClientRect().width)"
        )
        assert abs(chart - figure) <= 1


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
async def test_text_is_readable_in_light_and_dark(page, scheme, light):
    await page.emulate_media(color_scheme=scheme)
    await opened(page)
    assert (luminance(await color(page, "body", "background-color")) > 0.5) is light
    card = await color(page, ".card", "background-color")
    body = await color(page, "body", "background-color")
    for selector, background in [
        ("h1", body), ("header .quiet", body), ("header nav :link", body), ("#load-state", body), ("footer", body),
        ("h2", card), (".card .quiet", card), (".number", card),
        ("#drop", await color(page, "#drop", "background-color")),
    ]:  # fmt: skip
        assert contrast(await color(page, selector, "color"), background) >= 4.5, selector


async def test_the_charts_follow_when_the_colour_scheme_changes(page):
    await page.emulate_media(color_scheme="light")
    await opened(page)
    # The brightest red in the corner that shows the text of the scale.
    corner = "document.querySelector('#memory canvas').getContext('2d').getImageData(0, 0, 60, 60).data"
    brightest = f"Math.max(...{corner}.filter((_, index) => index % 4 === 0))"
    before = await page.evaluate(brightest)
    await page.emulate_media(color_scheme="dark")
    await until(page, f"{brightest} > {before}")
    assert await page.locator("#memory canvas").count() == 1


async def test_screen_readers_announce_the_state_and_not_the_numbers(page):
    await opened(page)
    await expect(page.get_by_role("status").filter(has_text="open").first).to_be_visible()
    assert await page.locator("#load-state").get_attribute("role") == "status"
    assert await page.locator("output").count() == 0  # an output element is a live region
    assert await page.get_by_role("img").count() == 4
