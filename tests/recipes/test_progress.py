"""The recipe of a job's progress: it survives a reload of the page, and the death of the server."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import expect

from aiohttp_interceptors.testing import open_stream
from tests.browser.accessibility import violations
from tests.waiting import within


async def job_of(session, recipe):
    async with session.post(f"{recipe.url}/jobs", allow_redirects=False) as response:
        assert response.status == 303
        return recipe.url + response.headers["Location"]


async def until_done(stream, number):
    """Read until a job has done so many steps, and return all that was read."""
    read = [json.loads((await stream.next()).data)]
    while read[-1]["done"] < number:
        read.append(json.loads((await stream.next()).data))
    return read


async def test_a_client_gets_the_state_and_then_each_step_and_the_stream_ends(session, run):
    job = await job_of(session, run("progress", replace={"STEPS = 100": "STEPS = 10", "sleep(0.1)": "sleep(0.02)"}))
    async with open_stream(session, f"{job}/events") as stream:
        read = [json.loads(event.data) async for event in stream]
    first = read[0]["done"]
    assert [each["done"] for each in read] == [*range(first, 11), 10]
    assert [each["state"] for each in read[-2:]] == ["running", "finished"]


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_job_goes_on_in_the_next_process(session, run, end):
    recipe = run("progress")
    job = await job_of(session, recipe)
    async with open_stream(session, f"{job}/events") as stream:
        await until_done(stream, 3)
        last = stream.last_event_id
    getattr(recipe, end)()
    recipe.restart()
    async with open_stream(session, f"{job}/events", last_event_id=last) as stream:
        gap = await stream.next()
        assert (gap.name, json.loads(gap.data)["reason"]) == ("gap", "foreign")
        state, *steps = await until_done(stream, 8)
        assert state["done"] >= 3
        assert [step["done"] for step in steps] == list(range(state["done"] + 1, 9))


async def test_a_page_gets_the_state_of_a_job_of_which_nothing_is_published_any_more(session, run):
    recipe = run("progress", replace={"STEPS = 100": "STEPS = 2"})
    job = await job_of(session, recipe)
    async with open_stream(session, f"{job}/events") as stream:
        await stream.rest()
    recipe.stop()
    recipe.restart()
    async with open_stream(session, f"{job}/events") as stream:
        assert json.loads((await stream.next()).data) == {"done": 2, "steps": 2, "state": "finished"}


async def test_the_stream_of_a_job_that_does_not_exist_is_a_404(session, run):
    recipe = run("progress")
    for job in "missing", ">", "*":
        async with session.get(f"{recipe.url}/jobs/{job}/events") as response:
            assert response.status == 404


async def test_a_job_that_fails_says_so_also_to_a_page_that_comes_later(session, run):
    recipe = run("progress", replace={"await asyncio.sleep(0.1)": "raise OSError(number)"})
    job = await job_of(session, recipe)
    for _ in range(2):
        async with open_stream(session, f"{job}/events") as stream:
            assert json.loads((await within(stream.rest()))[-1].data) == {"done": 0, "steps": 100, "state": "failed"}
    recipe.log_may_have("OSError")


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_shows_the_progress_after_a_reload_and_while_the_server_restarts(visit, run, console_errors):
    recipe = run("progress")
    page = await visit(recipe.url)
    await page.get_by_role("button", name="Start a job").click()
    output = page.locator("output")
    await expect(output).to_contain_text("of 100, running")
    await page.reload()
    await expect(output).to_contain_text("of 100, running")
    recipe.kill()
    recipe.restart()
    await expect(output).to_have_text("100 of 100, finished")
    assert await page.locator("progress").evaluate("bar => bar.value") == 1
    await page.reload()
    await expect(output).to_have_text("100 of 100, finished")
    console_errors[:] = [each for each in console_errors if "ERR_" not in each]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_has_no_violations_for_axe(visit, run):
    page = await visit(run("progress").url)
    assert await violations(page) == []
    await page.get_by_role("button", name="Start a job").click()
    await expect(page.locator("output")).to_contain_text("of 100, running")
    assert await violations(page) == []
