"""Entries of a broker's log that no Hub of this release wrote: they stop nothing, and keep nothing."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.hub import runs as runs_module
from aiohttp_interceptors.hub.message import Kind, decode_payload, encode_payload
from tests.hostile.profile import fuzz
from tests.hostile.requests import growth, json_values
from tests.hostile.site import Site
from tests.hub.watcher import quick
from tests.waiting import until, within

first_bytes = st.integers(0, 255) | st.sampled_from([0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x17])
frames = st.binary(max_size=30) | st.sampled_from([b"data: x\n\n", b"id: 1\ndata: x\n\n", b":\n", b"\n\n", b""])
keys = st.binary(max_size=4).map(lambda key: len(key).to_bytes(2, "big") + key) | st.just(b"\xff\xff")
payloads = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda first, kind, key, frame: bytes([first]) + kind + key + frame,
        first_bytes,
        st.binary(max_size=1),
        keys,
        frames,
    ),
)
topics = st.sampled_from(["news", "a.b", "_hub", "", "a b", ">", "*", "a..b", "\n", "x" * 300, "\ud800"]) | st.text(
    max_size=5
)

nodes = st.sampled_from(["n", "m", ""]) | json_values
pairs = st.lists(
    st.tuples(st.sampled_from(["news", ">"]) | json_values, st.just("ann") | json_values) | json_values, max_size=3
)
runs = st.lists(st.tuples(topics | json_values, json_values, json_values) | json_values, max_size=2)
MEMBERS = {
    "number": st.integers(0, 5) | json_values,
    "begins": st.booleans() | json_values,
    "ends": st.booleans() | json_values,
    "joined": pairs | json_values,
    "left": pairs | json_values,
    "to": st.just("") | json_values,
    "owner": st.just("ann") | json_values,
    "event": st.sampled_from([None, "data: x\n\n", "id: 1\n\n", "\ud800"]) | json_values,
    "topic": topics | json_values,
    "id": st.just("run") | json_values,
    "end_event": st.just("end") | json_values,
    "state": st.sampled_from(["ended", "failed", "cancelled"]) | json_values,
    "reason": json_values,
    "runs": runs | json_values,
}
KINDS = ["presence", "presence?", "disconnect", "run", "runs", "withdrawn", "cancel", "bye", "later"]
messages = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(KINDS) | json_values, "node": nodes}, optional=MEMBERS),
    st.fixed_dictionaries({"type": st.sampled_from(KINDS), "node": nodes, **MEMBERS}),
    json_values,
).map(lambda message: json.dumps(message).encode())
contents = st.one_of(messages, st.binary(max_size=10), st.integers(1, 50_000).map(lambda depth: b"[" * depth))
entries = st.one_of(
    st.tuples(topics, payloads),
    st.tuples(topics, contents.map(lambda content: encode_payload(content, None, ephemeral=True, kind=Kind.CONTROL))),
)
ODD_RUNS = [
    ("", "run", "end"),
    ("a b", "run", "end"),
    (">", "run", "end"),
    ("x" * 300, "run", "end"),
    ("\ud800", "run", "end"),
    (5, "run", "end"),
    ("a", 5, "end"),
    ("b", {}, "end"),
    ("c", "run", 5),
    ("d", "run", "two\nlines"),
    ("e", "run", "\ud800"),
    ("f", "run", None),
]
# What the entries themselves leave in the history and in the broker, and nodes until their lease has expired.
KEPT = {"History", "TopicHistory", "Record", "Tombstone", "Event", "TopicIndex", "OffsetIndex"}
KEPT |= {"Nodes", "Presence", "Runs", "_Execution", "Owners", "_Disconnect", "Replicator", "_Node"}


async def survives(site: Site, received: list[tuple[str, bytes]]) -> None:
    """Append entries to the log, and wait until the Hub has read them, and one that is right."""
    site.lines.clear()
    for topic, payload in received:
        site.log.append(topic, payload, None)
    await site.remote.publish("right", "right")
    await until(lambda: site.remote.history.end >= site.log.end)
    assert site.remote.ready
    assert site.errors() == []
    for line in site.lines:
        assert "\n" not in line.message


def test_any_entry_is_read_or_skipped_and_the_next_one_is_received(runner, site):
    @fuzz(150)
    @given(received=st.lists(entries, min_size=1, max_size=3))
    def check(received):
        runner.run(survives(site, received))

    runner.run(survives(site, [("news", b"")]))
    before = runner.run(site.holdings())
    reader, writer = runner.run(site.connect())
    writer.write(b"GET /remote HTTP/1.1\r\nHost: x\r\n\r\n")
    runner.run(reader.readuntil(b"data: state\n\n"))
    check()
    runner.run(site.remote.publish("news", "the last one"))
    assert b"data: the last one\n\n" in runner.run(within(_read_through(reader, b"data: the last one\n\n")))
    writer.close()
    grown = growth(before, runner.run(site.holdings()))
    assert {name for name in grown if name.partition(".")[0] not in KEPT} == set()


async def _read_through(reader, separator: bytes) -> bytes:
    read = b""
    while separator not in read:
        read += await reader.read(65536)
    return read


@fuzz(500)
@given(payload=payloads)
def test_a_payload_is_decoded_or_refused_with_a_value_error(payload):
    try:
        decoded = decode_payload(payload)
    except ValueError:
        return
    encoded = encode_payload(decoded.frame, decoded.key, ephemeral=decoded.ephemeral, kind=decoded.kind)
    assert decode_payload(encoded) == decoded


async def test_a_run_that_is_not_one_ends_with_its_node_without_an_error(monkeypatch, logged):
    """Each Hub publishes the end of the runs of a node that is dead."""
    quick(monkeypatch, lease_timeout=0.05)
    monkeypatch.setattr(runs_module, "MAX_ENDING_DELAY", 0.01)
    log = MemoryLog()
    hub = Hub(MemoryBroker(log))
    hub.open()
    await until(lambda: hub.ready)
    for number, (topic, run_id, end_event) in enumerate(ODD_RUNS):
        message = {"type": "run", "node": f"n{number}", "topic": topic, "id": run_id, "end_event": end_event}
        for each in message, {"type": "runs", "node": f"m{number}", "runs": [[topic, run_id, end_event]]}:
            content = json.dumps(each).encode()
            log.append("_hub", encode_payload(content, None, ephemeral=True, kind=Kind.CONTROL), None)
    await hub.publish("right", "right")
    await until(lambda: hub.history.end >= log.end)
    await until(lambda: not hub._nodes._last_seen)
    await until(lambda: hub.statistics().runs == 0 and not hub._runs._running)
    await hub.close()
    assert not [line for line in logged if "exc_info" in line]
