"""The ID that a client resumes from: any text of any size, in the header and in the query."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors import Decoder, Hub, Snapshot
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub.epochs import EpochHistory
from aiohttp_interceptors.hub.record import MAX_ECHOED_ID, GapReason
from tests.hostile.client import send
from tests.hostile.profile import fuzz
from tests.hostile.requests import event_ids, growth
from tests.listener import EVENT_SOURCE, application, listen
from tests.waiting import until

MIB = 2**20
REASONS = {reason.value for reason in GapReason}


def request_of(event_id: bytes, form: str) -> bytes:
    """Return a request that resumes from an ID, in the header or in the query."""
    query = b"" if form == "header" else b"?%b=%b" % (form.encode(), quote_from_bytes(event_id, safe="").encode())
    header = b"Last-Event-ID: %b\r\n" % event_id if form == "header" else b""
    browser = EVENT_SOURCE.replace("\n", "\r\n").encode()
    return b"GET /finished%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b%b\r\n" % (query, header, browser)


def without_chunks(body: bytes) -> bytes:
    """Return what a chunked body contains."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        content, body = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return content


def test_any_id_resumes_or_gets_one_gap_event_with_its_beginning(runner, site):
    """It cannot become another field or event: what the client decodes is what the Hub says."""

    @fuzz(120)
    @given(event_id=event_ids, form=st.sampled_from(["header", "lastEventId", "last_event_id"]))
    def check(event_id, form):
        site.lines.clear()
        event_id = event_id.replace(b"known id", site.hub.history.id_of(1).encode())
        reply = runner.run(send(site, [request_of(event_id, form)], body=True))
        assert site.errors() == []
        if reply.status in (400, 204):  # aiohttp refuses it, or the client has everything
            return
        assert reply.is_stream
        for event in Decoder().feed(without_chunks(reply.body)):
            if event.name == "gap":
                gap = json.loads(event.data)
                assert set(gap) <= {"reason", "after", "first", "last"}
                assert gap["reason"] in REASONS
                assert len(gap["after"]) <= MAX_ECHOED_ID
            else:
                assert event.name is None
                assert event.data in ("last", None)
            assert event.id is None or event.id.startswith(site.hub.history.epoch)

    check()


@fuzz(300)
@given(event_id=st.text() | event_ids.map(lambda raw: raw.decode(errors="surrogateescape")), end=st.integers(0, 2**63))
def test_any_id_has_an_offset(event_id, end):
    epochs = EpochHistory("0123456789")
    epochs.start_epoch("abcdef0123", min(5, end))
    offset, reason = epochs.resolve(event_id, end)
    assert 0 <= offset <= end
    assert reason is None or isinstance(reason, GapReason)
    assert epochs.may_arrive(event_id, end) in (True, False)


@pytest.mark.parametrize("broker", [False, True])
async def test_an_id_of_10_mib_is_answered_at_once_and_not_repeated(serve, broker):
    """A server may be told to accept such headers."""
    hub = Hub(MemoryBroker(MemoryLog())) if broker else Hub()
    app = application(hub, "a")
    server = await serve(app, max_field_size=20 * MIB, max_line_size=20 * MIB)
    await until(lambda: hub.ready)
    for event_id in "x" * (10 * MIB), "0" * (10 * MIB), "0123456789-" + "9" * (10 * MIB), "é" * (5 * MIB):
        listener = await listen(server, after=event_id)
        frame = await listener.frame()
        assert frame.name == "gap"
        assert json.loads(frame.data)["after"] == event_id[:MAX_ECHOED_ID]
        assert len(listener.body) < 300 + 6 * MAX_ECHOED_ID
        assert not hub._pending._waiting
        await listener.close()
    await until(lambda: hub.statistics().subscribers == 0)


@pytest.mark.parametrize("size", [9_000, 10 * MIB])
def test_what_is_too_large_for_a_request_head_is_refused_and_leaves_nothing(runner, site, size):
    heads = {
        "header": b"Last-Event-ID: " + b"x" * size,
        "query": b"X: x",
        "cookies": b"Cookie: " + b"a=b; " * (size // 5),
        "headers": b"\r\n".join(b"Last-Event-ID: %d" % number for number in range(size // 20)),
        "name": b"x" * size + b": x",
    }
    before = runner.run(site.holdings())
    for where, head in heads.items():
        query = b"?lastEventId=" + b"x" * size if where == "query" else b""
        request = b"GET /fixed%b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (query, head)
        reply = runner.run(send(site, [request]))
        assert reply.status in (0, 400), where  # 0: closed while the client still sends
    assert growth(before, runner.run(site.holdings())) == {}
    assert site.errors() == []


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"\xed\xa0\x80", b"a\tb", "é".encode(), b"a, b, c", b"%00", b'"', b"0-1-2"]
)
async def test_bytes_that_are_not_an_id_are_reported_as_unknown(serve, raw):
    hub = Hub()
    server = await serve(application(hub, "a"))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nLast-Event-ID: %b\r\n\r\n" % raw)
    await reader.readuntil(b"\r\n\r\n")
    event = await reader.readuntil(b"\n\n")
    assert b'"reason":"unknown"' in event
    writer.close()


async def test_a_snapshot_with_an_id_that_is_none_of_the_hub_is_a_gap(serve, session):
    """The application may have read it from the request."""
    hub = Hub()
    app = application(hub, "a", snapshot=lambda context: Snapshot(["state"], id=context.request.query["id"]))
    server = await serve(app)
    for event_id in "%00", "x" * 2000, "0-1", "%0A":
        listener = await listen(server, f"/?id={event_id}")
        assert [(await listener.event()).name for _ in range(2)] == ["gap", None]
        await listener.close()
