"""How a client that was away goes on where it was."""

from __future__ import annotations

import json
import urllib.parse

import pytest

from aiohttp_interceptors import Hub
from tests.listener import Listener, application, listen
from tests.loops import BOTH_LOOPS, event_loop_policy  # noqa: F401  # a fixture
from tests.waiting import until

pytestmark = BOTH_LOOPS


@pytest.fixture(autouse=True)
def quiet(logged):
    """Keep what is logged of streams to ourselves."""


async def fill(hub: Hub, count: int, *topics: str) -> list[str]:
    """Publish numbers, under these topics in turn, and return their ids."""
    topics = topics or ("a",)
    return [await hub.publish(topics[number % len(topics)], str(number)) for number in range(count)]


async def told(hub: Hub, listener: Listener) -> tuple[list[dict], list[str]]:
    """Return the gaps and the data of the records that its stream had to catch up with."""
    await until(lambda: hub.statistics().subscribers == 1 and hub.statistics().behind == 0)
    await hub.publish("a", "caught up", ephemeral=True)
    gaps, records = [], []
    while (event := await listener.event()).data != "caught up":
        if event.name == "gap":
            gaps.append(json.loads(event.data))
        else:
            records.append(event.data)
    await listener.close()
    await until(lambda: hub.statistics().subscribers == 0)
    return gaps, records


class TestAnId:
    async def test_is_followed_by_exactly_the_later_records(self, serve):
        """peer bug 47."""
        hub = Hub()
        server = await serve(application(hub, "a"))
        ids = await fill(hub, 20)
        for place, after in enumerate(ids):
            listener = await listen(server, after=after)
            assert await told(hub, listener) == ([], [str(number) for number in range(place + 1, 20)])

    async def test_just_before_the_oldest_record_misses_nothing_and_an_older_one_does(self, serve):
        """peer bug 48."""
        hub = Hub(history=3)
        server = await serve(application(hub, "a"))
        ids = await fill(hub, 10)
        for after, gaps in (ids[6], []), (ids[5], [{"reason": "evicted", "after": ids[5], "first": ids[7]}]):
            assert await told(hub, await listen(server, after=after)) == (gaps, ["7", "8", "9"])

    @pytest.mark.parametrize(
        "given",
        [
            b"garbage",
            b"-",
            b"0",
            b"-1",
            b"9" * 4000,
            b"caf\xe9",
            b"\xed\xa0\x80",
            b"\xff\xfe",
            "日本".encode(),
            b"' OR 1=1; DROP TABLE records; --",
            b"{EPOCH}-",
            b"{EPOCH}--1",
            b"{EPOCH}- 1",  # a blank at the end is none of the header's value
            b"{EPOCH}-1x",
            b"{EPOCH}-" + "١".encode(),
            b"{EPOCH}-" + b"9" * 20,
            b"{EPOCH}-" + b"9" * 8000,
            b"{EPOCH}-" + b"9" * 9000,
            b"{EPOCH}-1-1",
            b"x" * 33 + b"-1",
            b"\x00",
            b"{EPOCH}-1\x00",
        ],
        ids=lambda given: repr(given[:24]),
    )
    @pytest.mark.parametrize("where", ["header", "last_event_id", "lastEventId"])
    async def test_that_is_none_is_told_and_the_stream_begins_now(self, serve, given, where):
        """peer bug 49: unknown, malformed, hostile or huge: bounded work, never a 500."""
        hub = Hub()
        server = await serve(application(hub, "a"))
        ids = await fill(hub, 5)
        given = given.replace(b"{EPOCH}", hub.log.epoch.encode())
        raw = await server.connect("")
        if where == "header":
            raw.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + given + b"\r\n\r\n")
        else:
            quoted = urllib.parse.quote_from_bytes(given).encode()
            raw.writer.write(b"GET /?" + where.encode() + b"=" + quoted + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        listener = Listener(raw, await raw.until(b"\r\n\r\n"))
        if len(given) > 9000 or (where == "header" and b"\0" in given):
            assert listener.status == 400  # aiohttp's own bounds
        elif where == "header" and given.endswith(b" "):  # blanks at the end are no part of a header
            assert await listener.data(4) == ["1", "2", "3", "4"]
        else:
            assert listener.status == 200
            gap = await listener.event()
            assert (gap.name, gap.id) == ("gap", ids[-1])
            told_of = json.loads(gap.data)
            assert (told_of["reason"], told_of["first"]) == ("unknown", None)
            assert len(told_of["after"]) <= 128
            assert await told(hub, listener) == ([], [])
        await listener.close()

    async def test_that_is_blank_is_none_and_then_the_query_counts(self, serve):
        """peer bugs 51 and 52."""
        hub = Hub()
        server = await serve(application(hub, "a"))
        ids = await fill(hub, 3)
        for path, after, records in [
            ("/", "", []),
            ("/", None, []),
            ("/?last_event_id=", "", []),
            (f"/?last_event_id={ids[0]}", None, ["1", "2"]),
            (f"/?last_event_id={ids[0]}", "", ["1", "2"]),
            (f"/?last_event_id={ids[0]}", ids[1], ["2"]),
            ("/?last_event_id=garbage", ids[1], ["2"]),
            (f"/?lastEventId={ids[0]}", None, ["1", "2"]),
            (f"/?lastEventId={ids[0]}", "", ["1", "2"]),
            (f"/?lastEventId={ids[0]}", ids[1], ["2"]),
            (f"/?last_event_id={ids[0]}&lastEventId={ids[1]}", None, ["2"]),
            (f"/?lastEventId={ids[1]}&last_event_id=garbage", None, ["2"]),
            (f"/?lastEventId={ids[0]}&lastEventId={ids[1]}", None, ["2"]),
            (f"/?lastEventId=&last_event_id={ids[1]}", None, ["2"]),
        ]:
            listener = await listen(server, path, after=after)
            assert await told(hub, listener) == ([], records)

    async def test_of_another_life_of_the_hub_is_told_and_all_of_this_one_follows(self, serve):
        """peer bug 50: the same position there says nothing here."""
        old, new = Hub(), Hub()
        ids = await fill(old, 5)
        fresh = await fill(new, 8)
        listener = await listen(await serve(application(new, "a")), after=ids[3])
        gap = await listener.event()
        assert json.loads(gap.data) == {"reason": "foreign", "after": ids[3], "first": fresh[0]}
        assert await listener.data(8) == [str(number) for number in range(8)]
        await listener.close()

    async def test_of_the_future_is_told_and_the_stream_begins_now(self, serve):
        """peer bug 50."""
        hub = Hub()
        ids = await fill(hub, 5)
        listener = await listen(await serve(application(hub, "a")), after=hub.log.id_of(6))
        assert json.loads((await listener.event()).data)["reason"] == "future"
        assert listener.last_event_id == ids[-1]
        assert await told(hub, listener) == ([], [])

    async def test_of_the_first_frame_resumes_when_the_stream_was_cut_before_the_first_event(self, serve):
        """peer bug 57."""
        hub = Hub()
        server = await serve(application(hub, "a"))
        listener = await listen(server)
        await listener.frame()
        await listener.close()
        await until(lambda: hub.statistics().subscribers == 0)
        await hub.publish("a", "missed")
        listener = await listen(server, after=listener.last_event_id)
        assert await told(hub, listener) == ([], ["missed"])

    async def test_counts_for_each_topic_by_itself(self, serve):
        """peer bug 58: what is gone from a busy topic is no gap in a quiet one."""
        hub = Hub(history=5)
        quiet = await hub.publish("quiet", "one")
        ids = await fill(hub, 100, "busy")
        await hub.publish("quiet", "two")
        server = await serve(application(hub, lambda context: context.request.query["topics"].split(",")))
        listener = await listen(server, "/?topics=quiet,a", after=quiet)
        assert await told(hub, listener) == ([], ["two"])
        listener = await listen(server, "/?topics=quiet,busy,a", after=quiet)
        gaps = [{"reason": "evicted", "after": quiet, "first": ids[95]}]
        assert await told(hub, listener) == (gaps, ["95", "96", "97", "98", "99", "two"])

    async def test_resumes_topics_that_are_added_before_the_stream_begins(self, serve):
        hub = Hub()
        ids = await fill(hub, 5)
        app = application(hub, [], stream_ready=lambda subscriber, context: subscriber.add("a"))
        listener = await listen(await serve(app), after=ids[1])
        assert await told(hub, listener) == ([], ["2", "3", "4"])


async def test_a_gap_is_told_once_when_it_was_seen(serve):
    """A client that is cut after it returns with an id behind the gap; one that is cut before is told again."""
    hub = Hub(history=3)
    server = await serve(application(hub, "a"))
    await fill(hub, 10)
    for after in hub.log.id_of(1), "garbage", "0-5", hub.log.id_of(99):
        for cut in True, False:
            listener = await listen(server, after=after)
            gap = await listener.event()
            assert gap.name == "gap"
            assert gap.id is not None
            await listener.close()
            if cut:
                continue
            listener = await listen(server, after=gap.id)
            gaps, records = await told(hub, listener)
            assert gaps == []
            assert len(records) == (0 if json.loads(gap.data)["first"] is None else 3)


async def test_a_gap_is_told_once_although_what_is_missing_lies_between_many_batches(serve):
    """One topic has all of it, and the other, of a later time, has not."""
    hub = Hub(history=8)
    for number in range(8):
        await hub.publish("a", f"{number} {'x' * 20_000}")
    await fill(hub, 20, "b")
    gaps, records = await told(hub, await listen(await serve(application(hub, ["a", "b"])), after=hub.log.id_of(0)))
    ids = [hub.log.id_of(offset) for offset in (0, 1, 20)]  # of the twelve of b that are gone, the last
    assert gaps == [dict(zip(("reason", "after", "first", "last"), ("evicted", *ids), strict=True))]
    assert [data.split()[0] for data in records] == [*map(str, range(8)), *map(str, range(12, 20))]


async def test_ephemeral_events_have_no_id_are_not_kept_and_move_nobody(serve):
    """peer bug 54."""
    hub = Hub()
    server = await serve(application(hub, "a"))
    listener = await listen(server)
    await until(lambda: hub.statistics().behind == 0)
    record = await hub.publish("a", "record")
    assert await hub.publish("a", "typing", ephemeral=True) is None
    assert await listener.data(1) == ["record"]
    event = await listener.event()
    assert (event.data, event.id) == ("typing", None)
    assert listener.last_event_id == record
    await listener.close()
    listener = await listen(server, after=record)
    assert await told(hub, listener) == ([], [])


async def test_what_is_more_than_many_batches_comes_to_its_end(serve):
    """peer bug 53: to a client that reads it in small pieces."""
    hub = Hub(history=20_000, history_bytes=None)
    events = [f"{number} {'x' * (number % 300)}" for number in range(8000)]
    for event in events:
        await hub.publish("a", event)
    listener = await listen(await serve(application(hub, ["a", "b"])), after=hub.log.id_of(0))
    seen = []
    while len(seen) < len(events):
        seen += [frame.data for frame in await listener.read(10_000) if frame.data is not None]
    assert seen == events
    assert await told(hub, listener) == ([], [])
