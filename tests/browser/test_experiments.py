"""The example's page of experiments in a browser: a job, an answer, the stream that ends, and the late cookie."""

import re
import signal

import pytest
import pytest_asyncio
from playwright.async_api import expect

from aiohttp_interceptors.testing import captured_logs
from example_app.runs import TOKENS
from tests.browser.color import color, contrast, luminance
from tests.program import program, serving
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

TEXT = "".join(TOKENS).strip()


@pytest_asyncio.fixture(loop_scope="module")
async def page(server, visit):
    """The page of the experiments."""
    return await visit(f"{server.address}experiments")


async def click(page, name):
    await page.get_by_role("button", name=name, exact=True).click()


async def progress(page):
    return await page.locator("#job-progress").evaluate("bar => bar.value / bar.max")


async def tokens(page, number):
    """Wait until the page has at least this number of tokens."""
    numbers = "|".join(str(each) for each in range(number, len(TOKENS) + 1))
    await expect(page.locator("#answer-count")).to_have_text(re.compile(f"^({numbers}) of {len(TOKENS)} tokens$"))


async def seed_finished(page):
    await expect(page.locator("#seed-state")).to_have_text("finished")


# The job.


async def test_the_progress_of_a_job_survives_a_reload_and_is_the_same_in_a_second_window(page):
    await click(page, "Start a job")
    await expect(page.locator("#job-state")).to_have_text("running")
    await expect(page.locator("#job-count")).to_have_text(re.compile(r"^[2-9]\d %$"))
    await page.reload()
    await expect(page.locator("#job-state")).to_have_text("running")
    await expect(page.locator("#job-count")).not_to_have_text("0 %")
    assert await progress(page) >= 0.2
    second = await page.context.new_page()
    await second.goto(page.url)
    for window in (page, second):
        await expect(window.locator("#job-state")).to_have_text("finished")
        await expect(window.locator("#job-count")).to_have_text("100 %")
    await page.reload()
    await expect(page.locator("#job-state")).to_have_text("finished")
    assert await progress(page) == 1


async def test_a_job_of_a_server_that_was_stopped_ends_as_failed(visit, console_errors, tmp_path):
    port, history = str(free_port()), {"HISTORY": str(tmp_path / "history.sqlite3")}
    async with program("--port", port, environment=history) as process:
        page = await visit((await serving(process))["url"] + "/experiments")
        await click(page, "Start a job")
        await expect(page.locator("#job-count")).to_have_text(re.compile(r"^[1-9]\d? %$"))
        process.send_signal(signal.SIGTERM)
        await process.wait()
    async with program("--port", port, environment=history) as process:
        await serving(process)
        await expect(page.locator("#job-state")).to_have_text("failed: the server was stopped")
        await page.reload()
        await expect(page.locator("#job-state")).to_have_text("failed: the server was stopped")
        await page.context.close()
    console_errors[:] = [text for text in console_errors if "ERR_" not in text]


async def test_a_job_that_the_server_has_forgotten_is_not_waited_for(page, server, console_errors):
    await page.goto(f"{server.address}experiments?jobs=jobs.{'0' * 32}@x")
    await expect(page.locator("#job-state")).to_have_text("forgotten by the server")
    assert "jobs" not in page.url
    console_errors[:] = [text for text in console_errors if "404" not in text]


# The answer.


async def test_an_answer_is_stopped_and_continued(page):
    await click(page, "Ask")
    await tokens(page, 5)
    await click(page, "Stop")
    await expect(page.locator("#answer-state")).to_have_text("stopped")
    text = await page.locator("#answer-text").text_content()
    assert TEXT.startswith(text.strip())
    assert len(text) < len(TEXT)
    await click(page, "Continue")
    await expect(page.locator("#answer-state")).to_have_text("running")
    await page.reload()
    await expect(page.locator("#answer-state")).to_have_text("finished")
    await expect(page.locator("#answer-text")).to_have_text(TEXT)
    for name in ("Stop", "Continue"):
        await expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)


async def test_an_answer_that_was_stopped_can_be_continued_after_a_reload(page):
    await click(page, "Ask")
    await tokens(page, 5)
    await click(page, "Stop")
    await expect(page.locator("#answer-state")).to_have_text("stopped")
    await page.reload()
    await expect(page.locator("#answer-state")).to_have_text("stopped")
    await click(page, "Continue")
    await expect(page.locator("#answer-text")).to_have_text(TEXT)


async def test_a_dropped_answer_has_every_token_once(page):
    await click(page, "Ask")
    await tokens(page, 5)
    await click(page, "Drop my connections")
    await expect(page.locator("#answer-state")).to_have_text("lost, reconnecting")
    await expect(page.locator("#answer-state")).to_have_text("finished")
    await expect(page.locator("#answer-text")).to_have_text(TEXT)


async def test_a_screen_reader_reads_an_answer_when_it_is_whole(page):
    answer = page.locator("#answer-text")
    await expect(answer).to_have_attribute("aria-live", "polite")
    await click(page, "Ask")
    await expect(answer).to_have_attribute("aria-busy", "true")
    await click(page, "Stop")
    await expect(answer).to_have_attribute("aria-busy", "false")


# The stream that ends, and the cookie.


async def test_the_seed_ends_after_twenty_events_and_does_not_restart(page):
    requests = []
    page.on("request", lambda request: requests.append(request) if "/events/seed" in request.url else None)
    await click(page, "Start the stream")
    await seed_finished(page)
    await expect(page.locator("#seed-count")).to_have_text("20")
    await expect(page.locator("#seed-events .received")).to_have_text(["foo bar"] * 20)
    headers = [await request.all_headers() for request in requests]
    assert [sent.get("last-event-id") for sent in headers] == [None, "20"]
    assert [(await request.response()).status for request in requests] == [200, 204]
    # A browser reconnects after one second: the job takes several.
    await click(page, "Start a job")
    await expect(page.locator("#job-state")).to_have_text("finished")
    assert len(requests) == 2
    await expect(page.locator("#seed-state")).to_have_text("finished")


async def test_the_seed_can_be_started_again_and_resumes_when_it_was_dropped(page):
    await click(page, "Start the stream")
    await seed_finished(page)
    await click(page, "Start the stream")
    await expect(page.locator("#seed-count")).to_have_text(re.compile("^[1-9]$"))
    await click(page, "Drop my connections")
    await seed_finished(page)
    await expect(page.locator("#seed-events .received")).to_have_count(20)
    await expect(page.locator("#seed-count")).to_have_text("20")


async def test_the_late_cookie_is_dropped_and_logged(page):
    with captured_logs() as lines:
        await click(page, "Start the stream")
        await seed_finished(page)
    dropped = [line for line in lines if line["event"] == "change_after_commit_dropped"]
    assert [(line["interceptor"], line["stage"], line["log_level"]) for line in dropped] == [
        ("late_cookie", "leave", "error")
    ]
    assert await page.context.cookies() == []
    await expect(page.locator("#cookies")).to_have_text("none")


# The page.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 800, 1400])
async def test_the_page_fits_its_window(page, width, scheme):
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": width, "height": 900})
    await click(page, "Ask")
    await tokens(page, 5)
    wide = await page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
async def test_text_is_readable_in_light_and_dark(page, scheme, light):
    await page.emulate_media(color_scheme=scheme)
    await click(page, "Start the stream")
    await seed_finished(page)
    assert (luminance(await color(page, "body", "background-color")) > 0.5) is light
    card = await color(page, ".card", "background-color")
    body = await color(page, "body", "background-color")
    for selector, background in [
        ("h1", body), (".library", body), (".library a", body), ("header nav :link", body),
        ("h2", card), (".steps li", card), (".card .quiet", card), (".card .quiet a", card), ("#seed-state", card),
        ("#job-state", card), ("#seed-events li", card), ("#drop", await color(page, "#drop", "background-color")),
    ]:  # fmt: skip
        assert contrast(await color(page, selector, "color"), background) >= 4.5, selector


async def test_everything_can_be_reached_and_used_with_the_keyboard(page):
    reached = []
    for _ in range(13):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    for element in ("README", "Documentation", "Machine monitor", "Experiments", "drop", "job-start", "answer-start"):
        assert element in reached
    await page.get_by_role("button", name="Ask", exact=True).focus()
    await page.keyboard.press("Enter")
    await tokens(page, 1)
    await page.keyboard.press("Tab")
    await page.keyboard.press("Space")
    await expect(page.locator("#answer-state")).to_have_text("stopped")
    await page.keyboard.press("Space")  # the focus is still on the button
    await expect(page.locator("#answer-state")).to_have_text("running")
    assert await page.get_by_role("progressbar", name="A job with a progress bar").count() == 1
    for landmark in ("banner", "main", "navigation"):
        assert await page.get_by_role(landmark).count() == 1
