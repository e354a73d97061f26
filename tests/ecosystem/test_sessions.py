"""Sessions of aiohttp-session around streams: read before, changed before the headers, and never silently after."""

from __future__ import annotations

import aiohttp_session
import pytest

from aiohttp_interceptors import before
from aiohttp_interceptors.testing import open_stream
from tests.ecosystem.site import MARKS, STORAGES
from tests.loops import event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = MARKS


@pytest.mark.parametrize("storage", STORAGES)
async def test_a_session_that_a_stream_changes_before_its_headers_is_saved(served, signed_in, storage):
    client = await signed_in(await served(storage))
    for visit in "123":
        async with open_stream(client, "/visits") as stream:
            assert stream.response.status == 200
            assert stream.response.headers.getall("Set-Cookie")
            assert (await stream.next()).data == visit


async def test_a_session_that_a_stream_changes_after_its_headers_is_logged(served, browser, caplog):
    site = await served()
    client = browser(site)
    async with open_stream(client, "/late") as stream:
        await stream.rest()
    await until(lambda: "the session of /late changed after its headers were sent" in caplog.text)
    (cookie,) = client.cookie_jar
    assert "early" in cookie.value
    assert "late" not in cookie.value


async def test_a_stream_that_only_looks_for_a_session_sets_no_cookie(served, browser):
    site = await served(stages=[look])
    client = browser(site)
    async with open_stream(client, "/address") as stream:
        assert "Set-Cookie" not in stream.response.headers


@before
async def look(context) -> None:
    assert (await aiohttp_session.get_session(context.request)).new


@pytest.mark.parametrize("storage", STORAGES)
async def test_a_session_that_does_not_change_is_read(served, signed_in, storage):
    client = await signed_in(await served(storage))
    async with open_stream(client, "/rooms/kitchen") as stream:
        assert stream.response.status == 200


async def test_a_cookie_that_a_leave_stage_sets_on_a_stream_is_dropped_and_logged(served, browser, logged):
    site = await served()
    client = browser(site)
    async with open_stream(client, "/late-cookie") as stream:
        await stream.rest()
    await until(lambda: [line for line in logged if line["event"] == "change_after_commit_dropped"])
    (line,) = [line for line in logged if line["event"] == "change_after_commit_dropped"]
    assert (line["interceptor"], line["stage"]) == ("polite", "leave")
    assert "set_cookie('late'" in line["attempted"]
    assert [cookie.key for cookie in client.cookie_jar] == []


async def test_a_session_that_a_refused_stream_changed_is_saved(served, browser):
    """The refusal is a plain response, whose session the middleware saves."""
    site = await served(stages=[visit])
    client = browser(site)
    async with open_stream(client, "/conflict") as stream:
        assert stream.response.status == 409
    assert [cookie.key for cookie in client.cookie_jar] == ["AIOHTTP_SESSION"]


@before
async def visit(context) -> None:
    session = await aiohttp_session.get_session(context.request)
    session["visited"] = True
