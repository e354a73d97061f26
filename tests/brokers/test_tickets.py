"""Tickets and event IDs over each engine: one redemption over all nodes, and no records of another owner's topics."""

from __future__ import annotations

import asyncio
import json
from itertools import count

import pytest
from aiohttp import ClientSession, CookieJar, web

from aiohttp_interceptors import Hub, as_handler, setup, topic_stream
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.ready import TICKET, Tickets
from tests.brokers.run_process import broker
from tests.listener import listen
from tests.waiting import until, within

SECRET = "a secret of the tests, which is long enough"
ENGINES = ["memory", "sqlite", "redis", "postgres", "nats"]
pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def node(request, serve, engine):
    """Start a node: an application whose streams need a ticket, with a broker of its own."""
    log = MemoryLog()
    address = None if engine == "memory" else request.getfixturevalue("address")

    async def start():
        hub = Hub(MemoryBroker(log) if engine == "memory" else broker(engine, address))
        tickets = Tickets(SECRET, hub, secure=False)
        app = web.Application()
        setup(app, hub)
        stream = topic_stream(
            hub,
            lambda context: context[TICKET].topics,
            owner=lambda context: context[TICKET].owner,
            expires_at=lambda context: context[TICKET].expires_at,
            heartbeat=None,
        )
        app.router.add_get("/events", as_handler(tickets.redeem, stream))
        server = await serve(app)
        await until(lambda: hub.ready)
        return hub, tickets, server

    return start


async def opened(server, ticket, session=None, after=None):
    """Open a stream, and return the status and the first bytes of the body."""
    headers = {} if after is None else {"Last-Event-ID": after}
    async with ClientSession() as own:
        url = f"{server.url}/events?ticket={ticket}"
        async with (session or own).get(url, headers=headers) as response:
            return response.status


async def test_a_ticket_is_redeemed_once_over_all_nodes_at_the_same_moment_and_later(node):
    nodes = [await node() for _ in range(2)]
    servers = [server for _, _, server in nodes]
    for _ in range(5):
        ticket = nodes[0][1].issue("user:7", "a")
        answers = await within(asyncio.gather(*[opened(server, ticket) for server in servers * 3]))
        assert sorted(answers) == [200] + [401] * 5
    *_, later = await node()  # has read the log, and not seen the redemption
    assert await opened(later, ticket) == 401


async def test_a_logout_on_one_node_refuses_the_cookie_on_the_others(node):
    (hub, tickets, server), (_, _, other) = await node(), await node()
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
        ticket = tickets.issue("user:7", "a")
        assert await opened(server, ticket, browser) == 200
        assert await opened(other, ticket, browser) == 200, "one host, so that the cookie is sent to both"
        await hub.disconnect("user:7")

        async def refused():
            return await opened(other, ticket, browser) == 401

        async with asyncio.timeout(1):
            while not await refused():
                pass
        *_, later = await node()
        assert await opened(later, ticket, browser) == 401


async def test_an_id_of_the_topics_of_another_owner_replays_nothing_of_theirs(node):
    (hub, tickets, server), (_, _, other) = await node(), await node()
    ids = {}
    for number in range(6):
        for owner in ("alice", "bob"):
            secret = f"{owner}'s {number}"
            ids[secret] = await hub.publish(f"users.{owner}", json.dumps(secret), key=secret)
    markers = count()
    for event_id in ids.values():
        for each in (server, other):
            for start in (event_id, event_id.upper(), f"{event_id}-partial"):
                ticket = tickets.issue("user:bob", "users.bob")
                listener = await listen(each, f"/events?ticket={ticket}", after=start)
                marker = f"marker {next(markers)}"
                await hub.publish("users.bob", marker)
                while marker not in (await listener.event()).data:
                    pass
                assert b"alice" not in listener.body
                await listener.close()


async def test_a_stream_that_resumes_gets_its_own_missed_records_and_none_of_another_owner(node):
    (hub, tickets, server), (_, _, other) = await node(), await node()
    start = await hub.publish("users.alice", "hers 0")
    await hub.publish("users.bob", "his 0")
    await hub.publish("users.alice", "hers 1")
    await hub.publish("users.bob", "his 1")
    for each in (server, other):
        listener = await listen(each, f"/events?ticket={tickets.issue('user:bob', 'users.bob')}", after=start)
        assert await listener.data(2) == ["his 0", "his 1"]
        assert b"hers" not in listener.body
        await listener.close()
