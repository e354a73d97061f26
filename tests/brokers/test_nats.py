"""NATS JetStream keeps what all brokers promise, and what is its own."""

# ruff: noqa: F811  # a test has what it takes by name, and its fixtures are imported

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack, aclosing

import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from aiohttp_interceptors.brokers.nats import NatsBroker
from aiohttp_interceptors.brokers.nats import tail as nats_consumer
from aiohttp_interceptors.brokers.nats.log import Confirmation, Mark, Marks, NatsLog, subject_of, topic_of
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed, Trimmed, Truncated
from tests.brokers.contract import MEGABYTE, Contract, broker, brokers, number, tail, topics  # noqa: F401  # fixtures
from tests.brokers.nats_site import NatsSite, site  # noqa: F401  # a fixture
from tests.servers.nats import Nats
from tests.waiting import until, within


class TestNats(Contract):
    """As it says."""

    @pytest.fixture(autouse=True)
    async def later(self):
        async with AsyncExitStack() as self.stack:
            yield

    async def told_of_rewinding(self, reading, one, other):
        with pytest.raises(BrokerDown, match="lost"):
            await reading.until(Truncated)
        reading._items = await self.stack.enter_async_context(aclosing(one.tail(reading.position)))
        await reading.until(Truncated)


# What it is made with.


@pytest.mark.parametrize(
    ("error", "connect", "options"),
    [
        (TypeError, 7, {}),
        (TypeError, [b"nats://localhost"], {}),
        (ValueError, "", {}),
        (ValueError, [], {}),
        (ValueError, "localhost:4222", {}),
        (ValueError, ["nats://localhost", "http://localhost"], {}),
        (ValueError, "nats://localhost", {"stream": "a.b"}),
        (ValueError, "nats://localhost", {"stream": "a b"}),
        (ValueError, "nats://localhost", {"stream": ""}),
        (ValueError, "nats://localhost", {"stream": 7}),
        (TypeError, "nats://localhost", {"max_records": 1.0}),
        (TypeError, "nats://localhost", {"max_records": True}),
        (ValueError, "nats://localhost", {"max_records": 0}),
        (TypeError, "nats://localhost", {"max_age": "1 h"}),
        (ValueError, "nats://localhost", {"max_age": 119}),
        (TypeError, "nats://localhost", {"publish_timeout": None}),
        (ValueError, "nats://localhost", {"publish_timeout": 0}),
        (ValueError, "nats://localhost", {"silence": float("nan")}),
        (ValueError, "nats://localhost", {"silence": float("inf")}),
        (ValueError, "nats://localhost", {"replicas": 0}),
        (TypeError, "nats://localhost", {"replicas": "3"}),
        (TypeError, "nats://localhost", {"replicas": True}),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(error, connect, options):
    wrong = next(iter(options.values()), connect)
    with pytest.raises(error) as raised:
        NatsBroker(connect, **options)
    assert repr(wrong) in str(raised.value)


def test_without_nats_py_it_says_what_to_install():
    code = "import sys; sys.modules['nats'] = None; import aiohttp_interceptors.brokers.nats"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "pip install 'aiohttp-interceptors[nats]'" in done.stderr


async def test_it_is_made_with_a_list_of_servers_too(nats, site):
    broker = site.broker(connect=["nats://127.0.0.1:1", nats.url])
    assert (await broker.publish("t", b"x")).offset == 1
    await broker.close()


async def test_a_factory_is_called_with_what_keeps_its_client_from_repeating(nats, site):
    given = []

    async def connect(**options):
        given.append(options)
        client = Client()
        await client.connect(nats.url, **options)
        return client

    broker = site.broker(connect=connect)
    await broker.publish("t", b"x")
    await broker.close()
    assert given[0]["allow_reconnect"] is False
    assert given[0]["pending_size"] == 0


async def test_a_factory_that_makes_something_else_is_refused(nats, site):
    async def other(**options):
        return 7

    async def deaf(**options):
        made.append(Client())
        await made[-1].connect(nats.url)
        return made[-1]

    async def narrow():
        return None

    made = []
    for connect, words in (other, "no nats.NATS"), (deaf, "options"), (narrow, "unexpected keyword"):
        broker = site.broker(connect=connect)
        with pytest.raises(BrokerRefused, match=words):
            await broker.publish("t", b"x")
        with pytest.raises(BrokerRefused, match=words):
            await anext(broker.tail(None))
        await broker.close()
    assert all(one.is_closed for one in made)


# The stream.


async def test_the_stream_is_made_with_the_limits_that_were_said(site):
    broker = site.broker(max_records=7, max_age=3600)
    await broker.publish("t", b"x")
    async with site.administrator() as js:
        config = (await js.stream_info(site.stream)).config
    assert (config.max_msgs, config.max_age, config.duplicate_window) == (7, 3600, 120)
    assert (config.storage, config.discard, config.num_replicas) == ("file", "old", 1)
    assert config.subjects == [f"{site.stream}.>"]
    await broker.close()


async def test_other_limits_are_given_to_the_stream_once_and_that_is_logged(site, brokers, logged):
    await brokers(max_records=7, max_age=3600).publish("t", b"x")
    assert logged == []
    other = brokers(max_records=9, max_age=None)
    await other.publish("t", b"y")
    async with site.administrator() as js:
        config = (await js.stream_info(site.stream)).config
        assert (config.max_msgs, config.max_age) == (9, 0)
        await js.update_stream(config.evolve(max_msgs=11))
        async with tail(other) as reading:
            await reading.until(CaughtUp)
        assert (await js.stream_info(site.stream)).config.max_msgs == 11
    (entry,) = logged
    assert (entry["event"], entry["max_msgs"], entry["max_age"]) == ("nats_stream_limits", 9, 0)


async def test_replicas_that_a_server_cannot_make_are_told_and_the_rest_is_applied(site, brokers, logged):
    await brokers(max_records=7).publish("t", b"x")
    assert (await brokers(max_records=9, replicas=3).publish("t", b"y")).offset == 2
    applied, refused = logged
    assert (applied["event"], applied["log_level"], applied["max_msgs"], applied["had_max_msgs"]) == (
        "nats_stream_limits", "info", 9, 7,
    )  # fmt: skip
    assert (refused["event"], refused["log_level"], refused["num_replicas"], refused["had_num_replicas"]) == (
        "nats_stream_limits", "warning", 3, 1,
    )  # fmt: skip
    assert "replicas" in refused["error"]["description"]
    async with site.administrator() as js:
        assert (await js.stream_info(site.stream)).config.max_msgs == 9


async def test_a_stream_that_is_for_something_else_is_refused(site, broker):
    async with site.administrator() as js:
        for other in {"subjects": ["other.*"]}, {"subjects": [f"{site.stream}.>"], "retention": "workqueue"}:
            await js.add_stream(name=site.stream, **other)
            with pytest.raises(BrokerRefused, match="one of its own"):
                await broker.publish("t", b"x")
            with pytest.raises(BrokerRefused, match="one of its own"):
                await anext(broker.tail(None))
            await js.delete_stream(site.stream)


async def test_a_subject_that_is_anothers_is_refused(site, broker):
    async with site.administrator() as js:
        await js.add_stream(name=f"{site.stream}-other", subjects=[f"{site.stream}.a.>"])
        with pytest.raises(BrokerRefused, match="overlap"):
            await broker.publish("t", b"x")
        await js.delete_stream(f"{site.stream}-other")


async def test_a_server_without_jetstream_is_down_and_says_so(own, tmp_path):
    class Plain(Nats):
        def _has_jetstream(self):
            return True

    server = Plain(tmp_path / "plain")
    file = server.folder / "nats.conf"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("jetstream")))
    own(server)
    broker = NatsSite(server).broker()
    with pytest.raises(BrokerDown, match="not enabled"):
        await broker.publish("t", b"x")
    await broker.close()


async def test_brokers_that_start_at_once_make_one_log(brokers):
    many = [brokers(max_records=n + 1000) for n in range(8)]
    positions = await within(asyncio.gather(*[one.publish("t", b"x") for one in many]))
    assert len({position.epoch for position in positions}) == 1
    assert sorted(position.offset for position in positions) == list(range(1, 9))


async def test_an_entry_that_was_deleted_alone_is_told(site, brokers):
    one, other = brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(6)]
    async with site.administrator() as js:
        for offset in 3, 4, 6:
            await js.delete_msg(site.stream, offset)
    async with tail(one, positions[5]) as reading:  # whose last entry the server has no more, and is not rewound
        assert await reading.item() == Subscribed(positions[5])
        assert await reading.item() == CaughtUp()
    async with tail(other) as reading:
        await reading.until(Trimmed)
        assert reading.position == positions[3]
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"0", b"1", b"4"]
        await one.publish("t", b"6")
        assert (await reading.until(Trimmed)) == Trimmed(6)
        assert (await reading.payloads(4))[-1] == b"6"


async def test_a_place_that_the_server_does_not_have_yet_is_one_that_it_lost(brokers):
    one, other = brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with tail(other, LogPosition(positions[0].epoch, 100)) as reading:
        await reading.item()
        rewound = await reading.item()
        assert isinstance(rewound, Truncated)
        assert rewound.position.offset == 0
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"0", b"1", b"2"]
    assert (await other.publish("t", b"3")).epoch == rewound.position.epoch
    async with tail(one, positions[2]) as reading:
        assert (await reading.until(Truncated)) == rewound


async def test_what_is_larger_than_what_we_ask_for_at_once_comes_too(brokers):
    one, other = brokers(), brokers()
    sizes = [10, 3 * MEGABYTE, 20, MEGABYTE, 6 * MEGABYTE, 6 * MEGABYTE, 30]
    async with tail(one) as live:
        await live.until(CaughtUp)
        for size in sizes:
            await one.publish("t", b"x" * size)
        assert [len(payload) for payload in await live.payloads(7)] == sizes
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        assert [len(entry.payload) for entry in reading.entries] == sizes


class Lossy(Client):
    """A client that drops one message, as nats-py does with what a slow application leaves in its queue."""

    def _build_message(self, sid, subject, reply, data, headers):
        drop = reply.startswith(b"$JS.ACK.") and data == b"2"
        return None if drop else super()._build_message(sid, subject, reply, data, headers)


async def test_what_the_client_drops_is_missed_and_asked_for_again(nats, brokers):
    async def connect(**options):
        client = Lossy()
        await client.connect(nats.url, **options)
        return client

    one, other, lossy = brokers(), brokers(), brokers(connect=connect)
    await one.publish("t", b"first")
    async with tail(lossy) as reading:
        await reading.until(CaughtUp)
        await asyncio.gather(*[one.publish("t", number(n)) for n in range(6)])
        with pytest.raises(BrokerDown, match="that NATS sent"):
            await reading.payloads(7)
        position, given = reading.position, len(reading.entries) - 1
        assert given <= 2
    async with tail(other, position) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [number(n) for n in range(given, 6)]


async def test_the_age_of_an_entry_is_by_the_servers_clock_alone(site, brokers, monkeypatch):
    one, other = brokers(), brokers()
    await one.publish("t", b"old")
    monkeypatch.setattr("time.time", lambda: 4e9)  # as on a machine that is in another century
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        assert 0 <= reading.entries[0].age < 5


async def test_a_tail_that_is_closed_leaves_no_consumer(site, brokers):
    broker = brokers()
    for _ in range(3):
        async with tail(broker) as reading:
            await reading.until(CaughtUp)
            async with site.administrator() as js:
                assert len(await js.consumers_info(site.stream)) == 1
    async with site.administrator() as js:
        async with asyncio.timeout(10):
            while await js.consumers_info(site.stream):
                pass


async def test_a_tail_that_waits_for_long_goes_on(nats, brokers, monkeypatch):
    """What the server was asked for is given up by it after a while, and asked for again."""
    monkeypatch.setattr(nats_consumer, "LASTING", 1)
    asked = []

    class Counting(Client):
        async def publish(self, subject, *arguments, **options):
            if "MSG.NEXT" in subject:
                asked.append(subject)
            await super().publish(subject, *arguments, **options)

    async def connect(**options):
        client = Counting()
        await client.connect(nats.url, **options)
        return client

    one, other = brokers(), brokers(connect=connect, silence=2)
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        waiting = asyncio.create_task(reading.payloads(1))
        await until(lambda: len(asked) >= 3)
        await one.publish("t", b"x")
        assert await within(waiting) == [b"x"]


async def test_a_stream_that_is_deleted_and_made_by_another_is_another_log(site, brokers):
    """What is on its way meanwhile is not given a place in the log that is no more."""
    one, other = brokers(), brokers()
    old = [await one.publish("t", number(n)) for n in range(3)]
    await site.wipe()
    new = await other.publish("t", b"new")
    position = await one.publish("t", b"3")
    assert position == LogPosition(new.epoch, 2)
    assert new.epoch != old[0].epoch


async def test_a_stream_that_is_deleted_is_made_anew_by_who_publishes(site, broker):
    old = await broker.publish("t", b"old")
    await site.wipe()
    positions = await asyncio.gather(*[broker.publish("t", number(n)) for n in range(50)])
    assert [position.offset for position in positions] == list(range(1, 51))
    assert {position.epoch for position in positions} != {old.epoch}
    async with site.administrator() as js:
        assert (await js.stream_info(site.stream)).state.messages == 50
        with pytest.raises(NotFoundError):
            await js.get_msg(site.stream, 51)


async def test_what_is_last_and_was_deleted_is_no_reason_to_wait_for_it(site, brokers):
    one, other = brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with site.administrator() as js:
        await js.delete_msg(site.stream, positions[2].offset)
    async with tail(other) as reading:
        for _ in range(3):
            await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"0", b"1"]


# What is decided without a server.


@pytest.mark.parametrize(
    "topic", ["a", "a.b.c", "a*b.>c", "$JS.API", "%2A", "ümläut.☃", "x" * 255, "☃" * 255, "a/b?c=d&e"]
)
def test_a_topic_is_a_subject_and_back(topic):
    subject = subject_of("events", topic)
    assert topic_of("events", subject) == topic
    assert subject.isascii()
    assert not set(subject) & set("*> \t\r\n")
    assert subject.count(".") == topic.count(".") + 1


def log(*epochs, first=1, last=100):
    return NatsLog(tuple(LogPosition(*era) for era in epochs), first, last, 0.0)


def entries(*offsets):
    return [Entry(offset, "t", b"") for offset in offsets]


@pytest.mark.parametrize(
    ("log", "position", "given", "items"),
    [
        (log(("a", 0)), ("a", 3), [], []),
        (log(("a", 0)), ("a", 3), [4, 5], [[4, 5]]),
        (log(("a", 0), first=4), ("a", 3), [4], [[4]]),
        (log(("a", 0), first=5), ("a", 3), [], [Trimmed(4)]),
        (log(("a", 0)), ("a", 3), [5, 6, 9], [Trimmed(4), [5, 6], Trimmed(8), [9]]),
        (log(("a", 0)), ("b", 3), [], [Truncated(LogPosition("a", 0))]),
        (log(("a", 0), first=9), ("b", 3), [9], [Truncated(LogPosition("a", 8)), [9]]),
        (log(("a", 0), ("b", 5)), ("a", 7), [6], [Truncated(LogPosition("b", 5)), [6]]),
        (log(("a", 0), ("b", 5)), ("a", 5), [], [Truncated(LogPosition("b", 5))]),
        (log(("a", 0), ("b", 5)), ("a", 4), [], []),
        (log(("a", 0), ("b", 5)), ("a", 3), [4, 5, 6, 7], [[4, 5], Truncated(LogPosition("b", 5)), [6, 7]]),
        (log(("a", 0), ("b", 5)), ("a", 3), [4, 5], [[4, 5], Truncated(LogPosition("b", 5))]),
        (log(("a", 0), ("b", 5)), ("a", 3), [7], [Trimmed(5), Truncated(LogPosition("b", 5)), Trimmed(6), [7]]),
        (log(("a", 0), ("b", 5), first=9), ("a", 3), [], [Trimmed(5), Truncated(LogPosition("b", 5)), Trimmed(8)]),
        (
            log(("a", 0), ("b", 5), ("c", 5)),
            ("a", 9),
            [6],
            [Truncated(LogPosition("b", 5)), Truncated(LogPosition("c", 5)), [6]],
        ),
        (log(("a", 0), ("b", 5), ("c", 7)), ("b", 9), [], [Truncated(LogPosition("c", 7))]),
        (log(("a", 0), ("b", 5)), ("b", 9), [10], [[10]]),
    ],
)
def test_what_follows_a_place_is_told_with_its_holes_and_borders(log, position, given, items):
    found = [item if isinstance(item, Trimmed | Truncated) else [e.offset for e in item]
             for item in log.items(LogPosition(*position), entries(*given))]  # fmt: skip
    assert found == items


def info(created="2026-11-25T22:00:00.123456789Z", metadata=None, first=1, last=100):
    state = {"first_seq": first, "last_seq": last}
    config = {"name": "events", "metadata": metadata}
    return {"config": config, "created": created, "state": state, "ts": "2026-11-25T22:00:01.5Z"}


def test_a_stream_has_the_epoch_of_its_creation_and_those_that_were_noted():
    fresh = NatsLog.of(info())
    assert fresh.epoch != NatsLog.of(info("2026-11-25T22:00:00.123456788Z")).epoch
    assert fresh.clock == NatsLog.of(info()).clock > 1.7e9
    noted = {"aiohttp_interceptors_eras": fresh.rewound(90)}
    later = NatsLog.of(info(metadata=noted))
    assert later.epochs[0] == fresh.epochs[0]
    assert later.epochs[1].offset == 90
    assert [later.position(offset).epoch for offset in (89, 90, 91)] == [fresh.epoch, fresh.epoch, later.epoch]
    assert later.rewound(80).split()[1:] != later.rewound(81).split()[1:]
    again = NatsLog.of(info(metadata={"aiohttp_interceptors_eras": later.rewound(50)}))
    assert [era.offset for era in again.epochs] == [0, 50, 50]
    assert NatsLog.of(info("2020-01-01T00:00:00Z", noted)).epochs[1:] == ()  # of a stream that it was copied from
    assert NatsLog.of(info(metadata={"aiohttp_interceptors_eras": "x y:z"})).epochs == fresh.epochs
    for border in range(100):
        later = NatsLog.of(info(metadata={"aiohttp_interceptors_eras": later.rewound(border)}))
    assert len(later.epochs) < 20


def test_an_empty_stream_begins_after_what_it_had():
    assert NatsLog.of(info(first=0, last=0)).start.offset == 0
    assert NatsLog.of(info(first=101, last=100)).start.offset == 100


def test_marks_that_are_void_are_forgotten():
    marks = Marks()
    marks.follow(log(("a", 0)))
    for offset in 3, 5, 5, 4, 9:
        marks.give(Mark(offset, offset))
    marks.acknowledge(Mark(12, ("t", b"")))
    marks.acknowledge(Mark(11, ("t", b"")))
    assert [mark.offset for mark in marks] == [3, 5, 9, 12]
    marks.follow(log(("a", 0)))
    assert marks.top == 12
    marks.follow(log(("a", 0), ("b", 5)))
    assert [mark.offset for mark in marks] == [3, 5]
    marks.give(Mark(6, 6))
    marks.follow(log(("a", 0), ("b", 5)))
    assert marks.top == 6
    marks.follow(log(("c", 0)))
    assert marks.top == 0


def test_a_place_that_was_joined_is_the_one_that_was_asked_for():
    assert Subscribed(log(("a", 0), ("b", 5), first=6).start) == Subscribed(LogPosition("b", 5))
    assert log(("a", 0), ("b", 5), first=5).start == LogPosition("a", 4)


def test_the_leaders_answer_is_confirmed_once_when_all_that_it_told_of_has_come():
    confirmation = Confirmation(5, 10.0)
    assert not confirmation.due(11.0)
    assert not confirmation.complete(5, 0, 11.0)
    assert confirmation.due(11.1)
    confirmation.answered(7, 0, 11.1, 11.2)
    assert not confirmation.due(20.0)
    assert not confirmation.complete(6, 1, 11.3)
    assert confirmation.complete(7, 1, 11.4)
    assert not confirmation.complete(7, 1, 11.5)


def test_an_answer_that_is_old_confirms_nothing():
    confirmation = Confirmation(5, 10.0)
    confirmation.answered(6, 0, 11.0, 14.0)
    assert not confirmation.complete(6, 0, 14.0)
    assert confirmation.due(15.1)


def test_what_two_heartbeats_in_a_row_do_not_bring_was_deleted():
    confirmation = Confirmation(5, 10.0)
    confirmation.answered(9, 3, 11.0, 11.0)
    assert not confirmation.complete(5, 4, 12.0)
    assert confirmation.complete(5, 5, 13.0)
    confirmation.answered(9, 5, 14.0, 14.0)
    assert confirmation.complete(5, 5, 14.0)
    confirmation.answered(10, 5, 15.0, 15.0)
    assert not confirmation.complete(5, 5, 15.0)
