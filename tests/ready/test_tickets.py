"""``Tickets``: what an ``EventSource`` without headers is allowed, how often, and for how long."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from types import SimpleNamespace

import jwt
import pytest
from aiohttp import ClientSession, CookieJar, web
from yarl import URL

from aiohttp_interceptors import (
    BrokerDown,
    Event,
    Hub,
    OutcomeUnknown,
    RequestContext,
    as_handler,
    event_stream,
    setup,
    topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import hub as hub_module
from aiohttp_interceptors.hub import owners, publisher
from aiohttp_interceptors.ready import TICKET, MaskTickets, Tickets
from aiohttp_interceptors.ready import tickets as tickets_module
from aiohttp_interceptors.web.app import STREAMS
from tests.listener import listen
from tests.waiting import TIMEOUT, until, within

SECRET, OTHER = "s" * 32, b"o" * 32


def application(tickets, hub=None, handler=None):
    """Return an application whose paths /events and /other need a ticket."""
    app = web.Application()
    setup(app, *([] if hub is None else [hub]))
    for path in ("/events", "/other", "/files/{name}"):
        app.router.add_route("*", path, as_handler(tickets.redeem, handler or shown))
    return app


async def shown(request: web.Request) -> web.Response:
    context = RequestContext.of(request)
    assert context is not None
    ticket = context[TICKET]
    return web.Response(text=f"{ticket.owner} {','.join(ticket.topics)}")


@pytest.fixture
async def browser():
    """A client that keeps cookies, also those of an IP address."""
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
        yield session


async def get(session, server, ticket, path="/events", method="GET", **options):
    params = {} if ticket is None else {"ticket": ticket}
    async with session.request(method, server.url + path, params=params, **options) as response:
        return response.status, response.headers, await response.text()


async def status(session, server, ticket, path="/events", **options):
    return (await get(session, server, ticket, path, **options))[0]


@pytest.fixture
def tickets():
    return Tickets(SECRET, secure=False)


async def test_a_ticket_lets_its_owner_in_and_says_for_which_topics(serve, session, tickets):
    server = await serve(application(tickets))
    found, _, text = await get(session, server, tickets.issue("user:7", ["orders.7", "news.>"]))
    assert (found, text) == (200, "user:7 orders.7,news.>")


async def test_a_ticket_is_redeemed_once(serve, session, tickets):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")
    assert [await status(session, server, ticket) for _ in range(3)] == [200, 401, 401]


async def test_of_many_requests_at_once_one_redeems_the_ticket(serve, tickets):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")

    async def attempt():
        async with ClientSession() as other:
            return await status(other, server, ticket)

    assert sorted(await asyncio.gather(*[attempt() for _ in range(20)])) == [200] + [401] * 19


async def test_an_event_source_reconnects_to_the_same_url_by_its_cookie(serve, browser, tickets):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7", "a")
    assert [await status(browser, server, ticket) for _ in range(3)] == [200, 200, 200]


async def test_the_cookie_is_for_one_path_and_no_script_reads_it(serve, session):
    tickets = Tickets(SECRET)
    server = await serve(application(tickets))
    _, headers, _ = await get(session, server, tickets.issue("user:7"))
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert attributes[1:] == ["Path=/events", "HttpOnly", "SameSite=Strict", "Secure"]
    assert 3590 <= int(attributes[0].removeprefix("Max-Age=")) <= 3600
    assert cookie.startswith("ticket-")


async def test_a_cookie_is_not_accepted_on_another_path_also_if_it_is_sent_there(serve, session, tickets):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")
    _, headers, _ = await get(session, server, ticket)
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert await status(session, server, ticket, headers={"Cookie": cookie}) == 200
    assert await status(session, server, ticket, "/other", headers={"Cookie": cookie}) == 401


async def test_a_cookie_is_not_accepted_with_the_ticket_of_another_owner_or_of_other_topics(serve, session, tickets):
    server = await serve(application(tickets))
    _, headers, _ = await get(session, server, tickets.issue("user:7", "a"))
    name, _, value = headers["Set-Cookie"].partition(";")[0].partition("=")
    for owner, topics in (("user:8", "a"), ("user:7", "b"), ("user:7", ["a", "b"])):
        other = tickets.issue(owner, topics)
        _, headers, _ = await get(session, server, other)
        its_name = headers["Set-Cookie"].partition("=")[0]
        assert its_name != name
        for each in (name, its_name):
            assert await status(session, server, other, headers={"Cookie": f"{each}={value}"}) == 401


async def test_a_ticket_is_no_cookie_and_a_cookie_is_no_ticket(serve, session, tickets):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")
    _, headers, _ = await get(session, server, ticket)
    name, _, value = headers["Set-Cookie"].partition(";")[0].partition("=")
    assert await status(session, server, value) == 401
    assert await status(session, server, ticket, headers={"Cookie": f"{name}={ticket}"}) == 401


NESTED = f"{base64.urlsafe_b64encode(b'[' * 1500).decode()}.e30.x"  # PyJWT parses the header before the signature


@pytest.mark.parametrize("ticket", [None, "", "x", "a.b.c", "é.é.é", "\0", "x" * 5000, "." * 5000, NESTED])
async def test_without_a_valid_ticket_the_answer_is_401_and_not_cached(serve, session, tickets, ticket):
    server = await serve(application(tickets))
    found, headers, text = await get(session, server, ticket)
    assert (found, headers["Cache-Control"]) == (401, "no-store")
    assert text == "A valid ticket is required, and each is redeemed once.\n"


@pytest.mark.parametrize("query", ["ticket=%FF", "ticket=%ED%A0%80", "ticket=a%00b", "ticket"])
async def test_a_ticket_that_is_not_text_is_not_valid(serve, tickets, query):
    server = await serve(application(tickets))
    response = await server.exchange(f"GET /events?{query} HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert response.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("cookie", ["x", "é", '"', "a" * 5000])
async def test_a_wrong_cookie_is_none(serve, session, tickets, cookie):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")
    _, headers, _ = await get(session, server, ticket)
    name = headers["Set-Cookie"].partition("=")[0]
    assert await status(session, server, ticket, headers={"Cookie": f"{name}={cookie}"}) == 401


@pytest.mark.parametrize("cookie", [b"\xff", b"a\xff.b.c", b"\xed\xa0\x80", b'"a\\303"', b"(a"])
async def test_a_cookie_that_is_not_text_is_none(serve, session, tickets, cookie):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")
    _, headers, _ = await get(session, server, ticket)
    raw = await server.connect(f"GET /events?ticket={ticket} HTTP/1.1\nHost: x\nConnection: close\n")
    raw.writer.write(b"Cookie: " + headers["Set-Cookie"].partition("=")[0].encode() + b"=" + cookie + b"\r\n\r\n")
    assert (await raw.until(b"\r\n")).startswith(b"HTTP/1.1 401 ")
    await raw.close()


async def test_two_tickets_in_one_request_are_refused(serve, tickets):
    server = await serve(application(tickets))
    query = f"ticket={tickets.issue('user:7')}&ticket={tickets.issue('user:8')}"
    response = await server.exchange(f"GET /events?{query} HTTP/1.1\nHost: x\nConnection: close\n\n")
    assert response.startswith(b"HTTP/1.1 400 ")


def forged(**changes):
    claims = {"aud": "aiohttp_interceptors/ticket", "jti": "1", "sub": "user:7", "topics": [], "at": time.time()}
    return {**claims, "exp": time.time() + 20, "until": time.time() + 20, **changes}


async def test_a_ticket_of_another_secret_algorithm_or_use_is_refused(serve, session, tickets):
    server = await serve(application(tickets))
    unsigned = jwt.encode(forged(), None, algorithm="none")
    others = [jwt.encode(forged(), OTHER), unsigned, jwt.encode(forged(), SECRET * 2, algorithm="HS512")]
    others += [jwt.encode(forged(aud=aud), SECRET) for aud in ("users", "aiohttp_interceptors/ticket-cookie")]
    others.append(jwt.encode({"sub": "user:7", "exp": time.time() + 20}, SECRET))  # a token of the application
    assert [await status(session, server, other) for other in others] == [401] * 6
    assert await status(session, server, jwt.encode(forged(), SECRET)) == 200  # the others differ in one thing


async def test_a_ticket_that_was_not_redeemed_in_time_is_refused(serve, session):
    tickets = Tickets(SECRET, lifetime=0.001)
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")
    end = time.time() + 0.002
    await until(lambda: time.time() > end)
    assert await status(session, server, ticket) == 401


async def test_the_cookie_ends_when_the_access_does(serve, browser, tickets):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7", expires_at=time.time() + 1.5)
    _, headers, _ = await get(browser, server, ticket)
    cookie = headers["Set-Cookie"].partition(";")[0]
    answers = []
    async with asyncio.timeout(30):
        while 401 not in answers:
            answers.append(await status(browser, server, ticket, headers={"Cookie": cookie}))
    assert set(answers) == {200, 401}


async def test_the_stream_of_a_ticket_expires_with_it_and_ends_when_its_owner_is_disconnected(serve, tickets):
    hub = Hub()
    app = web.Application()
    setup(app, hub)
    options = {"owner": lambda context: context[TICKET].owner, "expires_at": lambda context: context[TICKET].expires_at}
    stream = topic_stream(hub, lambda context: context[TICKET].topics, heartbeat=None, **options)
    app.router.add_get("/events", as_handler(tickets.redeem, stream))
    server = await serve(app)
    short = tickets.issue("user:7", "a", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.5))
    listener = await listen(server, f"/events?ticket={short}")
    assert (await within(listener.rest())) == []
    await listener.close()
    listener = await listen(server, f"/events?ticket={tickets.issue('user:7', 'a')}")
    await hub.publish("b", "not for it")
    await hub.publish("a", "for it")
    assert await listener.data(1) == ["for it"]
    await hub.disconnect("user:7", Event("bye", "logout"))
    assert [event.name for event in await within(listener.rest())] == ["logout"]
    await listener.close()


async def test_a_logout_revokes_tickets_and_cookies_and_not_those_of_the_next_login(serve, browser):
    hub = Hub()
    tickets = Tickets(SECRET, hub, secure=False)
    server = await serve(application(tickets, hub))
    redeemed, unused, other = tickets.issue("user:7"), tickets.issue("user:7"), tickets.issue("user:8")
    assert await status(browser, server, redeemed) == 200
    await hub.disconnect("user:7")
    assert [await status(browser, server, each) for each in (redeemed, unused, other)] == [401, 401, 200]
    again = tickets.issue("user:7")
    assert [await status(browser, server, again) for _ in range(2)] == [200, 200]


async def test_a_logout_without_a_hub_revokes_too(serve, browser, tickets):
    app = application(tickets)
    server = await serve(app)
    ticket = tickets.issue("user:7")
    assert await status(browser, server, ticket) == 200
    app[STREAMS].disconnect("user:7")
    assert await status(browser, server, ticket) == 401


@pytest.mark.parametrize("make", [lambda: None, Hub], ids=["no hub", "no broker"])
async def test_without_a_broker_a_process_refuses_what_was_issued_before_it_started(serve, browser, make):
    before = Tickets(SECRET, make(), secure=False)
    server = await serve(application(before))
    redeemed, unused = before.issue("user:7"), before.issue("user:7")
    assert await status(browser, server, redeemed) == 200
    after = Tickets(SECRET, make(), secure=False)
    server = await serve(application(after))
    assert [await status(browser, server, ticket) for ticket in (redeemed, unused)] == [401, 401]
    assert await status(browser, server, before.issue("user:7")) == 200, "of another process that still runs"


async def test_head_does_not_redeem(serve, session, tickets):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7")
    assert [await status(session, server, ticket, method=method) for method in ("HEAD", "HEAD", "GET")] == [200] * 3
    assert await status(session, server, "x", method="HEAD") == 401


async def test_a_new_ticket_prolongs_the_access_of_a_page_that_has_a_cookie(serve, browser, tickets):
    server = await serve(application(tickets))
    await get(browser, server, tickets.issue("user:7", expires_at=time.time() + 5))
    _, headers, _ = await get(browser, server, tickets.issue("user:7"))
    assert "Max-Age=35" in headers["Set-Cookie"]


async def test_the_access_ends_after_max_age_at_the_latest(serve, session):
    tickets = Tickets(SECRET, max_age=60)
    server = await serve(application(tickets))
    for expires_at in (None, time.time() + 3600):
        _, headers, _ = await get(session, server, tickets.issue("user:7", expires_at=expires_at))
        assert headers["Set-Cookie"].split("; ")[1] in ("Max-Age=59", "Max-Age=60")


async def test_a_cookie_of_many_pages_is_one(serve, browser, tickets):
    server = await serve(application(tickets))
    first = tickets.issue("user:7")
    for ticket in [first] + [tickets.issue("user:7") for _ in range(20)]:
        assert await status(browser, server, ticket) == 200
    assert len(browser.cookie_jar) == 1
    assert await status(browser, server, first) == 200  # the first page reconnects by the cookie of the last one


async def test_pages_with_many_different_topics_do_not_fill_the_request_head(serve, browser, tickets):
    server = await serve(application(tickets))
    issued = [tickets.issue("user:7", [f"rooms.{number}.{'x' * 200}" for number in range(4)]) for number in range(40)]
    for number in range(40):
        ticket = tickets.issue("user:7", [f"rooms.{number}", "x" * 255, "y" * 255, "z" * 255])
        issued[number] = ticket
        assert [await status(browser, server, ticket) for _ in range(2)] == [200, 200], number
    assert len(browser.cookie_jar) == 10
    assert [await status(browser, server, ticket) for ticket in issued] == [401] * 30 + [200] * 10


async def test_the_cookies_of_another_path_and_of_the_application_are_not_deleted(serve, browser, tickets):
    server = await serve(application(tickets))
    other = tickets.issue("user:7")
    assert await status(browser, server, other, "/other") == 200
    browser.cookie_jar.update_cookies({"session": "1", "ticket-0": "1"}, URL(server.url))
    for number in range(15):
        assert await status(browser, server, tickets.issue("user:7", f"rooms.{number}")) == 200
    assert await status(browser, server, other, "/other") == 200
    assert {"session", "ticket-0"} < {cookie.key for cookie in browser.cookie_jar}


@pytest.mark.parametrize("path", ["/files/" + "é" * 300, "/files/" + "a" * 3000])
async def test_a_page_with_a_long_path_and_many_topics_reconnects(serve, browser, tickets, path):
    server = await serve(application(tickets))
    ticket = tickets.issue("user:7", [letter * 255 for letter in "abcd"])
    found, headers, _ = await get(browser, server, ticket, path)
    value = headers["Set-Cookie"].partition(";")[0]
    assert (found, len(value) < 500) == (200, True), "browsers drop a cookie of more than 4096 bytes"
    assert await status(browser, server, ticket, path, headers={"Cookie": value}) == 200


async def test_paths_that_share_the_path_of_a_cookie_have_their_own_cookies(serve, browser, tickets):
    server = await serve(application(tickets))
    first, second, third = [tickets.issue("user:7") for _ in range(3)]
    _, headers, _ = await get(browser, server, first, "/files/a;b")
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert await status(browser, server, first, "/files/a;c", headers={"Cookie": cookie}) == 401
    assert await status(browser, server, second, "/files/a;c") == 200
    assert await status(browser, server, third, "/files/a;c") == 200
    assert await status(browser, server, first, "/files/a;b") == 200


async def test_secrets_are_replaced_one_after_the_other(serve, browser):
    old, new = Tickets(SECRET, secure=False), Tickets([OTHER, SECRET], secure=False)
    server = await serve(application(new))
    assert await status(browser, server, old.issue("user:7")) == 200
    assert await status(browser, server, new.issue("user:7")) == 200
    assert await status(browser, await serve(application(old)), new.issue("user:7")) == 401


@pytest.mark.parametrize("path", ["/files/a;b", "/files/a%22b", "/files/%C3%A9", "/files/a,b"])
async def test_any_path_gives_a_cookie_for_it_and_no_other_attribute(serve, tickets, path):
    server = await serve(application(tickets))
    request = f"GET {path}?ticket={tickets.issue('user:7')} HTTP/1.1\nHost: x\nConnection: close\n\n"
    response = await server.exchange(request)
    head = response.partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("HTTP/1.1 200 ")
    cookie = next(line for line in head.splitlines() if line.startswith("Set-Cookie"))
    assert cookie.split("; ")[2].removeprefix("Path=") in (path, "/files")
    assert cookie.count(";") == 4


# A Hub whose nodes share a broker.


@pytest.fixture
def nodes():
    log = MemoryLog()
    return lambda: Hub(MemoryBroker(log))


async def test_a_ticket_is_redeemed_once_over_all_nodes(serve, nodes):
    servers, issuer = [], None
    for _ in range(3):
        hub = nodes()
        issuer = Tickets(SECRET, hub, secure=False)
        servers.append(await serve(application(issuer, hub)))
    for _ in range(10):
        ticket = issuer.issue("user:7")

        async def attempt(server, ticket=ticket):
            async with ClientSession() as other:
                return await status(other, server, ticket)

        assert sorted(await asyncio.gather(*map(attempt, servers * 2))) == [200] + [401] * 5


async def test_a_node_that_starts_later_knows_what_was_redeemed_and_revoked(serve, nodes, browser, session):
    hub = nodes()
    tickets = Tickets(SECRET, hub, secure=False)
    server = await serve(application(tickets, hub))
    kept, revoked = tickets.issue("user:7"), tickets.issue("user:8")
    for ticket in (kept, revoked):
        assert await status(browser, server, ticket) == 200
    await hub.disconnect("user:8")
    later = nodes()
    other = await serve(application(Tickets(SECRET, later, secure=False), later))
    assert await status(session, other, kept) == 401  # without the cookie
    assert [await status(browser, other, ticket) for ticket in (kept, revoked)] == [200, 401]


class Away(MemoryBroker):
    """A broker that does not answer while ``is_away``."""

    is_away = False

    async def publish(self, *arguments, **options):
        if self.is_away:
            raise BrokerDown("away")
        return await super().publish(*arguments, **options)


async def test_while_the_broker_is_away_a_ticket_is_refused_and_stays_valid_and_a_cookie_is_accepted(serve, browser):
    broker = Away(MemoryLog())
    hub = Hub(broker)
    tickets = Tickets(SECRET, hub, secure=False)
    server = await serve(application(tickets, hub))
    first, second = tickets.issue("user:7"), tickets.issue("user:8")
    assert await status(browser, server, first) == 200
    broker.is_away = True
    assert await status(browser, server, first) == 200
    found, headers, _ = await get(browser, server, second)
    assert (found, headers["Retry-After"]) == (503, "1")
    assert await status(browser, server, tickets.issue("user:7")) == 200  # by the cookie of the first one
    broker.is_away = False
    assert await status(browser, server, second) == 200


class Unknown(MemoryBroker):
    """A broker that stores and does not answer while ``is_silent``."""

    is_silent = True

    async def publish(self, *arguments, **options):
        position = await super().publish(*arguments, **options)
        if self.is_silent:
            raise OutcomeUnknown("no answer")
        return position


async def test_a_ticket_stays_valid_if_the_broker_has_stored_its_redemption_and_did_not_say_so(serve, session):
    log = MemoryLog()
    broker = Unknown(log)
    hub, other = Hub(broker), Hub(MemoryBroker(log))
    tickets = Tickets(SECRET, hub, secure=False)
    server = await serve(application(tickets, hub))
    its_server = await serve(application(Tickets(SECRET, other, secure=False), other))
    ticket = tickets.issue("user:7")
    assert [await status(session, server, ticket) for _ in range(2)] == [503, 503]
    assert await status(session, its_server, ticket) == 401, "another node cannot know that the first has refused it"
    broker.is_silent = False
    assert [await status(session, server, ticket) for _ in range(2)] == [200, 401]


class Silent(MemoryBroker):
    """A broker that stores at once, and answers only once it is released."""

    def __init__(self, log):
        super().__init__(log)
        self.released = asyncio.Event()
        self.publishing = 0

    async def publish(self, *arguments, **options):
        position = await super().publish(*arguments, **options)
        self.publishing += 1
        await self.released.wait()
        return position


async def test_a_ticket_stays_valid_if_its_request_is_cancelled_while_it_is_redeemed(serve, session):
    broker = Silent(MemoryLog())
    hub = Hub(broker)
    tickets = Tickets(SECRET, hub, secure=False)
    cancelled = []

    @web.middleware
    async def watch(request, handler):
        try:
            return await handler(request)
        except asyncio.CancelledError:
            cancelled.append(request)
            raise

    app = application(tickets, hub)
    app.middlewares.append(watch)
    server = await serve(app, handler_cancellation=True)
    ticket = tickets.issue("user:7")
    raw = await server.connect(f"GET /events?ticket={ticket} HTTP/1.1\nHost: x\n\n")
    await until(lambda: broker.publishing == 1)
    raw.reset()
    await until(lambda: cancelled)
    broker.released.set()
    assert [await status(session, server, ticket) for _ in range(2)] == [200, 401]


class Held(MemoryBroker):
    """A broker that answers, and lets itself be read, only once it is released."""

    def __init__(self, log):
        super().__init__(log)
        self.released = asyncio.Event()
        self.publishing = 0

    async def publish(self, *arguments, **options):
        self.publishing += 1
        await self.released.wait()
        return await super().publish(*arguments, **options)


class Unread(Held):
    async def tail(self, after):
        await self.released.wait()
        async for item in super().tail(after):
            yield item


async def test_an_owner_who_is_disconnected_while_the_ticket_is_redeemed_is_refused(serve, browser):
    broker = Held(MemoryLog())
    hub = Hub(broker)
    tickets = Tickets(SECRET, hub, secure=False)
    server = await serve(application(tickets, hub))
    answer = asyncio.create_task(status(browser, server, tickets.issue("user:7")))
    await until(lambda: broker.publishing == 1)
    disconnect = asyncio.create_task(hub.disconnect("user:7"))
    await until(lambda: broker.publishing == 2)
    broker.released.set()
    assert await within(answer) == 401
    await disconnect


async def test_a_node_that_has_not_read_the_log_yet_waits_before_it_accepts_a_cookie(serve, browser, monkeypatch):
    log = MemoryLog()
    hub = Hub(MemoryBroker(log))
    tickets = Tickets(SECRET, hub, secure=False)
    server = await serve(application(tickets, hub))
    ticket = tickets.issue("user:7")
    assert await status(browser, server, ticket) == 200
    await hub.disconnect("user:7")
    broker = Unread(log)
    starting = Hub(broker)
    other = await serve(application(Tickets(SECRET, starting, secure=False), starting))
    monkeypatch.setattr(publisher, "RECEIVE_TIMEOUT", 0.01)
    assert await status(browser, other, ticket) == 503
    monkeypatch.undo()
    answer = asyncio.create_task(status(browser, other, ticket))
    broker.released.set()
    assert await within(answer) == 401


class Late(MemoryBroker):
    """A broker whose entries are received late, as in a process that is busy, with the age that they had."""

    def __init__(self, log):
        super().__init__(log)
        self.released = asyncio.Event()
        self.held = 0

    async def tail(self, after):
        async for item in super().tail(after):
            if not self.released.is_set() and isinstance(item, Sequence):
                self.held += 1
                await self.released.wait()
            yield item


async def test_a_login_after_a_logout_counts_also_on_a_node_that_receives_the_logout_later(serve, session):
    log = MemoryLog()
    late = Late(log)
    here, there = Hub(MemoryBroker(log)), Hub(late)
    tickets = Tickets(SECRET, here, secure=False)
    server = await serve(application(Tickets(SECRET, there, secure=False), there))
    await serve(application(tickets, here))
    before = tickets.issue("user:7")
    await here.disconnect("user:7")
    after = tickets.issue("user:7")
    await until(lambda: late.held)
    late.released.set()
    assert [await status(session, server, ticket) for ticket in (before, after)] == [401, 200]


async def test_a_logout_stays_one_when_the_clock_is_set_back(serve, browser, monkeypatch):
    hub = Hub()
    tickets = Tickets(SECRET, hub, secure=False)
    server = await serve(application(tickets, hub))
    ticket = tickets.issue("user:7")
    assert await status(browser, server, ticket) == 200
    await hub.disconnect("user:7")
    now = time.time
    monkeypatch.setattr(owners, "time", SimpleNamespace(time=lambda: now() - 3600, monotonic=time.monotonic))
    assert await status(browser, server, ticket) == 401


async def test_a_login_after_a_logout_counts_also_on_a_node_whose_clock_is_behind(serve, session, nodes, monkeypatch):
    ahead, behind = nodes(), nodes()
    tickets = Tickets(SECRET, behind, secure=False)
    server = await serve(application(tickets, behind))
    await until(lambda: behind.ready)
    before = tickets.issue("user:7")
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(hub_module, "time", SimpleNamespace(time=lambda: now() + 5))
        await ahead.disconnect("user:7")
    async with asyncio.timeout(TIMEOUT):
        while await status(session, server, before, method="HEAD") != 401:
            pass
    after = [tickets.issue("user:7") for _ in range(2)]
    assert [await status(session, server, ticket) for ticket in (before, *after)] == [401, 200, 200]
    await ahead.close()


async def test_tickets_are_valid_after_the_clock_was_set_back(serve, session, monkeypatch, tickets):
    server = await serve(application(tickets))
    now = time.time
    monkeypatch.setattr(tickets_module, "time", SimpleNamespace(time=lambda: now() - 5))
    assert await status(session, server, tickets.issue("user:7")) == 200


async def test_disconnects_are_remembered_as_long_as_cookies_are_valid(serve, session, monkeypatch):
    monkeypatch.setattr(owners, "OPENING_TIMEOUT", 0.0)
    hub = Hub()
    tickets = Tickets(SECRET, hub)
    server = await serve(application(tickets, hub))
    ticket = tickets.issue("user:7")
    await hub.disconnect("user:7")
    await hub.disconnect("user:8")
    assert await status(session, server, ticket) == 401


# The access log.


async def test_the_access_log_of_aiohttp_shows_neither_ticket_nor_cookie(serve, browser, caplog, tickets):
    caplog.set_level(logging.INFO, "aiohttp.access")
    server = await serve(application(tickets), access_log_format='%r "%{Cookie}i" "%{Set-Cookie}o" %s')
    for _ in range(2):
        assert await status(browser, server, tickets.issue("user:7")) == 200
    await until(lambda: len([record for record in caplog.records if record.name == "aiohttp.access"]) == 2)
    for record in caplog.records:
        assert "eyJ" not in str(vars(record)), "the start of every JWT"
        assert "GET /events?ticket=*** HTTP/1.1" in record.getMessage()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("GET /e?ticket=a.b-c HTTP/1.1", "GET /e?ticket=*** HTTP/1.1"),
        ("/e?x=1&ticket=a&y=2", "/e?x=1&ticket=***&y=2"),
        ("/login?next=%2Fe%3Fticket%3Da.b", "/login?next=%2Fe%3Fticket%3D***"),
        ("Cookie: a=b; ticket-0123456789abcdef=x.y; c=d", "Cookie: a=b; ticket-0123456789abcdef=***; c=d"),
        ("/e?movie-ticket=7&tickets=3", "/e?movie-ticket=7&tickets=3"),
        ("GET /e?%74icket=eyJh.eyJ-_.x-_ HTTP/1.1", "GET /e?%74icket=*** HTTP/1.1"),
        ("<MultiDictProxy('ticket': 'eyJh.eyJ.x')>", "<MultiDictProxy('ticket': '***')>"),
    ],
)
def test_tickets_are_masked_wherever_a_line_has_them(text, masked):
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "extra": {"url": [text]}})
    assert MaskTickets().filter(record)
    assert (record.getMessage(), vars(record)["extra"]) == (masked, {"url": [masked]})


def variables_of(error):
    """Return the local variables of the library in the tracebacks of an exception and its causes."""
    found = []
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals["__name__"].startswith("aiohttp_interceptors."):
                found += [repr(value) for value in frame.f_locals.values()]
        error = error.__cause__ or error.__context__
    return found


async def test_an_error_tracker_that_records_local_variables_gets_no_ticket_that_stays_valid(serve, session):
    broker = Away(MemoryLog())
    broker.is_away = True
    hub = Hub(broker)
    tickets = Tickets(SECRET, hub)
    found = []

    @web.middleware
    async def tracker(request, handler):
        try:
            return await handler(request)
        except web.HTTPException as error:
            found.extend(variables_of(error))
            raise

    app = application(tickets, hub)
    app.middlewares.append(tracker)
    server = await serve(app)
    ticket = tickets.issue("user:7")
    assert await status(session, server, ticket) == 503
    assert any("user:7" in each for each in found)
    assert not any(ticket in each for each in found)


@pytest.mark.parametrize("name", ["aiohttp.access", "gunicorn.access"])
def test_the_access_logs_of_aiohttp_and_of_gunicorn_are_masked(caplog, name):
    Tickets(SECRET, parameter="t")
    caplog.set_level(logging.INFO, name)
    logging.getLogger(name).info("GET /e?t=%s HTTP/1.1", "a.b.c")
    assert caplog.messages == ["GET /e?t=*** HTTP/1.1"]


def test_a_log_line_that_cannot_be_formatted_stays_as_it_is():
    record = logging.makeLogRecord({"msg": "%d", "args": ("x",)})
    assert MaskTickets().filter(record)
    assert record.args == ("x",)


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((b"short",), {}),
        (([],), {}),
        ((SECRET,), {"lifetime": 61}),
        ((SECRET,), {"lifetime": 0}),
        ((SECRET,), {"max_age": -1}),
        ((SECRET,), {"parameter": "a b"}),
    ],
)
def test_wrong_arguments_are_refused(arguments, options):
    with pytest.raises(ValueError, match=r"bytes or more|no secret|seconds|token"):
        Tickets(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options"), [((7,), {}), (([7],), {}), ((SECRET, "hub"), {}), ((SECRET,), {"secure": 1})]
)
def test_arguments_of_wrong_types_are_refused(arguments, options):
    with pytest.raises(TypeError):
        Tickets(*arguments, **options)


def test_a_refused_secret_is_not_shown():
    for secret in ("hunter2", ["hunter2"], {"hunter2": 1}):
        with pytest.raises((TypeError, ValueError)) as refused:
            Tickets(secret)
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("",), {}),
        (("user:7", "a..b"), {}),
        (("user:7",), {"expires_at": 1.0}),
        (
            ("user:7",),
            {"expires_at": dt.datetime(2999, 1, 1)},  # noqa: DTZ001  # without a time zone
        ),
        (("user:7", [f"a.{number}" for number in range(500)]), {}),
    ],
)
def test_a_wrong_ticket_is_not_issued(tickets, arguments, options):
    with pytest.raises(ValueError, match=r"owner|topic|expires_at|time zone|wildcards"):
        tickets.issue(*arguments, **options)


def test_without_pyjwt_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ImportError, match=r"aiohttp-interceptors\[jwt\]"):
        Tickets(SECRET)


async def test_a_stream_of_a_generator_reads_the_ticket(serve, tickets):
    @event_stream(heartbeat=None)
    async def events(context):
        yield context[TICKET].owner

    app = web.Application()
    setup(app)
    app.router.add_get("/events", as_handler(tickets.redeem, events))
    server = await serve(app)
    listener = await listen(server, f"/events?ticket={tickets.issue('user:7')}")
    assert b"Set-Cookie: ticket-" in listener.head
    assert await listener.data(1) == ["user:7"]
    await listener.close()
