"""What holds of the wire for every event, every cut and every text, with another parser as a witness."""

import json
from itertools import pairwise

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.sse import HEARTBEAT, MAX_RETRY, Decoder, Event, encode

patient = settings(deadline=None)  # a busy machine is no bug

HOSTILE = "\r\n\0:  \ufeff\x0b\x0c\x1c\x85\u2028\u2029\tdataeventidretry7😀"

sendable = st.text(st.one_of(st.sampled_from(HOSTILE), st.characters(exclude_categories=["Cs"])))
anything = st.text(st.one_of(st.sampled_from(HOSTILE + "\ud800"), st.characters()))
one_line = sendable.map(lambda text: text.replace("\r", "").replace("\n", ""))

events = st.builds(
    Event,
    data=st.none() | sendable | st.integers() | st.floats() | st.booleans(),
    name=st.none() | one_line,
    id=st.none() | one_line.map(lambda text: text.replace("\0", "")) | st.integers(),
    retry=st.none() | st.integers(0, MAX_RETRY),
    comment=st.none() | sendable,
)
heartbeats = st.none()
cuts = st.lists(st.floats(0, 1), max_size=12)


def frame(event):
    return HEARTBEAT if event is None else encode(event)


def chunks(stream, where):
    """Cut a stream at these parts of its length."""
    at = [0, *sorted(round(part * len(stream)) for part in where), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(at)]


def read(pieces):
    decoder = Decoder()
    return [event for piece in pieces for event in decoder.feed(piece)], decoder


def read_by_httpx_sse(pieces):
    """Read as httpx-sse 0.4 does, through its public interface: type, data, id and retry of what it yields."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=iter(pieces))
    return [(sse.event, sse.data, sse.id, sse.retry) for sse in EventSource(response).iter_sse()]


# What is sent is what is read.


@patient
@given(event=events, where=cuts)
@example(event=Event("\ufeff"), where=[])
@example(event=Event("\n", comment="\n"), where=[])
@example(event=Event(" ", " a ", " a "), where=[0.5])
def test_an_event_is_read_as_it_was_sent_however_it_was_cut(event, where):
    assert read(chunks(encode(event), where))[0] == [event]


@patient
@given(event=events)
def test_an_event_is_read_as_it_was_sent_byte_by_byte(event):
    stream = encode(event)
    assert read([stream[at : at + 1] for at in range(len(stream))])[0] == [event]


@patient
@given(sent=st.lists(events | heartbeats, max_size=8), where=cuts)
def test_a_stream_is_read_as_it_was_sent_however_it_was_cut(sent, where):
    received, decoder = read(chunks(b"".join(map(frame, sent)), where))
    assert decoder.heartbeats == sent.count(None)
    sent = [event for event in sent if event is not None]
    assert received == sent
    assert decoder.last_event_id == next((event.id for event in reversed(sent) if event.id is not None), "")
    assert decoder.retry == next((event.retry for event in reversed(sent) if event.retry is not None), None)


@patient
@given(event=events, retry=st.integers(0, MAX_RETRY))
def test_a_retry_that_rides_along_is_all_that_is_added(event, retry):
    (received,), decoder = read([encode(event, retry=retry)])
    assert (received.data, received.name, received.id, received.comment) == (
        event.data, event.name, event.id, event.comment
    )  # fmt: skip
    assert received.retry == decoder.retry == (retry if event.retry is None else event.retry)


@patient
@given(event=events)
def test_a_frame_has_one_end_and_one_kind_of_line_end(event):
    sent = encode(event)
    alone = (event.data, event.id, event.retry) == (None, None, None)
    assert sent.endswith(b"\n:\n" if alone else b"\n\n")
    assert sent.count(b"\n\n") == (not alone)
    assert b"\r" not in sent
    assert not sent.startswith(b"\xef\xbb\xbf")


# What another parser reads.


def as_httpx_sse_reads(sent):
    """Tell what httpx-sse yields of these frames, where it follows WHATWG 9.2.6 and where it does not."""
    last_id = ""
    for event in sent:
        if event is None or (event.data, event.id, event.retry) == (None, None, None):
            continue  # no blank line
        last_id = last_id if event.id is None else event.id
        if event.data is not None or last_id or event.retry is not None:
            yield event.name or "message", event.data or "", last_id, event.retry


@patient
@given(sent=st.lists(events | heartbeats, max_size=8), where=cuts)
@example(sent=[Event("a", id="1"), None, Event(comment=""), Event("b")], where=[])
def test_httpx_sse_reads_what_was_sent(sent, where):
    """An independent parser agrees on type, data, id, retry and order.

    httpx-sse 0.4.3 deviates from WHATWG 9.2.6 in what follows, and only the first concerns what we send:

    * a blank line also yields an event when there was no ``data``, if a ``retry`` was in the frame or an id was in
      this or any earlier one: heartbeats and comments alone have no blank line, and so are nothing to it;
    * a BOM at the start of the stream is not removed (we never send one, and begin no line with a producer's text);
    * ``retry`` is what ``int()`` takes, ``+1``, ``1_000`` and full-width digits among it (we send ASCII digits).

    It splits lines on CR, LF and CRLF only, as it should. (httpx's own ``iter_lines``, which older versions used,
    splits on U+2028 and its like.)
    """
    assert read_by_httpx_sse(chunks(b"".join(map(frame, sent)), where)) == list(as_httpx_sse_reads(sent))


line_ends = st.sampled_from(["\n", "\r", "\r\n"])
well_known_lines = [
    *("data", "data:", "data: ", "data:  x", "Data: x", " data: x", "foo: x", "x", ":", ": data: x"),
    *("id", "id:1", "id: 2\0", "id: 3", "event", "event: x", "event: "),
    *("retry", "retry: 10", "retry: 007", "retry: 1.5", "retry: -"),
]
foreign_lines = st.one_of(
    st.sampled_from(well_known_lines),
    one_line.filter(lambda line: line and not line.startswith(("retry", "\ufeff"))),
)
foreign_frames = st.lists(st.tuples(foreign_lines, line_ends), max_size=6)


@patient
@given(frames=st.lists(foreign_frames, max_size=5), end=line_ends, where=cuts)
def test_the_decoder_reads_foreign_streams_as_httpx_sse_does(frames, end, where):
    """Any lines with any line ends, restricted to what both agree on: see above.

    So each frame has a ``data`` line (httpx-sse yields others too), no ``retry`` is one that only ``int()`` takes, and
    the stream begins with no BOM.
    """
    stream = "".join(
        "".join(line + line_end for line, line_end in [*lines, ("data: last", end)]) + end for lines in frames
    ).encode()
    last_id, expected = "", []
    for event in read(chunks(stream, where))[0]:
        if event.data is None:
            continue  # a comment alone
        last_id = last_id if event.id is None else event.id
        expected.append((event.name or "message", event.data, last_id, event.retry))
    assert read_by_httpx_sse(chunks(stream, where)) == expected


pieces_of_a_stream = st.one_of(
    st.sampled_from([b"data", b"id", b"retry", b"event", b":", b" ", b"\r", b"\n", b"\0", b"7"]),
    st.sampled_from([b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xf0", b"\x80", b"\xff"]),
    st.binary(max_size=3),
)


@patient
@given(stream=st.lists(pieces_of_a_stream).map(b"".join), where=cuts)
def test_how_a_stream_was_cut_is_never_seen(stream, where):
    whole, piecewise = read([stream]), read(chunks(stream, where))
    assert piecewise[0] == whole[0]
    assert (piecewise[1].last_event_id, piecewise[1].retry) == (whole[1].last_event_id, whole[1].retry)


# What nobody can do.

INNOCENT = {"data": "price: 1", "name": "tick", "id": "41", "retry": 3000, "comment": "no. 41"}


@patient
@given(field=st.sampled_from(["data", "name", "id", "comment"]), text=anything, where=cuts)
@example(field="comment", text="a\ndata: stolen\n\n", where=[])
@example(field="data", text="a\rid: stolen\r\r", where=[])
@example(field="name", text="a\r\ndata: stolen", where=[])
@example(field="id", text="41\n\ndata: stolen\n\n", where=[])
@example(field="id", text="41\0", where=[])
def test_no_text_makes_another_field_or_another_event(field, text, where):
    """Peer bug 66: no text in any field creates a second field or event (CWE-93).

    Either the event is refused when it is built, or what arrives is one event with the text in its field, by our
    parser and by httpx-sse, and all other fields are untouched.
    """
    hostile = {**INNOCENT, field: text}
    refused = any("\ud800" <= character <= "\udfff" for character in text)
    if field in {"name", "id"}:
        refused = refused or "\n" in text or "\r" in text or (field == "id" and "\0" in text)
    if refused:
        with pytest.raises(ValueError, match=f"an event's {field} "):
            Event(**hostile)
        return
    event = Event(**hostile)
    (received,), decoder = read(chunks(encode(event), where))
    arrived = {name: getattr(received, name) for name in INNOCENT}
    inner = arrived.pop(field)
    assert arrived == {name: value for name, value in INNOCENT.items() if name != field}
    if field in {"data", "comment"}:
        assert inner == text.replace("\r\n", "\n").replace("\r", "\n")
    else:
        assert inner == (text if text.strip() or (field, text) == ("id", "") else None)
    assert decoder.last_event_id == (received.id or "")
    assert read_by_httpx_sse([encode(event)]) == [
        (received.name or "message", received.data, received.id or "", received.retry)
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
)


@patient
@given(value=json_values, where=cuts)
def test_json_arrives_as_one_line_of_data(value, where):
    event = Event.json(value)
    assert encode(event).count(b"\n") == 2
    (received,), _ = read(chunks(encode(event), where))
    assert json.loads(received.data) == value
