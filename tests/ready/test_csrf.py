"""``csrf``: which requests pass, by Fetch Metadata and by Origin."""

from __future__ import annotations

import pytest

from aiohttp_interceptors.ready import csrf
from tests.ready.site import KINDS, STREAMS

TRUSTED = "https://login.example.com"


async def status_of(site, fetch, method="POST", headers=None, handler=None, **options):
    server = await site(csrf(**options), **({} if handler is None else {"handler": handler}))
    own = {"Origin": server.url} if (headers or {}).get("Origin") == "own" else {}
    return (await fetch(server, method, headers={**(headers or {}), **own}))[0]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_safe_methods_pass(site, fetch, method):
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.com"}
    assert await status_of(site, fetch, method, headers) == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": ""}, 403),
        ({"Sec-Fetch-Site": "new-value"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://other.com"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "own"}, 403),
        ({"Origin": "own"}, 200),
        ({"Origin": "https://other.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": TRUSTED}, 200),
        ({"Origin": TRUSTED, "Sec-Fetch-Site": "same-site"}, 200),
        ({"Origin": f"{TRUSTED}.evil.com"}, 403),
    ],
)
async def test_the_headers_decide(site, fetch, method, headers, status):
    assert await status_of(site, fetch, method, headers, origins=[TRUSTED]) == status


async def test_the_port_is_a_part_of_the_origin(site, fetch):
    assert await status_of(site, fetch, headers={"Origin": "http://127.0.0.1:1"}) == 403


async def test_one_of_several_headers_is_enough_to_refuse(site):
    server = await site(csrf(origins=[TRUSTED]))
    start = "POST / HTTP/1.1\nHost: x\nConnection: close\nContent-Length: 0\n"
    for lines in (
        "Sec-Fetch-Site: same-origin\nSec-Fetch-Site: cross-site\n",
        f"Origin: {TRUSTED}\nOrigin: https://evil.com\n",
        "Origin: http://x\nOrigin: https://evil.com\n",
    ):
        assert (await server.exchange(f"{start}{lines}\n")).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_over_post_is_refused_before_it_opens(site, fetch, kind):
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert await status_of(site, fetch, headers=headers, handler=KINDS[kind]()) == 403


async def test_requests_can_be_exempt(site, fetch):
    server = await site(csrf(exempt=lambda context: context.request.path == "/hook"), path="/{any}")
    headers = {"Origin": "https://other.com"}
    assert (await fetch(server, "POST", "/hook", headers=headers))[0] == 200
    assert (await fetch(server, "POST", "/form", headers=headers))[0] == 403


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"origins": TRUSTED}, TypeError, "origins is a list of origins"),
        ({"origins": ["login.example.com"]}, ValueError, "a scheme and a host in lower case"),
        ({"exempt": "/hook"}, TypeError, "exempt is a function, not '/hook'"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        csrf(**options)
