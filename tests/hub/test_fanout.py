"""What streams get of what is published, whatever they do meanwhile, against a list of all that was published."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from aiohttp_interceptors.hub.hub import Hub
from aiohttp_interceptors.sse.channel import CloseReason
from aiohttp_interceptors.sse.event import Event
from aiohttp_interceptors.sse.wire import encode
from tests.hub.outlet import Outlet, live, plain, sized, subscribe, turn
from tests.hub.reference import matches
from tests.waiting import PATIENCE

HISTORY, HISTORY_BYTES = 4, 60_000
TOPICS = ["a.x", "a.y", "a.x.z", "b", "c"]
PATTERNS = [*TOPICS, "a.*", "a.>", ">", "*"]


@dataclass
class Published:
    position: int
    topic: str
    key: str | None
    text: str
    size: int
    evicted: bool = False
    lost: bool = False  # no later one of its key was there when it was evicted

    @property
    def even(self) -> bool:
        return is_even(self.text)


def is_even(text: str) -> bool:
    return int(text.split(maxsplit=1)[0]) % 2 == 0


def even(record) -> bool:
    return is_even(record.event.data)


@dataclass
class History:
    """Everything that was published, and what of it a log of such bounds has."""

    records: list[Published] = field(default_factory=list)

    def append(self, record: Published) -> None:
        self.records.append(record)
        kept = [r for r in self.records if r.topic == record.topic and not r.evicted]
        while len(kept) > HISTORY or sum(r.size for r in kept) > HISTORY_BYTES:
            gone = kept.pop(0)
            gone.evicted = True
            gone.lost = gone.key is None or all(r.key != gone.key for r in kept)

    @property
    def end(self) -> int:
        return len(self.records)


class Client(Outlet):
    """A stream, what it is still to get, and what was wrong with what it got: to raise here would only end it."""

    def __init__(self, history: History, topics, on_gap, select, room, wrap, after=0) -> None:
        super().__init__(room, wrap)
        self.history = history
        self.topics = dict.fromkeys(topics, after)  # and the position from which it wants it
        self.on_gap, self.select = on_gap, select
        self.last = -1
        self.excused = 0
        self.conflates = False
        self.open = True
        self.due = [r for r in history.records if r.position > after and self.wants(r)]
        self.ephemeral: dict[str, bool] = {}  # that it may get, and whether it must
        self.wrong: list[str] = []
        self.note_evictions()

    def wants(self, record: Published) -> bool:
        return any(matches(p, record.topic) and record.position > since for p, since in self.topics.items())

    def note_evictions(self) -> None:
        self.conflates = self.on_gap == "conflate" and (self.conflates or any(r.evicted for r in self.due))

    # What it gets.

    def received(self, frames: list[Event]) -> None:
        super().received(frames)
        if not self.open:
            self.wrong.append(f"{frames} after its end")
        for frame in frames:
            position = None if frame.id is None else int(frame.id.rpartition("-")[2])
            if position is not None and position <= self.last:
                self.wrong.append(f"{position} after {self.last}")
            if frame.name == "gap":
                self.take_gap(json.loads(frame.data))
            elif position is None:
                self.take_ephemeral(frame.data)
            elif frame.data is not None:
                self.take(position, frame.data)
            self.last = self.last if position is None else position

    def missing(self, record: Published) -> bool:
        """Tell whether a gap is due for one that does not come."""
        return record.evicted and record.position > self.excused and (record.lost or not self.conflates)

    def is_lawful(self, record: Published) -> bool:
        """Tell whether a record need not come at all."""
        if self.select is not None and not record.even:
            return True
        if record.evicted:
            return not self.missing(record)
        return self.conflates and record.key is not None and any(
            r.position > record.position and (r.topic, r.key) == (record.topic, record.key)
            for r in self.due if self.select is None or r.even
        )  # fmt: skip

    def take_gap(self, told: dict[str, object]) -> None:
        gone = [r.position for r in self.due if self.missing(r)]
        if not gone or told["reason"] != "evicted":
            self.wrong.append(f"gap without need {told}")
        self.excused = max([self.excused, *gone])

    def take_ephemeral(self, text: str) -> None:
        if self.ephemeral.pop(text, None) is None:
            self.wrong.append(f"ephemeral {text[:9]} again or for others")

    def take(self, position: int, text: str) -> None:
        record = self.history.records[position - 1]
        if record not in self.due or record.text != text or (self.select is not None and not record.even):
            self.wrong.append(f"{position} again or for others")
        self.pass_by([r for r in self.due if r.position < position])
        self.due = [r for r in self.due if r.position > position]

    def pass_by(self, records: list[Published]) -> None:
        self.wrong += [f"{record.position} is missing" for record in records if not self.is_lawful(record)]

    def rest(self) -> None:
        """Note that it has all that it will get of what was published."""
        self.pass_by(self.due)
        self.due, self.conflates = [], False
        self.wrong += [f"ephemeral {text[:9]} is missing" for text, must in self.ephemeral.items() if must]
        self.ephemeral.clear()


class Delivery(RuleBasedStateMachine):
    """A Hub with streams. Rules say what happens in a turn of the event loop, before anything else gets to run."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.hub = Hub(history=HISTORY, history_bytes=HISTORY_BYTES, history_age=None)
        self.history = History()
        self.clients: list[Client] = []
        self.actions = []
        self.texts = 0

    numbers = st.integers(0, 7)
    patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2)
    turns = st.sampled_from(
        [0, 0, 1, 1, 2]
    )  # of the event loop, when this is done; with none, more is done in this one
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
        hearing = [c for c in self.clients if c.open and any(matches(p, topic) for p in c.topics)]
        if ephemeral:
            assert event_id is None
            for client in hearing:
                if client.select is None or is_even(text):
                    client.ephemeral[text] = client.subscription.live and client.room == float("inf")
        else:
            position = self.history.end + 1
            assert event_id == f"{self.hub.log.epoch}-{position}"
            size = len(b"id: %b\n" % event_id.encode() + encode(Event(text)))
            record = Published(position, topic, key, text, size)
            self.history.append(record)
            for client in hearing:
                client.due.append(record)
        for client in self.clients:
            client.note_evictions()

    @rule(
        topics=patterns,
        on_gap=st.sampled_from(["signal", "conflate", "close"]),
        selects=st.sampled_from([False, False, True]),
        room=st.sampled_from([float("inf"), float("inf"), 80, 300, 20_000]),
        wrap=st.sampled_from([sized, sized, plain]),
        turns=turns,
    )
    def subscribe(self, topics, on_gap, selects, room, wrap, turns):
        select = even if selects else None
        self.actions.append(partial(self._subscribe, topics, on_gap, select, room, wrap, None))
        self._then(turns)

    async def _subscribe(self, topics, on_gap, select, room, wrap, after):
        position = self.history.end if after is None else int(after.rpartition("-")[2])
        client = Client(self.history, topics, on_gap, select, room, wrap, position)
        subscribe(self.hub, *topics, outlet=client, after=after, select=select, on_gap=on_gap, prime=True)
        client.subscription.start()
        self.clients.append(client)

    def _on(self, number, action):
        async def act():
            # A flush that was put off runs before this one's turn, and may have ended a stream.
            clients = [client for client in self.clients if client.open and not client.ends]
            if clients:
                await action(clients[number % len(clients)])

        self.actions.append(act)

    @rule(number=numbers, burst=bursts, size=sizes, turns=turns, returns=st.booleans())
    def pause(self, number, burst, size, turns, returns):
        async def pause(client):
            client.pause()
            client.ephemeral = dict.fromkeys(client.ephemeral, False)

        self._on(number, pause)
        self.publish(burst, size, False, turns)
        if returns:
            self.resume(number, 0)

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

    @rule(number=numbers, comes_back=st.booleans(), turns=turns)
    def close(self, number, comes_back, turns):
        async def close(client):
            if client.subscription.live:  # what was published before is for it too
                client.subscription.close()
                if client.room == float("inf"):
                    client.rest()
            else:
                client.subscription.close()
            client.open = False
            self.clients.remove(client)
            self.check(client)
            if comes_back and client.last_event_id:
                await self._return(client)

        self._on(number, close)
        self._then(turns)

    async def _return(self, client):
        options = client.on_gap, client.select, client.room, client.wrap, client.last_event_id
        await self._subscribe(list(client.topics), *options)

    def _then(self, turns):
        if turns:
            self.loop.run_until_complete(self._turn(turns))

    async def _turn(self, count):
        actions, self.actions = self.actions, []
        for action in actions:
            await action()
        for _ in range(count):
            await turn()
            for client in list(self.clients):
                if client.ends:
                    assert client.ends == [(CloseReason.LAGGED, None)]
                    assert client.on_gap == "close"
                    assert any(client.missing(record) for record in client.due)
                    client.open = False
                    self.clients.remove(client)
                    await self._return(client)
                elif client.subscription.live:
                    client.rest()
                self.check(client)
        self.count()

    def check(self, client):
        assert not client.wrong, (client.wrong, client.topics)

    def count(self):
        statistics = self.hub.statistics()
        kept = [record for record in self.history.records if not record.evicted]
        assert statistics.subscribers == len(self.clients)
        assert statistics.behind == sum(not client.subscription.live for client in self.clients)
        assert statistics.records == len(kept)
        assert statistics.bytes == sum(record.size for record in kept)
        assert statistics.topics == len({record.topic for record in kept})
        assert statistics.audiences == len({(frozenset(c.topics), c.select, c.wrap) for c in self.clients})
        for topic in TOPICS:
            assert self.hub.subscribers(topic) == sum(any(matches(p, topic) for p in c.topics) for c in self.clients)

    def teardown(self):
        try:
            self.loop.run_until_complete(self._wind_up())
        finally:
            self.loop.close()

    async def _wind_up(self):
        await self._turn(1)
        async with asyncio.timeout(PATIENCE):
            while any(client.paused or not client.subscription.live for client in self.clients):
                for client in self.clients:
                    client.resume()
                await self._turn(1)
        for client in self.clients:
            client.subscription.close()
        self.clients.clear()
        self.count()


def test_everybody_gets_the_same_when_a_turn_is_too_short_for_all_of_it(monkeypatch):
    """Few topics are too many to be looked at, few records are many, and there is time for one stream in a turn."""
    monkeypatch.setattr("aiohttp_interceptors.hub.log.RINGS", 1)
    monkeypatch.setattr("aiohttp_interceptors.hub.log.LOOKS", 3)
    monkeypatch.setattr("aiohttp_interceptors.hub.fanout.CATCHING_UP", 1e-9)
    run_state_machine_as_test(
        Delivery,
        settings=settings(max_examples=200, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
    )


def test_everybody_gets_each_record_of_its_topics_once_in_order_and_is_told_of_what_is_missing():
    """peer bugs 39, 44, 46, 47, 54 and 58, whoever pauses, changes topics, leaves and comes back meanwhile."""
    run_state_machine_as_test(
        Delivery,
        settings=settings(max_examples=200, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
    )


async def test_an_audience_that_cannot_be_flushed_ends_and_the_others_are_served() -> None:
    def broken(frames: bytes) -> bytes:
        raise RuntimeError("no wrapping")

    hub = Hub()
    bad, good = await live(hub, "a", outlet=Outlet(wrap=broken)), await live(hub, "a")
    await hub.publish("a", "x")
    await turn(3)
    assert good.texts == ["x"]
    assert [reason for reason, _ in bad.ends] == [CloseReason.ERROR]
