"""Connections that are slow, never end, end in the middle, or are very many: everything returns to what it was."""

from __future__ import annotations

import asyncio
import itertools
import os
import random

import pytest

from aiohttp_interceptors import Event
from aiohttp_interceptors.web.app import STREAMS
from tests.hostile.client import ENDS, send
from tests.hostile.requests import growth
from tests.hostile.site import BODY_ROUTES, STREAM_ROUTES
from tests.waiting import TIMEOUT, until, within

OPENS = int(os.environ.get("FUZZ_EXAMPLES") or 600)
NEXT = b"GET /media HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["production", "handler_cancellation"])
def handler_cancellation(request) -> bool:
    return request.param


@pytest.fixture
def leaves_nothing(runner, site):
    """Compare what the process holds before and after a test, and look at what was logged."""
    site.lines.clear()
    runner.run(send(site, [NEXT]))
    before = runner.run(site.holdings())
    yield
    assert runner.run(send(site, [NEXT])).status == 200
    assert growth(before, runner.run(site.holdings())) == {}
    assert site.errors() == []


pytestmark = pytest.mark.usefixtures("leaves_nothing")


def one_by_one(text: bytes) -> list[bytes]:
    return [bytes([octet]) for octet in text]


READERS = (*BODY_ROUTES, "/fixed", "/generated", "/answer")
"""The routes that read a body."""


def test_a_head_that_arrives_byte_by_byte_opens_a_stream(runner, site):
    async def arrive() -> None:
        for path, end in itertools.product(["/fixed", "/remote", "/generated", "/answer", "/topic/a"], ENDS):
            request = b"GET %b HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n" % path.encode()
            assert (await send(site, one_by_one(request), end)).status == 200

    runner.run(arrive())


@pytest.mark.parametrize("framing", [b"Content-Length: 20", b"Transfer-Encoding: chunked"])
def test_a_body_that_does_not_arrive_is_a_408_or_malformed(runner, site, framing):
    async def wait(path: str, sent: bytes) -> None:
        request = b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n\r\n%b" % (path.encode(), JSON, framing, sent)
        malformed = framing.startswith(b"Transfer") and sent == b"{"
        assert (await send(site, [request])).status == (400 if malformed else 408)

    async def wait_for_all() -> None:
        await asyncio.gather(
            *[wait(*each) for each in itertools.product(READERS, [b"", b"{", b"5\r\n{", b"1\r\n{\r\n"])]
        )

    runner.run(wait_for_all())


def test_a_client_that_leaves_within_its_body_leaves_nothing(runner, site):
    async def leave(path: str, end: str) -> None:
        _, writer = await site.connect()
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: 9\r\n\r\n{" % (path.encode(), JSON))
        await writer.drain()
        await until(lambda: site.in_flight > 0)
        if end == "reset":
            writer.transport.abort()
        writer.close()
        await until(lambda: site.in_flight == 0)

    for path, end in itertools.product(READERS, ["close", "reset"]):
        runner.run(within(leave(path, end)))


def test_a_head_that_never_ends_holds_a_connection_and_nothing_else(runner, site):
    """aiohttp has no limit for the time that a head takes. A proxy in front has one."""
    request = b"GET /fixed HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 0123456789-1\r\n"

    async def hold() -> None:
        connections = [await site.connect() for _ in range(80)]
        for number, (_, writer) in enumerate(connections):
            writer.write(request[: number % 60])
            await writer.drain()
        assert (await send(site, [NEXT])).status == 200
        assert len(site.app[STREAMS]) == 0
        for number, (_, writer) in enumerate(connections):
            if number % 2:
                writer.transport.abort()
            writer.close()

    runner.run(within(hold()))


def test_requests_that_are_pipelined_behind_a_stream_are_not_kept(runner, site):
    """More than 64 KiB of them are discarded."""
    for path in STREAM_ROUTES:
        target = path.replace("{name}", "a").encode()
        request = b"GET %b HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (target, b"x" * 1000)
        for count in 2, 50, 500:
            runner.run(send(site, [request] * count, "reset"))


def test_requests_that_are_pipelined_are_answered_in_their_order(runner, site):
    requests = [b"GET /media HTTP/1.1\r\nHost: x\r\nX-Request-ID: %d\r\n\r\n" % number for number in range(100)]
    reply = runner.run(send(site, [b"".join(requests), NEXT], body=True))
    assert [b"X-Request-ID: %d\r\n" % number in reply.head + reply.body for number in range(100)] == [True] * 100


@pytest.mark.parametrize("path", ["/remote", "/fixed"])
def test_a_client_that_never_reads_is_disconnected(runner, site, path):
    hub = site.remote if path == "/remote" else site.hub

    async def ignore() -> None:
        _, writer = await site.connect()
        writer.transport.pause_reading()
        writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        await until(lambda: len(site.app[STREAMS]) == 1)
        event = Event("x" * 100_000)
        while len(site.app[STREAMS]):
            await hub.publish("news", event, ephemeral=True)
            await asyncio.sleep(0.001)
        writer.transport.abort()

    runner.run(within(ignore()))


def test_opening_and_closing_by_one_client_under_limits_takes_nothing(runner, site):
    """Streams are opened together, above the limit of their key, and end in every way."""
    choose = random.Random(1)  # the same in each run
    statuses = set()

    async def visit(number: int) -> None:
        path = choose.choice([path.replace("{name}", "a.b") for path in STREAM_ROUTES])
        head = b"GET %b HTTP/1.1\r\nHost: x\r\nUser: %d\r\n" % (path.encode(), choose.randrange(8))
        reader, writer = await site.connect()
        try:
            async with asyncio.timeout(TIMEOUT):
                writer.write(head + b"Last-Event-ID: 0123456789-%d\r\n\r\n" % choose.randrange(10**6))
                if choose.random() < 0.8:
                    statuses.add(int((await reader.readuntil(b"\r\n\r\n")).split()[1]))
                end = choose.random()
                if end < 0.4:
                    writer.transport.abort()
                elif end < 0.7:
                    writer.write_eof()
                    while await reader.read(65536):
                        pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def attack() -> None:
        for start in range(0, OPENS, 60):
            await asyncio.gather(*[visit(number) for number in range(start, start + 60)])

    runner.run(attack())
    assert statuses <= {200, 204, 429, 503}
    assert statuses & {429, 503}
