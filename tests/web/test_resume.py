"""How a client resumes after a disconnect."""

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
    """Capture what streams log."""


async def fill(hub: Hub, count: int, *topics: str) -> list[str]:
    """Publish numbers under these topics in turn, and return their ids."""
    topics = topics or ("a",)
    return [await hub.publish(topics[number % len(topics)], str(number)) for number in range(count)]


async def gaps_and_data(hub: Hub, listener: Listener) -> tuple[list[dict], list[str]]:
    """Return the gaps and the data of the records that a resumed stream received."""
    await until(lambda: hub.statistics().subscribers == 1 and hub.statistics().catching_up == 0)
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


class TestLastEventId:
    async def test_exactly_the_later_records_follow(self, serve):
        hub = Hub()
        server = await serve(application(hub, "a"))
        ids = await fill(hub, 20)
        for index, after in enumerate(ids):
            listener = await listen(server, after=after)
            assert await gaps_and_data(hub, listener) == ([], [str(number) for number in range(index + 1, 20)])

    async def test_the_id_before_the_oldest_record_misses_nothing_and_an_older_one_gets_a_gap(self, serve):
        hub = Hub(history=3)
        server = await serve(application(hub, "a"))
        ids = await fill(hub, 10)
        for after, gaps in (ids[6], []), (ids[5], [{"reason": "evicted", "after": ids[5], "first": ids[7]}]):
            assert await gaps_and_data(hub, await listen(server, after=after)) == (gaps, ["7", "8", "9"])

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
            b"{EPOCH}- 1",  # a trailing blank is not part of the header's value
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
    async def test_an_invalid_id_gets_a_gap_and_the_stream_starts_at_the_end(self, serve, given, where):
        """Unknown, malformed, hostile or huge ids: the work is bounded, and there is no 500."""
        hub = Hub()
        server = await serve(application(hub, "a"))
        ids = await fill(hub, 5)
        given = given.replace(b"{EPOCH}", hub.history.epoch.encode())
        raw = await server.connect("")
        if where == "header":
            raw.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + given + b"\r\n\r\n")
        else:
            quoted = urllib.parse.quote_from_bytes(given).encode()
            raw.writer.write(b"GET /?" + where.encode() + b"=" + quoted + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        listener = Listener(raw, await raw.until(b"\r\n\r\n"))
        if len(given) > 9000 or (where == "header" and b"\0" in given):
            assert listener.status == 400  # aiohttp's limits
        elif where == "header" and given.endswith(b" "):  # the blank is stripped
            assert await listener.data(4) == ["1", "2", "3", "4"]
        else:
            assert listener.status == 200
            gap = await listener.event()
            assert (gap.name, gap.id) == ("gap", ids[-1])
            gap_data = json.loads(gap.data)
            assert (gap_data["reason"], gap_data["first"]) == ("unknown", None)
            assert len(gap_data["after"]) <= 128
            assert await gaps_and_data(hub, listener) == ([], [])
        await listener.close()

    async def test_a_blank_header_is_ignored_and_the_query_is_used(self, serve):
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
            assert await gaps_and_data(hub, listener) == ([], records)

    async def test_an_id_of_a_previous_run_gets_a_gap_and_all_records(self, serve):
        """The same offset has no meaning in another run."""
        old, new = Hub(), Hub()
        ids = await fill(old, 5)
        fresh = await fill(new, 8)
        listener = await listen(await serve(application(new, "a")), after=ids[3])
        gap = await listener.event()
        assert json.loads(gap.data) == {"reason": "foreign", "after": ids[3], "first": fresh[0]}
        assert await listener.data(8) == [str(number) for number in range(8)]
        await listener.close()

    async def test_a_future_id_gets_a_gap_and_the_stream_starts_at_the_end(self, serve):
        hub = Hub()
        ids = await fill(hub, 5)
        listener = await listen(await serve(application(hub, "a")), after=hub.history.id_of(6))
        assert json.loads((await listener.event()).data)["reason"] == "future"
        assert listener.last_event_id == ids[-1]
        assert await gaps_and_data(hub, listener) == ([], [])

    async def test_the_id_of_the_initial_frame_resumes_a_stream_without_events(self, serve):
        hub = Hub()
        server = await serve(application(hub, "a"))
        listener = await listen(server)
        await listener.frame()
        await listener.close()
        await until(lambda: hub.statistics().subscribers == 0)
        await hub.publish("a", "missed")
        listener = await listen(server, after=listener.last_event_id)
        assert await gaps_and_data(hub, listener) == ([], ["missed"])

    async def test_gaps_are_detected_per_topic(self, serve):
        """A record trimmed from a busy topic is no gap in a quiet one."""
        hub = Hub(history=5)
        first_id = await hub.publish("quiet", "one")
        ids = await fill(hub, 100, "busy")
        await hub.publish("quiet", "two")
        server = await serve(application(hub, lambda context: context.request.query["topics"].split(",")))
        listener = await listen(server, "/?topics=quiet,a", after=first_id)
        assert await gaps_and_data(hub, listener) == ([], ["two"])
        listener = await listen(server, "/?topics=quiet,busy,a", after=first_id)
        gaps = [{"reason": "evicted", "after": first_id, "first": ids[95]}]
        assert await gaps_and_data(hub, listener) == (gaps, ["95", "96", "97", "98", "99", "two"])

    async def test_topics_added_before_the_stream_starts_are_resumed(self, serve):
        hub = Hub()
        ids = await fill(hub, 5)
        app = application(hub, [], stream_ready=lambda subscriber, context: subscriber.add("a"))
        listener = await listen(await serve(app), after=ids[1])
        assert await gaps_and_data(hub, listener) == ([], ["2", "3", "4"])


async def test_a_gap_event_is_repeated_only_if_the_client_missed_it(serve):
    """A client that received the gap event resumes behind the gap; one that did not gets it again."""
    hub = Hub(history=3)
    server = await serve(application(hub, "a"))
    await fill(hub, 10)
    for after in hub.history.id_of(1), "garbage", "0-5", hub.history.id_of(99):
        for missed in True, False:
            listener = await listen(server, after=after)
            gap = await listener.event()
            assert gap.name == "gap"
            assert gap.id is not None
            await listener.close()
            if missed:
                continue
            listener = await listen(server, after=gap.id)
            gaps, records = await gaps_and_data(hub, listener)
            assert gaps == []
            assert len(records) == (0 if json.loads(gap.data)["first"] is None else 3)


async def test_a_gap_across_many_batches_is_sent_once(serve):
    """One topic is complete; another, which starts later, has lost records."""
    hub = Hub(history=8)
    for number in range(8):
        await hub.publish("a", f"{number} {'x' * 20_000}")
    await fill(hub, 20, "b")
    gaps, records = await gaps_and_data(
        hub, await listen(await serve(application(hub, ["a", "b"])), after=hub.history.id_of(0))
    )
    ids = [hub.history.id_of(offset) for offset in (0, 1, 20)]  # the last of the twelve records of b that were trimmed
    assert gaps == [dict(zip(("reason", "after", "first", "last"), ("evicted", *ids), strict=True))]
    assert [data.split()[0] for data in records] == [*map(str, range(8)), *map(str, range(12, 20))]


async def test_ephemeral_events_have_no_id_and_are_not_kept(serve):
    """They do not change the offset from which a client resumes."""
    hub = Hub()
    server = await serve(application(hub, "a"))
    listener = await listen(server)
    await until(lambda: hub.statistics().catching_up == 0)
    record = await hub.publish("a", "record")
    assert await hub.publish("a", "typing", ephemeral=True) is None
    assert await listener.data(1) == ["record"]
    event = await listener.event()
    assert (event.data, event.id) == ("typing", None)
    assert listener.last_event_id == record
    await listener.close()
    listener = await listen(server, after=record)
    assert await gaps_and_data(hub, listener) == ([], [])


async def test_a_long_history_is_sent_to_its_end(serve):
    """The client reads it in small pieces."""
    hub = Hub(history=20_000, history_bytes=None)
    events = [f"{number} {'x' * (number % 300)}" for number in range(8000)]
    for event in events:
        await hub.publish("a", event)
    listener = await listen(await serve(application(hub, ["a", "b"])), after=hub.history.id_of(0))
    seen = []
    while len(seen) < len(events):
        seen += [frame.data for frame in await listener.read(10_000) if frame.data is not None]
    assert seen == events
    assert await gaps_and_data(hub, listener) == ([], [])
