from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from aiohttp import web
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aiohttp_interceptors import CloseReason, Event, EventTooLarge, as_handler, before, setup, start_event_stream
from aiohttp_interceptors.testing import open_stream
from aiohttp_interceptors.web.app import STREAMS
from aiohttp_interceptors.web.lifecycle import StreamLifecycle
from aiohttp_interceptors.web.limits import LimitReached, Limits, acquire_slot
from aiohttp_interceptors.web.timers import TimerQueue
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = BOTH_LOOPS


class Barrier(asyncio.Event):
    """Set when a number of clients have arrived."""

    def __init__(self, expected):
        super().__init__()
        self._missing = expected
        if not expected:
            self.set()

    def arrive(self):
        self._missing -= 1
        if self._missing == 0:
            self.set()


async def waits(channel, context):
    await channel.put("x")
    await channel.wait_closed()


def app_of(*interceptors, ready=waits, limits=None, **options):
    app = web.Application()
    setup(app, **(limits or {}))
    app.router.add_route("*", "/", as_handler(*interceptors, start_event_stream(ready, heartbeat=None, **options)))
    return app


def in_use(app) -> int:
    return app[STREAMS]._limits.in_use


def by_user(request):
    return request.headers["User"]


def get(user="alice", method="GET"):
    return f"{method} / HTTP/1.1\nHost: x\nUser: {user}\n\n"


class TestMaxStreams:
    async def test_an_async_key_function_raises(self, serve):
        """Each coroutine would be a different key."""

        async def user_of(request) -> str:
            return request.headers["User"]

        app = app_of(limits={"max_streams_per_key": 1, "key": user_of})
        server = await serve(app)
        for _ in range(3):
            assert (await server.exchange(get())).startswith(b"HTTP/1.1 500 ")
        assert in_use(app) == len(app[STREAMS]) == 0

    async def test_above_max_streams_a_request_gets_503_and_may_be_repeated(self, serve):
        """The connection can be reused, and the next request succeeds once a slot is free."""
        app = app_of(limits={"max_streams": 2})
        server = await serve(app)
        first, second = [await server.connect(get()) for _ in range(2)]
        for raw in (first, second):
            await raw.until(b"data: x\n\n\r\n")
        third = await server.connect(get())
        head = await third.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in head
        await third.until(b"There are too many streams.\n")
        assert in_use(app) == len(app[STREAMS]) == 2
        first.reset()
        await until(lambda: in_use(app) == 1)
        third.writer.write(get().replace("\n", "\r\n").encode())
        await third.until(b"data: x\n\n\r\n")
        assert in_use(app) == 2
        for raw in (second, third):
            await raw.close()
        await until(lambda: in_use(app) == 0)

    async def test_above_max_streams_per_key_a_request_gets_429_and_other_keys_are_not_affected(self, serve):
        app = app_of(limits={"max_streams_per_key": 1, "key": by_user})
        server = await serve(app)
        alice = await server.connect(get("alice"))
        await alice.until(b"data: x\n\n\r\n")
        again = await server.connect(get("alice"))
        head = await again.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: " in head
        bob = await server.connect(get("bob"))
        await bob.until(b"data: x\n\n\r\n")
        await alice.close()
        await until(lambda: in_use(app) == 1)
        fresh = await server.connect(get("alice"))
        await fresh.until(b"data: x\n\n\r\n")
        for raw in (again, bob, fresh):
            await raw.close()
        await until(lambda: in_use(app) == 0)
        assert not app[STREAMS]._limits._in_use_by_key  # nothing is kept of a key without streams

    async def test_head_needs_no_slot(self, serve):
        app = app_of(limits={"max_streams": 0})
        server = await serve(app)
        raw = await server.connect(get(method="HEAD") * 3)
        for _ in range(3):
            assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert in_use(app) == 0
        await raw.close()

    @pytest.mark.parametrize(
        ("key", "status"),
        [
            (lambda request: request.headers["Absent"], b"500"),
            (lambda request: ["not hashable"], b"500"),
            (lambda request: (_ for _ in ()).throw(web.HTTPUnauthorized), b"401"),
        ],
    )
    async def test_an_exception_in_the_key_function_acquires_no_slot(self, serve, key, status):
        app = app_of(limits={"max_streams_per_key": 1, "max_streams": 1, "key": key})
        server = await serve(app)
        for _ in range(2):
            raw = await server.connect(get())
            assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
            assert in_use(app) == 0
            await raw.close()

    async def test_the_count_is_exact_whatever_hundreds_of_clients_do(self, serve, handler_cancellation):
        """They disconnect before, during or after the head, fail before it, are cancelled, or read to the end."""
        max_streams, max_per_key = 20, 3
        seen = Counter()
        handlers = []
        counts = []

        @before
        def note(context):
            handlers.append(asyncio.current_task())

        async def ready(channel, context):
            open_now = Counter(stream._context.request.headers["User"] for stream in app[STREAMS])
            counts.append((in_use(app), max(open_now.values())))
            await waits(channel, context)

        async def fail(request, response):
            await asyncio.sleep(0)
            if request.headers.get("Fate") == "fail" and response.status == 200:
                raise RuntimeError("not this one")

        app = app_of(
            note, ready=ready, limits={"max_streams": max_streams, "max_streams_per_key": max_per_key, "key": by_user}
        )
        app.on_response_prepare.append(fail)
        server = await serve(app, handler_cancellation=handler_cancellation)
        chance = random.Random(1)

        async def client(answered):
            fate = chance.choice(["leave", "reset", "at once", "fail", "cancel", "end"])
            raw = await server.connect(
                f"GET / HTTP/1.1\nHost: x\nUser: {chance.choice('000123456789')}\nFate: {fate}\n\n"
            )
            if fate == "at once":
                raw.reset()
                answered.arrive()
                return
            try:
                head = await raw.until(b"\r\n\r\n")
                seen[head[9:12]] += 1
                answered.arrive()
                await answered.wait()
                if head.startswith(b"HTTP/1.1 200"):
                    await raw.until(b"\n\r\n")  # the event, or the end of the body
                    if fate == "end":
                        chance.choice(list(app[STREAMS])).end(CloseReason.KICKED)
                    elif fate == "cancel":
                        chance.choice(handlers).cancel()
            except (asyncio.IncompleteReadError, ConnectionError):
                seen["cancelled"] += 1
            finally:
                await raw.close()

        for expected in (75, 0, 75, 0):  # every other time, all clients wait for the responses of the others
            answered = Barrier(expected)
            async with asyncio.timeout(10):
                await asyncio.gather(*(client(answered) for _ in range(75)))
        await until(lambda: in_use(app) == 0 and len(app[STREAMS]) == 0)
        assert not app[STREAMS]._limits._in_use_by_key
        assert {b"200", b"429", b"500", b"503"} <= set(seen)
        assert max(total for total, _ in counts) <= max_streams
        assert max(per_key for _, per_key in counts) <= max_per_key
        assert counts


class LimitsModel(RuleBasedStateMachine):
    """Compare limits with a list of slots."""

    def __init__(self):
        super().__init__()
        self.limits = Limits(5, 2, lambda request: request.user)
        self.slots = []

    @rule(user=st.sampled_from([None, 0, False, "a", ("b", 1)]))
    def acquire(self, user):
        expected = (
            "max_streams"
            if len(self.slots) == 5
            else "max_streams_per_key"
            if [slot.key for slot in self.slots].count(user) == 2
            else None
        )
        if expected is None:
            self.slots.append(acquire_slot([self.limits], SimpleNamespace(user=user)))
        else:
            with pytest.raises(LimitReached, match=f"^{expected}$"):
                acquire_slot([self.limits], SimpleNamespace(user=user))

    @rule(data=st.data(), times=st.sampled_from([1, 2]))
    def release(self, data, times):
        if self.slots:
            slot = data.draw(st.sampled_from(self.slots))
            self.slots.remove(slot)
            for _ in range(times):
                slot.release()

    @invariant()
    def counts_agree(self):
        assert self.limits.in_use == len(self.slots)
        assert dict(self.limits._in_use_by_key) == dict(Counter(slot.key for slot in self.slots))


def test_slots_can_be_acquired_and_released_in_any_order():
    run_state_machine_as_test(LimitsModel)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_streams": -1}, ValueError, "max_streams is 0 streams or more, not -1; None means no limit"),
        ({"max_streams": 1.5}, TypeError, "max_streams is a number of streams or None, not 1.5"),
        ({"max_streams": True}, TypeError, "max_streams is a number of streams or None, not True"),
        ({"max_streams_per_key": 2}, TypeError, "max_streams_per_key and key require each other"),
        ({"key": by_user}, TypeError, "max_streams_per_key and key require each other"),
        ({"key": "user", "max_streams_per_key": 2}, TypeError, "key is a function of the request, not 'user'"),
        ({"observer": 1}, TypeError, "observer is a function of a fact, not 1"),
        ({"drain": 5.0}, TypeError, "drain is a Drain, not 5.0"),
    ],
)
def test_invalid_limits_raise(options, error, message):
    with pytest.raises(error, match=message):
        setup(web.Application(), **options)


class TestMaxAge:
    async def test_a_stream_ends_as_expired_and_its_client_resumes(self, serve, session):
        """Buffered events are sent, the body is complete, and the next request has the last event ID."""
        ids, closes = [], []

        async def ready(channel, context):
            start = int(context.last_event_id or 0)
            ids.append(start)
            for number in range(start + 1, start + 4):
                await channel.put(Event(str(number), id=str(number)))
            await channel.wait_closed()

        app = app_of(ready=ready, max_age=0.02, on_close=lambda context, reason: closes.append(reason))
        server = await serve(app)
        last, got = None, []
        for _ in range(3):
            async with open_stream(session, server.url, last_event_id=last) as stream:
                got += [event.data async for event in stream]
                last = got[-1]
        assert got == [str(number) for number in range(1, 10)]
        assert ids == [0, 3, 6]
        await until(lambda: in_use(app) == 0)
        assert closes == [CloseReason.EXPIRED] * 3

    async def test_the_age_is_random_so_that_clients_do_not_reconnect_together(self, serve, monkeypatch):
        """It is uniform between 80 % and 100 % of max_age: a Kolmogorov-Smirnov test."""
        due, real = [], TimerQueue.add

        def add(self, owner, when):
            if isinstance(owner, StreamLifecycle):
                due.append(when - asyncio.get_running_loop().time())
            return real(self, owner, when)

        monkeypatch.setattr(TimerQueue, "add", add)
        app = app_of(ready=lambda channel, context: channel.close(), max_age=1000.0, stall_timeout=None)
        server = await serve(app)
        raw = await server.connect(get())
        for _ in range(300):
            await raw.until(b"\r\n\r\n0\r\n\r\n")  # a head may end with 0 too
            raw.writer.write(get().replace("\n", "\r\n").encode())
        await raw.close()
        ages = sorted((age / 1000.0 - 0.8) / 0.2 for age in due)
        assert len(ages) >= 300
        assert -0.001 < ages[0] < ages[-1] < 1.001
        count = len(ages)
        distance = max(max((n + 1) / count - age, age - n / count) for n, age in enumerate(ages))
        assert distance * count**0.5 < 2.7  # by chance once in a million runs

    async def test_buffered_events_are_sent_before_the_end(self, serve):
        async def ready(channel, context):
            while await channel.put("x" * 10_000):
                pass

        app = app_of(ready=ready, max_age=0.02, max_event_size=None)
        server = await serve(app)
        raw = await server.connect(get().replace("Host", "Connection: close\nHost"))
        body = await asyncio.wait_for(raw.reader.read(), 10)
        assert body.endswith(b"x\n\n\r\n0\r\n\r\n")
        await raw.close()


class TestMaxEventSize:
    async def test_an_event_that_is_too_large_raises_in_the_producer_and_the_stream_continues(self, serve):
        failed = []

        async def ready(channel, context):
            await channel.put("x" * 92)
            try:
                await channel.put("y" * 93)
            except EventTooLarge as error:
                failed.append(str(error))
            await channel.put("z")
            channel.close()

        server = await serve(app_of(ready=ready, max_event_size=100))
        raw = await server.connect(get())
        await raw.until(b"\r\n\r\n")
        body = await raw.until(b"0\r\n\r\n")
        assert b"x" * 92 in body
        assert b"y" not in body
        assert b"data: z\n\n" in body
        assert failed[0].startswith("the event has 101 bytes and max_event_size is 100: ")
        await raw.close()


async def test_an_application_that_stops_refuses_streams_of_its_sub_applications(serve, session):
    """aiohttp shuts down an application completely before its sub-applications."""
    outer, inner = web.Application(), app_of()
    setup(outer)
    outer.add_subapp("/inner", inner)
    server = await serve(outer)
    await outer[STREAMS].close()
    async with session.get(server.url + "/inner/") as response:
        assert response.status == 503
