"""aiojobs and aiohttp-jinja2: jobs that publish after their request, and pages that a leave stage renders."""

from __future__ import annotations

import asyncio
import time

import pytest

from aiohttp_interceptors.testing import open_stream
from tests.ecosystem.site import MARKS
from tests.loops import event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import run_other_tasks, until, within

pytestmark = MARKS


async def test_a_job_publishes_after_its_request(served, signed_in):
    site = await served()
    client = await signed_in(site)
    async with open_stream(client, "/rooms/kitchen") as stream:
        async with client.post("/rooms/kitchen", data="tea?") as response:
            assert response.status == 202  # the job waits, and the response does not
        site.may_publish.set()
        assert (await stream.next()).data == "tea?"


@pytest.mark.parametrize("jobs_first", [False, True])
async def test_a_job_can_publish_while_the_server_stops_if_jobs_are_set_up_after_the_hub(served, signed_in, jobs_first):
    """aiohttp cleans up in the reverse order of the setup."""
    site = await served(jobs_first=jobs_first)
    client = await signed_in(site)
    async with client.post("/rooms/kitchen", data="last") as response:
        assert response.status == 202
    stopping = asyncio.create_task(site.server.stop())
    await within(site.cleaning_up.wait())
    await run_other_tasks(20)
    site.may_publish.set()
    await within(stopping)
    (outcome,) = site.outcomes
    assert isinstance(outcome, RuntimeError if jobs_first else str)


async def test_an_atomic_handler_below_its_stages_completes_when_its_client_leaves(served, signed_in):
    site = await served()
    client = await signed_in(site)
    request = asyncio.create_task(client.post("/atomic"))
    await until(lambda: site.outcomes == ["begun"])
    request.cancel()
    await until(lambda: site.atomic_request.transport is None)
    site.may_publish.set()
    await until(lambda: site.outcomes == ["begun", "done"])


async def test_a_job_that_does_not_end_delays_a_stop_by_the_time_that_jobs_have(served, signed_in, browser):
    site = await served()
    client = await signed_in(site)
    async with open_stream(client, "/rooms/kitchen") as room, open_stream(browser(site), "/address") as address:
        await address.next()
        async with client.post("/rooms/kitchen", data="never") as response:
            assert response.status == 202
        start = time.monotonic()
        await site.server.stop()
        assert time.monotonic() - start < 0.5 + 1 + 1 + 2  # the drain, the jobs, aborted streams, a busy machine
        assert await room.rest() == await address.rest() == []


@pytest.mark.parametrize("path", ["/", "/login?user=ada"])
async def test_a_page_is_rendered_by_a_handler_and_by_a_leave_stage(served, browser, path):
    client = browser(await served())
    async with client.get(path) as response:
        assert response.content_type == "text/html"
        assert await response.text() == ("<p>a guest at page</p>" if path == "/" else "<p>ada at login</p>")


async def test_streams_end_at_once_when_nothing_else_is_left(served, browser):
    site = await served()
    client = browser(site)
    streams = [open_stream(client, "/address") for _ in range(20)]
    opened = [await stream.__aenter__() for stream in streams]
    for stream in opened:
        await stream.next()
    start = time.monotonic()
    await site.server.stop()
    assert time.monotonic() - start < 2
    for stream in opened:
        assert await stream.rest() == []
    for stream in streams:
        await stream.__aexit__(None, None, None)
    await until(lambda: all(task is asyncio.current_task() or task.done() for task in asyncio.all_tasks()))
