"""Sessions of aiohttp-session around streams: read before, changed before the headers, and never silently after."""

from __future__ import annotations

import pytest

from aiohttp_interceptors.testing import open_stream
from tests.ecosystem.site import STORAGES, WARNINGS
from tests.waiting import until

pytestmark = WARNINGS


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
