"""The contract on NATS JetStream, and what is particular to it: streams, consumers, epochs."""

# ruff: noqa: F811  # fixtures are imported, and arguments of tests

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack, aclosing

import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from aiohttp_interceptors.brokers.nats import NatsBroker
from aiohttp_interceptors.brokers.nats import tail as nats_tail
from aiohttp_interceptors.brokers.nats.log import METADATA_KEY, Checkpoint, Checkpoints, NatsLog, subject_of, topic_of
from aiohttp_interceptors.brokers.nats.tail import Confirmation
from aiohttp_interceptors.exceptions import BrokerDown, BrokerRefused
from aiohttp_interceptors.hub.broker import CaughtUp, Entry, LogPosition, Subscribed, Trimmed, Truncated
from tests.brokers.contract import MEGABYTE, Contract, broker, brokers, number, tail, topics  # noqa: F401  # fixtures
from tests.brokers.nats_site import NatsSite, site  # noqa: F401  # a fixture
from tests.servers.nats import Nats
from tests.waiting import until, within


class TestNats(Contract):
    @pytest.fixture(autouse=True)
    async def exit_stack(self):
        async with AsyncExitStack() as self.stack:
            yield

    async def read_until_truncated(self, reading, one, other):
        """The tail ends with ``BrokerDown``, and the next one gives ``Truncated``."""
        with pytest.raises(BrokerDown, match="lost"):
            await reading.until(Truncated)
        reading._items = await self.stack.enter_async_context(aclosing(one.tail(reading.position)))
        await reading.until(Truncated)


# Arguments.


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
        (ValueError, "nats://localhost", {"read_timeout": float("nan")}),
        (ValueError, "nats://localhost", {"read_timeout": float("inf")}),
        (ValueError, "nats://localhost", {"replicas": 0}),
        (TypeError, "nats://localhost", {"replicas": "3"}),
        (TypeError, "nats://localhost", {"replicas": True}),
    ],
)
def test_a_bad_argument_is_refused_with_its_value(error, connect, options):
    wrong = next(iter(options.values()), connect)
    with pytest.raises(error) as raised:
        NatsBroker(connect, **options)
    assert repr(wrong) in str(raised.value)


def test_the_import_error_without_nats_py_says_what_to_install():
    code = "import sys; sys.modules['nats'] = None; import aiohttp_interceptors.brokers.nats"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "pip install 'aiohttp-interceptors[nats]'" in done.stderr


async def test_the_servers_of_a_list_are_tried_until_one_answers(nats, site):
    broker = site.broker(connect=["nats://127.0.0.1:1", nats.url])
    assert (await broker.publish("t", b"x")).offset == 1
    await broker.close()


async def test_a_factory_is_called_with_options_against_reconnecting_and_buffering(nats, site):
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


async def test_a_factory_must_return_a_client_with_our_options(nats, site):
    async def other(**options):
        return 7

    async def ignoring(**options):
        made.append(Client())
        await made[-1].connect(nats.url)
        return made[-1]

    async def narrow():
        return None

    made = []
    for connect, words in (other, "not a nats.NATS"), (ignoring, "options"), (narrow, "unexpected keyword"):
        broker = site.broker(connect=connect)
        with pytest.raises(BrokerRefused, match=words):
            await broker.publish("t", b"x")
        with pytest.raises(BrokerRefused, match=words):
            await anext(broker.tail(None))
        await broker.close()
    assert all(one.is_closed for one in made)


# The stream.


async def test_the_stream_is_created_with_the_limits_of_the_arguments(site):
    broker = site.broker(max_records=7, max_age=3600)
    await broker.publish("t", b"x")
    async with site.administrator() as js:
        config = (await js.stream_info(site.stream)).config
    assert (config.max_msgs, config.max_age, config.duplicate_window) == (7, 3600, 120)
    assert (config.storage, config.discard, config.num_replicas) == ("file", "old", 1)
    assert config.subjects == [f"{site.stream}.>"]
    await broker.close()


async def test_other_limits_are_applied_to_the_stream_once_and_logged(site, brokers, logged):
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


async def test_replicas_that_the_server_refuses_are_logged_and_the_limits_are_applied(site, brokers, logged):
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


async def test_a_stream_with_other_subjects_or_another_retention_is_refused(site, broker):
    async with site.administrator() as js:
        for other in {"subjects": ["other.*"]}, {"subjects": [f"{site.stream}.>"], "retention": "workqueue"}:
            await js.add_stream(name=site.stream, **other)
            with pytest.raises(BrokerRefused, match="a Hub needs a stream"):
                await broker.publish("t", b"x")
            with pytest.raises(BrokerRefused, match="a Hub needs a stream"):
                await anext(broker.tail(None))
            await js.delete_stream(site.stream)


async def test_subjects_that_overlap_with_another_stream_are_refused(site, broker):
    async with site.administrator() as js:
        await js.add_stream(name=f"{site.stream}-other", subjects=[f"{site.stream}.a.>"])
        with pytest.raises(BrokerRefused, match="overlap"):
            await broker.publish("t", b"x")
        await js.delete_stream(f"{site.stream}-other")


async def test_a_server_without_jetstream_is_down_with_the_reason(own, tmp_path):
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


async def test_brokers_that_start_together_create_one_log(brokers):
    many = [brokers(max_records=n + 1000) for n in range(8)]
    positions = await within(asyncio.gather(*[one.publish("t", b"x") for one in many]))
    assert len({position.epoch for position in positions}) == 1
    assert sorted(position.offset for position in positions) == list(range(1, 9))


async def test_entries_that_were_deleted_singly_are_trimmed(site, brokers):
    one, other = brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(6)]
    async with site.administrator() as js:
        for offset in 3, 4, 6:
            await js.delete_msg(site.stream, offset)
    async with tail(one, positions[5]) as reading:  # deleted, and not truncated
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


async def test_a_position_after_the_end_of_the_stream_was_lost(brokers):
    one, other = brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with tail(other, LogPosition(positions[0].epoch, 100)) as reading:
        await reading.item()
        truncated = await reading.item()
        assert isinstance(truncated, Truncated)
        assert truncated.position.offset == 0
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"0", b"1", b"2"]
    assert (await other.publish("t", b"3")).epoch == truncated.position.epoch
    async with tail(one, positions[2]) as reading:
        assert (await reading.until(Truncated)) == truncated


async def test_messages_larger_than_a_pull_request_are_delivered(brokers):
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
    """A client that drops one message, as nats-py does when the queue of a subscription is full."""

    def _build_message(self, sid, subject, reply, data, headers):
        drop = reply.startswith(b"$JS.ACK.") and data == b"2"
        return None if drop else super()._build_message(sid, subject, reply, data, headers)


async def test_a_message_that_the_client_drops_is_noticed_and_read_again(nats, brokers):
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
        position, received = reading.position, len(reading.entries) - 1
        assert received <= 2
    async with tail(other, position) as reading:
        await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [number(n) for n in range(received, 6)]


async def test_the_age_of_an_entry_depends_on_the_servers_clock_alone(site, brokers, monkeypatch):
    one, other = brokers(), brokers()
    await one.publish("t", b"old")
    monkeypatch.setattr("time.time", lambda: 4e9)  # as on a machine whose clock is wrong
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        assert 0 <= reading.entries[0].age < 5


async def test_a_closed_tail_leaves_no_consumer(site, brokers):
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


async def test_a_pull_request_that_expires_is_repeated(nats, brokers, monkeypatch):
    monkeypatch.setattr(nats_tail, "PULL_EXPIRES", 1)
    pulls = []

    class Counting(Client):
        async def publish(self, subject, *arguments, **options):
            if "MSG.NEXT" in subject:
                pulls.append(subject)
            await super().publish(subject, *arguments, **options)

    async def connect(**options):
        client = Counting()
        await client.connect(nats.url, **options)
        return client

    one, other = brokers(), brokers(connect=connect, read_timeout=2)
    async with tail(other) as reading:
        await reading.until(CaughtUp)
        waiting = asyncio.create_task(reading.payloads(1))
        await until(lambda: len(pulls) >= 3)
        await one.publish("t", b"x")
        assert await within(waiting) == [b"x"]


async def test_a_publish_to_a_stream_that_was_deleted_and_created_returns_a_position_of_the_new_log(site, brokers):
    one, other = brokers(), brokers()
    old = [await one.publish("t", number(n)) for n in range(3)]
    await site.wipe()
    new = await other.publish("t", b"new")
    position = await one.publish("t", b"3")
    assert position == LogPosition(new.epoch, 2)
    assert new.epoch != old[0].epoch


async def test_publishing_creates_a_stream_that_was_deleted(site, broker):
    old = await broker.publish("t", b"old")
    await site.wipe()
    positions = await asyncio.gather(*[broker.publish("t", number(n)) for n in range(50)])
    assert [position.offset for position in positions] == list(range(1, 51))
    assert {position.epoch for position in positions} != {old.epoch}
    async with site.administrator() as js:
        assert (await js.stream_info(site.stream)).state.messages == 50
        with pytest.raises(NotFoundError):
            await js.get_msg(site.stream, 51)


async def test_a_tail_does_not_wait_for_a_last_entry_that_was_deleted(site, brokers):
    one, other = brokers(), brokers()
    positions = [await one.publish("t", number(n)) for n in range(3)]
    async with site.administrator() as js:
        await js.delete_msg(site.stream, positions[2].offset)
    async with tail(other) as reading:
        for _ in range(3):
            await reading.until(CaughtUp)
        assert [entry.payload for entry in reading.entries] == [b"0", b"1"]


# Without a server.


@pytest.mark.parametrize(
    "topic", ["a", "a.b.c", "a*b.>c", "$JS.API", "%2A", "ümläut.☃", "x" * 255, "☃" * 255, "a/b?c=d&e"]
)
def test_a_topic_is_encoded_as_a_subject_and_decoded(topic):
    subject = subject_of("events", topic)
    assert topic_of("events", subject) == topic
    assert subject.isascii()
    assert not set(subject) & set("*> \t\r\n")
    assert subject.count(".") == topic.count(".") + 1


def log(*epochs, first=1, last=100):
    return NatsLog(tuple(LogPosition(*epoch) for epoch in epochs), first, last, 0.0)


def entries(*offsets):
    return [Entry(offset, "t", b"") for offset in offsets]


@pytest.mark.parametrize(
    ("log", "position", "offsets", "items"),
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
def test_the_items_after_a_position_contain_trimmed_and_truncated(log, position, offsets, items):
    found = [item if isinstance(item, Trimmed | Truncated) else [e.offset for e in item]
             for item in log.items(LogPosition(*position), entries(*offsets))]  # fmt: skip
    assert found == items


def info(created="2026-11-25T22:00:00.123456789Z", metadata=None, first=1, last=100):
    state = {"first_seq": first, "last_seq": last}
    config = {"name": "events", "metadata": metadata}
    return {"config": config, "created": created, "state": state, "ts": "2026-11-25T22:00:01.5Z"}


def test_the_first_epoch_is_derived_from_the_creation_of_the_stream():
    log = NatsLog.from_info(info())
    assert log.epoch == NatsLog.from_info(info()).epoch
    assert log.epoch != NatsLog.from_info(info("2026-11-25T22:00:00.123456788Z")).epoch
    assert log.clock > 1.7e9


def test_later_epochs_are_read_from_the_metadata():
    def after(metadata):
        return NatsLog.from_info(info(metadata={METADATA_KEY: metadata}))

    log = NatsLog.from_info(info())
    truncated = after(log.truncated(90))
    assert truncated.epochs[0] == log.epochs[0]
    assert truncated.epochs[1].offset == 90
    assert [truncated.position(offset).epoch for offset in (89, 90, 91)] == [log.epoch, log.epoch, truncated.epoch]
    assert truncated.truncated(80).split()[1:] != truncated.truncated(81).split()[1:]
    again = after(truncated.truncated(50))
    assert [epoch.offset for epoch in again.epochs] == [0, 50, 50]
    assert after("x y:z").epochs == log.epochs
    for offset in range(100):
        truncated = after(truncated.truncated(offset))
    assert len(truncated.epochs) < 20


def test_metadata_that_was_copied_from_another_stream_is_ignored():
    metadata = {METADATA_KEY: NatsLog.from_info(info()).truncated(90)}
    assert NatsLog.from_info(info("2020-01-01T00:00:00Z", metadata)).epochs[1:] == ()


def test_an_empty_stream_starts_after_its_last_entry():
    assert NatsLog.from_info(info(first=0, last=0)).start.offset == 0
    assert NatsLog.from_info(info(first=101, last=100)).start.offset == 100


def test_checkpoints_of_entries_that_were_lost_are_discarded():
    checkpoints = Checkpoints()
    checkpoints.discard_truncated(log(("a", 0)))
    for offset in 3, 5, 5, 4, 9:
        checkpoints.add_received(Checkpoint(offset, offset))
    checkpoints.add_acknowledged(Checkpoint(12, ("t", b"")))
    checkpoints.add_acknowledged(Checkpoint(11, ("t", b"")))
    assert [checkpoint.offset for checkpoint in checkpoints] == [3, 5, 9, 12]
    checkpoints.discard_truncated(log(("a", 0)))
    assert checkpoints.high_water_mark == 12
    checkpoints.discard_truncated(log(("a", 0), ("b", 5)))
    assert [checkpoint.offset for checkpoint in checkpoints] == [3, 5]
    checkpoints.add_received(Checkpoint(6, 6))
    checkpoints.discard_truncated(log(("a", 0), ("b", 5)))
    assert checkpoints.high_water_mark == 6
    checkpoints.discard_truncated(log(("c", 0)))
    assert checkpoints.high_water_mark == 0


def test_the_start_of_a_log_has_the_epoch_that_its_offset_belongs_to():
    assert log(("a", 0), ("b", 5), first=6).start == LogPosition("b", 5)
    assert log(("a", 0), ("b", 5), first=5).start == LogPosition("a", 4)


def test_an_answer_of_the_leader_is_confirmed_once_when_all_its_entries_were_received():
    confirmation = Confirmation(5, 10.0)
    assert not confirmation.is_due(11.0)
    assert not confirmation.is_complete(5, 0, 11.0)
    assert confirmation.is_due(11.1)
    confirmation.add_answer(7, 0, 11.1, 11.2)
    assert not confirmation.is_due(20.0)
    assert not confirmation.is_complete(6, 1, 11.3)
    assert confirmation.is_complete(7, 1, 11.4)
    assert not confirmation.is_complete(7, 1, 11.5)


def test_an_old_answer_is_not_confirmed():
    confirmation = Confirmation(5, 10.0)
    confirmation.add_answer(6, 0, 11.0, 14.0)
    assert not confirmation.is_complete(6, 0, 14.0)
    assert confirmation.is_due(15.1)


def test_an_entry_that_is_missing_after_two_heartbeats_was_deleted():
    confirmation = Confirmation(5, 10.0)
    confirmation.add_answer(9, 3, 11.0, 11.0)
    assert not confirmation.is_complete(5, 4, 12.0)
    assert confirmation.is_complete(5, 5, 13.0)
    confirmation.add_answer(9, 5, 14.0, 14.0)
    assert confirmation.is_complete(5, 5, 14.0)
    confirmation.add_answer(10, 5, 15.0, 15.0)
    assert not confirmation.is_complete(5, 5, 15.0)
