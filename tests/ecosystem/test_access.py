"""Who may read a stream, and from where: aiohttp-security, aiohttp-cors and aiohttp-remotes around streams."""

from __future__ import annotations

import asyncio

import pytest

from aiohttp_interceptors import CloseReason, StreamClosed, StreamRefused
from aiohttp_interceptors.testing import open_stream
from tests.ecosystem.site import HEARTBEAT, MARKS, ORIGIN
from tests.loops import event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = MARKS
PAGE = {"Origin": ORIGIN}


async def test_a_stream_needs_a_user_and_a_topic_stream_a_permission(served, browser, signed_in):
    site = await served()
    for client, path, status in [
        (browser(site), "/visits", 401),
        (browser(site), "/rooms/kitchen", 401),
        (await signed_in(site, "grace"), "/rooms/kitchen", 403),
        (await signed_in(site, "grace"), "/visits", 200),
        (await signed_in(site, "ada"), "/rooms/kitchen", 200),
    ]:
        async with open_stream(client, path) as stream:
            assert stream.response.status == status
            is_stream = stream.response.content_type == "text/event-stream"
            assert is_stream == (status == 200)


async def test_a_refused_stream_takes_no_slot_and_starts_nothing(served, browser, signed_in):
    site = await served(max_streams=1)
    for _ in range(3):
        async with open_stream(browser(site), "/rooms/kitchen") as stream:
            assert stream.response.status == 401
    assert site.facts == []
    async with open_stream(await signed_in(site), "/rooms/kitchen") as stream:
        assert stream.response.status == 200


@pytest.mark.parametrize(
    ("path", "user", "status"),
    [
        ("/", None, 200),
        ("/address", None, 200),
        ("/rooms/kitchen", "ada", 200),
        ("/rooms/kitchen", "grace", 403),
        ("/rooms/kitchen", None, 401),
        ("/conflict", None, 409),
    ],
)
async def test_a_page_of_another_origin_can_read_streams_and_refusals(served, browser, signed_in, path, user, status):
    site = await served()
    client = browser(site) if user is None else await signed_in(site, user)
    async with open_stream(client, path, headers=PAGE) as stream:
        assert stream.response.status == status
        assert stream.response.headers.getall("Access-Control-Allow-Origin") == [ORIGIN]
        assert stream.response.headers["Access-Control-Allow-Credentials"] == "true"
    async with open_stream(client, path, headers={"Origin": "https://other.example"}) as stream:
        assert "Access-Control-Allow-Origin" not in stream.response.headers


async def test_a_page_of_another_origin_can_read_the_refusal_of_a_limit(served, browser):
    site = await served(max_streams=1)
    client = browser(site)
    async with open_stream(client, "/address") as first:
        await first.next()
        async with open_stream(client, "/address", headers=PAGE) as second:
            assert second.response.status == 503
            assert second.response.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert "Retry-After" in second.response.headers["Access-Control-Expose-Headers"]


async def test_a_preflight_request_of_a_stream_is_answered(served, browser):
    client = browser(await served())
    headers = {**PAGE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id"}
    async with client.options("/rooms/kitchen", headers=headers) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "LAST-EVENT-ID" in response.headers["Access-Control-Allow-Headers"]


async def test_a_stream_ends_with_the_login_before_a_heartbeat_and_the_client_that_comes_back_gets_401(
    served, signed_in
):
    site = await served()
    ada, other = await signed_in(site), await signed_in(site)
    async with open_stream(ada, "/rooms/kitchen") as first, open_stream(other, "/rooms/hall") as second:
        start = asyncio.get_running_loop().time()
        async with ada.post("/logout") as response:
            assert response.status == 200
        for stream in (first, second):
            assert [(event.name, event.data) for event in await stream.rest()] == [("logout", "signed out")]
        assert asyncio.get_running_loop().time() - start < HEARTBEAT
    assert [fact.reason for fact in site.facts if isinstance(fact, StreamClosed)] == [CloseReason.KICKED] * 2
    async with open_stream(ada, "/rooms/kitchen") as again:
        assert again.response.status == 401


# Proxies.


async def test_a_stream_sees_the_address_the_scheme_and_the_host_of_the_client(served, browser):
    client = browser(await served())
    headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example"}
    async with open_stream(client, "/address", headers=headers) as stream:
        assert (await stream.next()).data == "192.0.2.7 https chat.example"


async def test_the_key_of_the_limits_is_the_address_of_the_client(served, browser):
    site = await served(max_streams_per_key=1, key=lambda request: request.remote)
    client = browser(site)
    first, second = {"X-Forwarded-For": "192.0.2.7"}, {"X-Forwarded-For": "192.0.2.8"}
    async with open_stream(client, "/address", headers=first) as one:
        await one.next()
        async with open_stream(client, "/address", headers=first) as refused:
            assert refused.response.status == 429
        async with open_stream(client, "/address", headers=second) as other:
            assert other.response.status == 200
    await until(lambda: sum(isinstance(fact, StreamClosed) for fact in site.facts) == 2)
    assert [fact.limit for fact in site.facts if isinstance(fact, StreamRefused)] == ["max_streams_per_key"]
    async with open_stream(client, "/address", headers=first) as again:
        assert again.response.status == 200
