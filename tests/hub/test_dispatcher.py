"""A model of delivery: what streams receive is compared with a list of everything that was published."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from aiohttp_interceptors import compression
from aiohttp_interceptors.channel import CloseReason
from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.sse import HEARTBEAT, Event, encode
from tests.hub.reference import matches
from tests.hub.sink import Sink, compressed, live, plain, sized, subscribe
from tests.waiting import TIMEOUT, run_other_tasks

HISTORY, HISTORY_BYTES = 4, 60_000
TOPICS = ["a.x", "a.y", "a.x.z", "b", "c"]
PATTERNS = [*TOPICS, "a.*", "a.>", ">", "*"]


@dataclass
class Published:
    offset: int
    topic: str
    key: str | None
    text: str
    size: int
    evicted: bool = False
    unsuperseded: bool = False  # there was no later record of its key when it was evicted

    @property
    def even(self) -> bool:
        return is_even(self.text)


def is_even(text: str) -> bool:
    return int(text.split(maxsplit=1)[0]) % 2 == 0


def even(record) -> bool:
    return is_even(record.event.data)


@dataclass
class History:
    """Everything that was published, and whether a history of these limits still has it."""

    records: list[Published] = field(default_factory=list)

    def append(self, record: Published) -> None:
        self.records.append(record)
        kept = [r for r in self.records if r.topic == record.topic and not r.evicted]
        while len(kept) > HISTORY or sum(r.size for r in kept) > HISTORY_BYTES:
            gone = kept.pop(0)
            gone.evicted = True
            gone.unsuperseded = gone.key is None or all(r.key != gone.key for r in kept)

    @property
    def end(self) -> int:
        return len(self.records)


class Client(Sink):
    """A stream with the records that it must still receive. Errors are collected: raising here would end the stream."""

    def __init__(self, history: History, topics, on_gap, select, room, encoder, after=0) -> None:
        super().__init__(room, encoder)
        self.coding = encoder
        self.history = history
        self.topics = dict.fromkeys(topics, after)  # and the offset after which each counts
        self.on_gap, self.select = on_gap, select
        self.last = -1
        self.reported_through = 0
        self.conflates = False
        self.open = True
        self.due = [r for r in history.records if r.offset > after and self.wants(r)]
        self.ephemeral: dict[str, bool] = {}  # those it may receive, and whether it must
        self.wrong: list[str] = []
        self.note_evictions()

    def wants(self, record: Published) -> bool:
        return any(matches(p, record.topic) and record.offset > since for p, since in self.topics.items())

    def note_evictions(self) -> None:
        self.conflates = self.on_gap == "conflate" and (self.conflates or any(r.evicted for r in self.due))

    # Receiving.

    def received(self, frames: list[Event]) -> None:
        super().received(frames)
        if not self.open:
            self.wrong.append(f"{frames} after its end")
        for frame in frames:
            offset = None if frame.id is None else int(frame.id.rpartition("-")[2])
            if offset is not None and offset <= self.last:
                self.wrong.append(f"{offset} after {self.last}")
            if frame.name == "gap":
                self.receive_gap(json.loads(frame.data))
            elif offset is None:
                self.receive_ephemeral(frame.data)
            elif frame.data is not None:
                self.receive_record(offset, frame.data)
            self.last = self.last if offset is None else offset

    def missing(self, record: Published) -> bool:
        """Return whether a gap must be reported if the record is not received."""
        return record.evicted and record.offset > self.reported_through and (record.unsuperseded or not self.conflates)

    def may_be_skipped(self, record: Published) -> bool:
        """Return whether the record need not be received."""
        if self.select is not None and not record.even:
            return True
        if record.evicted:
            return not self.missing(record)
        return self.conflates and record.key is not None and any(
            r.offset > record.offset and (r.topic, r.key) == (record.topic, record.key)
            for r in self.due if self.select is None or r.even
        )  # fmt: skip

    def receive_gap(self, data: dict[str, object]) -> None:
        gone = [r.offset for r in self.due if self.missing(r)]
        if not gone or data["reason"] != "evicted":
            self.wrong.append(f"unnecessary gap {data}")
        self.reported_through = max([self.reported_through, *gone])

    def receive_ephemeral(self, text: str) -> None:
        if self.ephemeral.pop(text, None) is None:
            self.wrong.append(f"ephemeral {text[:9]} repeated or not subscribed")

    def receive_record(self, offset: int, text: str) -> None:
        record = self.history.records[offset - 1]
        if record not in self.due or record.text != text or (self.select is not None and not record.even):
            self.wrong.append(f"{offset} repeated or not subscribed")
        self.skip([r for r in self.due if r.offset < offset])
        self.due = [r for r in self.due if r.offset > offset]

    def skip(self, records: list[Published]) -> None:
        self.wrong += [f"{record.offset} is missing" for record in records if not self.may_be_skipped(record)]

    def caught_up(self) -> None:
        """Check that everything that was published so far was received."""
        self.skip(self.due)
        self.due, self.conflates = [], False
        self.wrong += [f"ephemeral {text[:9]} is missing" for text, must in self.ephemeral.items() if must]
        self.ephemeral.clear()


class Delivery(RuleBasedStateMachine):
    """A Hub with streams. Rules add actions, which run in one turn of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(compression, "MIN_SHARED", 2)  # there are only a few clients
        self.loop = asyncio.new_event_loop()
        self.hub = Hub(history=HISTORY, history_bytes=HISTORY_BYTES, history_age=None)
        self.history = History()
        self.clients: list[Client] = []
        self.actions = []
        self.texts = 0

    numbers = st.integers(0, 7)
    patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2)
    turns = st.sampled_from([0, 0, 1, 1, 2])  # to wait for after the action; with 0 the next action is in the same turn
    bursts = st.lists(st.tuples(st.sampled_from(TOPICS), st.sampled_from([None, "k", "k", "l"])), max_size=9)
    sizes = st.sampled_from([0, 0, 0, 9_000, 40_000])

    @rule(burst=bursts, size=sizes, ephemeral=st.sampled_from([False, False, False, True]), turns=turns)
    def publish(self, burst, size, ephemeral, turns):
        for topic, key in burst:
            self.actions.append(partial(self._publish, topic, key, size, ephemeral))
        self._then(turns)

    async def _publish(self, topic, key, size, ephemeral):
        text = f"{self.texts} {'x' * size}"
        self.texts += 1
        event_id = await self.hub.publish(topic, text, key=key, ephemeral=ephemeral)
        subscribed = [c for c in self.clients if c.open and any(matches(p, topic) for p in c.topics)]
        if ephemeral:
            assert event_id is None
            for client in subscribed:
                if client.select is None or is_even(text):
                    client.ephemeral[text] = client.subscription.live and client.room == float("inf")
        else:
            offset = self.history.end + 1
            assert event_id == f"{self.hub.history.epoch}-{offset}"
            size = len(b"id: %b\n" % event_id.encode() + encode(Event(text)))
            record = Published(offset, topic, key, text, size)
            self.history.append(record)
            for client in subscribed:
                client.due.append(record)
        for client in self.clients:
            client.note_evictions()

    @rule(
        topics=patterns,
        on_gap=st.sampled_from(["signal", "conflate", "close"]),
        selects=st.sampled_from([False, False, True]),
        room=st.sampled_from([float("inf"), float("inf"), 80, 300, 20_000]),
        encoder=st.sampled_from([sized, plain, compressed, compressed, compressed]),
        turns=turns,
    )
    def subscribe(self, topics, on_gap, selects, room, encoder, turns):
        select = even if selects else None
        self.actions.append(partial(self._subscribe, topics, on_gap, select, room, encoder, None))
        self._then(turns)

    async def _subscribe(self, topics, on_gap, select, room, encoder, after):
        offset = self.history.end if after is None else int(after.rpartition("-")[2])
        client = Client(self.history, topics, on_gap, select, room, encoder, offset)
        subscribe(self.hub, *topics, sink=client, after=after, select=select, on_gap=on_gap, prime=True)
        client.subscription.start()
        self.clients.append(client)

    def _on(self, number, action):
        async def act():
            # A flush that was scheduled before may have ended a stream.
            clients = [client for client in self.clients if client.open and not client.ends]
            if clients:
                await action(clients[number % len(clients)])

        self.actions.append(act)

    @rule(number=numbers, burst=bursts, size=sizes, turns=turns, resumes=st.booleans())
    def pause(self, number, burst, size, turns, resumes):
        async def pause(client):
            client.pause()
            client.ephemeral = dict.fromkeys(client.ephemeral, False)

        self._on(number, pause)
        self.publish(burst, size, False, turns)
        if resumes:
            self.resume(number, 0)

    @rule(number=numbers, turns=turns)
    def send_alone(self, number, turns):
        """Send a heartbeat, of which the group knows nothing."""

        async def send(client):
            client.write(client.encoder(HEARTBEAT), 0)

        self._on(number, send)
        self._then(turns)

    @rule(number=numbers, turns=turns)
    def resume(self, number, turns):
        async def resume(client):
            client.resume()

        self._on(number, resume)
        self._then(turns)

    @rule(number=numbers, topics=patterns, turns=turns)
    def add(self, number, topics, turns):
        async def add(client):
            client.subscriber.add(*topics)
            for topic in topics:
                client.topics.setdefault(topic, self.history.end)
            assert client.subscription.topics == frozenset(client.topics)

        self._on(number, add)
        self._then(turns)

    @rule(number=numbers, topics=patterns, turns=turns)
    def remove(self, number, topics, turns):
        async def remove(client):
            client.subscriber.remove(*topics)
            for topic in topics:
                client.topics.pop(topic, None)
            client.due = [record for record in client.due if client.wants(record)]
            assert client.subscription.topics == frozenset(client.topics)

        self._on(number, remove)
        self._then(turns)

    @rule(number=numbers, reconnects=st.booleans(), turns=turns)
    def close(self, number, reconnects, turns):
        async def close(client):
            if client.subscription.live:  # then it receives what was published before
                client.subscription.close()
                if client.room == float("inf"):
                    client.caught_up()
            else:
                client.subscription.close()
            client.open = False
            self.clients.remove(client)
            self.check(client)
            if client.coding is compressed:
                client.finish()
            if reconnects and client.last_event_id:
                await self._reconnect(client)

        self._on(number, close)
        self._then(turns)

    async def _reconnect(self, client):
        options = client.on_gap, client.select, client.room, client.coding, client.last_event_id
        await self._subscribe(list(client.topics), *options)

    def _then(self, turns):
        if turns:
            self.loop.run_until_complete(self._turn(turns))

    async def _turn(self, count):
        actions, self.actions = self.actions, []
        for action in actions:
            await action()
        for _ in range(count):
            await run_other_tasks(1)
            for client in list(self.clients):
                if client.ends:
                    assert client.ends == [(CloseReason.LAGGED, None)]
                    assert client.on_gap == "close"
                    assert any(client.missing(record) for record in client.due)
                    client.open = False
                    self.clients.remove(client)
                    await self._reconnect(client)
                elif client.subscription.live:
                    client.caught_up()
                self.check(client)
        self.count()

    def check(self, client):
        assert not client.wrong, (client.wrong, client.topics)

    def count(self):
        statistics = self.hub.statistics()
        kept = [record for record in self.history.records if not record.evicted]
        assert statistics.subscribers == len(self.clients)
        assert statistics.catching_up == sum(not client.subscription.live for client in self.clients)
        assert statistics.records == len(kept)
        assert statistics.bytes == sum(record.size for record in kept)
        assert statistics.topics == len({record.topic for record in kept})
        assert statistics.groups == len({(frozenset(c.topics), c.select, c.encoder) for c in self.clients})
        for topic in TOPICS:
            assert self.hub.subscribers(topic) == sum(any(matches(p, topic) for p in c.topics) for c in self.clients)

    def teardown(self):
        try:
            self.loop.run_until_complete(self._close_clients())
        finally:
            self.patch.undo()
            self.loop.close()

    async def _close_clients(self):
        await self._turn(1)
        async with asyncio.timeout(TIMEOUT):
            while any(client.paused or not client.subscription.live for client in self.clients):
                for client in self.clients:
                    client.resume()
                await self._turn(1)
        for client in self.clients:
            client.subscription.close()
            if client.coding is compressed:
                client.finish()
        self.clients.clear()
        self.count()


def test_delivery_when_every_limit_of_a_flush_and_of_a_read_is_reached(monkeypatch):
    """The limits on scanned topics and records and on the time of a flush are so low that each read hits them."""
    monkeypatch.setattr("aiohttp_interceptors.hub.history.MAX_TOPICS_SCANNED", 1)
    monkeypatch.setattr("aiohttp_interceptors.hub.history.MAX_RECORDS_SCANNED", 3)
    monkeypatch.setattr("aiohttp_interceptors.hub.dispatcher.CATCH_UP_BUDGET", 1e-9)
    run_state_machine_as_test(
        Delivery,
        settings=settings(max_examples=200, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
    )


def test_each_record_is_delivered_once_in_order_or_reported_as_a_gap():
    """Streams pause, change their topics, disconnect and reconnect meanwhile."""
    run_state_machine_as_test(
        Delivery,
        settings=settings(max_examples=200, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
    )


async def test_a_group_that_cannot_be_flushed_ends_and_the_others_are_flushed() -> None:
    def broken(frames: bytes) -> bytes:
        raise RuntimeError("cannot encode")

    hub = Hub()
    bad, good = await live(hub, "a", sink=Sink(encoder=broken)), await live(hub, "a")
    await hub.publish("a", "x")
    await run_other_tasks(3)
    assert good.texts == ["x"]
    assert [reason for reason, _ in bad.ends] == [CloseReason.ERROR]
