"""The recipe of a chat: tokens over POST, errors, cancelling, and an answer that goes on while its reader is away."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from playwright.async_api import expect

from aiohttp_interceptors import Decoder
from aiohttp_interceptors.testing import open_stream
from tests.browser.accessibility import violations
from tests.waiting import TIMEOUT, within

SHORT_LEASES = {
    "app = web.App": "from aiohttp_interceptors.hub import nodes\n"
    "nodes.LEASE_INTERVAL, nodes.LEASE_TIMEOUT = 0.2, 1.5\n"
    "app = web.App"
}
FASTER = {"sleep(0.2)": "sleep(0.02)"}


@pytest.fixture
async def ask(session):
    """Ask, and return the response of the POST, of which nothing was read."""
    responses = []

    async def ask(recipe, prompt):
        response = await session.post(f"{recipe.url}/answers", json={"prompt": prompt})
        responses.append(response)
        assert (response.status, response.content_type) == (200, "text/event-stream")
        return response

    yield ask
    for response in responses:
        response.close()


def told(events):
    return [(event.name, *json.loads(event.data).values()) for event in events]


async def test_the_post_is_answered_token_by_token(run, ask):
    response = await ask(run("chat", replace=FASTER), "one two")
    events = Decoder().feed(await within(response.read()))
    assert told(events) == [("token", "one "), ("token", "two "), ("end", "finished")]


async def test_the_post_has_all_tokens_of_an_answer_that_is_complete_before_its_stream_is_open(run, ask):
    recipe = run("chat", replace={**FASTER, "    context[TOPIC] =": "    await run.wait()\n    context[TOPIC] ="})
    events = Decoder().feed(await within((await ask(recipe, "one two")).read()))
    assert told(events) == [("token", "one "), ("token", "two "), ("end", "finished")]


async def test_an_answer_goes_on_without_its_reader_and_is_read_again_from_the_first_token(session, run, ask):
    recipe = run("chat", replace=FASTER)
    response = await ask(recipe, "one two three")
    response.close()
    async with open_stream(session, recipe.url + response.headers["Content-Location"]) as stream:
        words = [("token", "one "), ("token", "two "), ("token", "three "), ("end", "finished")]
        assert told(await stream.rest()) == words


async def test_an_error_is_told_and_is_not_the_text_of_the_exception(run, ask):
    recipe = run("chat", replace=FASTER)
    response = await ask(recipe, "one fail two")
    events = told(Decoder().feed(await within(response.read())))
    assert events == [
        ("token", "one "),
        ("failed", "The model does not answer, please try again."),
        ("end", "failed", "error"),
    ]
    recipe.log_may_have("RuntimeError")


async def test_an_answer_is_cancelled(session, run, ask):
    recipe = run("chat")
    response = await ask(recipe, "word " * 1000)
    await within(response.content.readuntil(b"\n\n"))
    url = recipe.url + response.headers["Content-Location"].partition("?")[0]
    async with session.delete(url) as cancelled:
        assert cancelled.status == 204
    events = told(Decoder().feed(await within(response.read())))
    assert events[-1] == ("end", "cancelled")
    async with session.delete(f"{recipe.url}/answers.00") as missing:
        assert missing.status == 404


async def test_an_answer_that_a_dead_server_did_not_end_is_told_as_lost(session, run, ask):
    recipe = run("chat", replace=SHORT_LEASES)
    response = await ask(recipe, "word " * 1000)
    async with open_stream(session, recipe.url + response.headers["Content-Location"]) as stream:
        first = await stream.next()
    recipe.kill()
    recipe.restart()
    url = recipe.url + response.headers["Content-Location"]
    async with open_stream(session, url) as stream:
        events = await stream.rest()
    assert events[0] == first
    assert told(events)[-1] == ("end", "failed", "lost")


async def test_a_wrong_question_is_refused(session, run):
    recipe = run("chat")
    for body, status in (({}, 422), ({"prompt": 5}, 422), ({"prompt": "x" * 20_000}, 413)):
        async with session.post(f"{recipe.url}/answers", json=body) as response:
            assert (response.status, response.content_type) == (status, "application/problem+json")


async def test_too_many_answers_at_a_time_are_a_503(session, run, ask):
    recipe = run("chat", replace={"max_runs=100": "max_runs=1"})
    await ask(recipe, "word " * 1000)
    async with session.post(f"{recipe.url}/answers", json={"prompt": "word"}) as response:
        assert response.status == 503


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_says_that_an_answer_is_not_kept_any_more(visit, run):
    recipe = run("chat", replace={**FASTER, "history=10_000": "history=10_000, history_age=1"})
    page = await visit(recipe.url)
    state, ask = page.locator("#state"), page.get_by_role("button", name="Ask")
    await page.get_by_label("Question").fill("one two")
    await ask.click()
    await expect(state).to_have_text("finished")
    async with asyncio.timeout(TIMEOUT):
        while await state.text_content() != "The answer is no longer kept.":
            await page.reload()
            await expect(state).to_have_text(re.compile("finished|kept"))
    await expect(ask).to_be_enabled()


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_shows_the_answer_again_after_a_reload_and_stops_it(visit, run):
    recipe = run("chat")
    page = await visit(recipe.url)
    answer, state = page.locator("#answer"), page.locator("#state")
    await page.get_by_label("Question").fill(" ".join(f"w{number}" for number in range(500)))
    await page.get_by_role("button", name="Ask").click()
    await expect(answer).to_contain_text("w0 w1 w2")
    await page.reload()
    await expect(answer).to_contain_text("w0 w1 w2 w3 w4")
    await page.get_by_role("button", name="Stop").click()
    await expect(state).to_have_text("cancelled")
    await page.get_by_label("Question").fill("short fail")
    await page.get_by_role("button", name="Ask").click()
    await expect(answer).to_have_text("short The model does not answer, please try again.")
    await expect(state).to_have_text("failed")
    recipe.log_may_have("RuntimeError")


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_has_no_violations_for_axe(visit, run):
    page = await visit(run("chat", replace=FASTER).url)
    assert await violations(page) == []
    await page.get_by_label("Question").fill("one two")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator("#state")).to_have_text("finished")
    assert await violations(page) == []


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_reads_on_when_the_stream_of_the_post_ends_before_the_answer(visit, run):
    recipe = run("chat", replace={**FASTER, "replay=10_000)": "replay=10_000, max_age=1)"})
    page = await visit(recipe.url)
    words = [f"w{number}" for number in range(200)]
    await page.get_by_label("Question").fill(" ".join(words))
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator("#state")).to_have_text("finished")
    await expect(page.locator("#answer")).to_have_text(" ".join(words))


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("url", ["/", "/answers", "/answers.00/../x?last_event_id=1", "//localhost:1/answers.00"])
async def test_a_link_cannot_make_the_page_read_or_delete_something_else(visit, run, url):
    recipe = run("chat")
    page = await visit(f"{recipe.url}/#{url}")
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    await page.get_by_role("button", name="Stop").click()
    await page.get_by_label("Question").fill("")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator("#state")).to_have_text("finished")
    assert requests == [f"{recipe.url}/answers"]
