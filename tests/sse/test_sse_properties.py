"""Properties of the wire format for all events, texts and chunk boundaries. httpx-sse is the reference decoder."""

import json
from itertools import pairwise

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.sse import HEARTBEAT, MAX_RETRY, Decoder, Event, encode

no_deadline = settings(deadline=None)  # the machine may be busy

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
split_points = st.lists(st.floats(0, 1), max_size=12)


def frame(event):
    return HEARTBEAT if event is None else encode(event)


def split(stream, points):
    """Split a stream into chunks, at fractions of its length."""
    at = [0, *sorted(round(point * len(stream)) for point in points), len(stream)]
    return [stream[start:stop] for start, stop in pairwise(at)]


def decode(chunks):
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)], decoder


def decode_with_httpx_sse(chunks):
    """Return the type, data, ID and retry of each event that httpx-sse 0.4 yields."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=iter(chunks))
    return [(sse.event, sse.data, sse.id, sse.retry) for sse in EventSource(response).iter_sse()]


# Round trips.


@no_deadline
@given(event=events, points=split_points)
@example(event=Event("\ufeff"), points=[])
@example(event=Event("\n", comment="\n"), points=[])
@example(event=Event(" ", " a ", " a "), points=[0.5])
def test_a_decoded_event_equals_the_encoded_one_for_any_chunks(event, points):
    assert decode(split(encode(event), points))[0] == [event]


@no_deadline
@given(event=events)
def test_a_decoded_event_equals_the_encoded_one_byte_by_byte(event):
    stream = encode(event)
    assert decode([stream[at : at + 1] for at in range(len(stream))])[0] == [event]


@no_deadline
@given(sent=st.lists(events | heartbeats, max_size=8), points=split_points)
def test_a_decoded_stream_equals_the_encoded_one_for_any_chunks(sent, points):
    received, decoder = decode(split(b"".join(map(frame, sent)), points))
    assert decoder.heartbeats == sent.count(None)
    sent = [event for event in sent if event is not None]
    assert received == sent
    assert decoder.last_event_id == next((event.id for event in reversed(sent) if event.id is not None), "")
    assert decoder.retry == next((event.retry for event in reversed(sent) if event.retry is not None), None)


@no_deadline
@given(event=events, retry=st.integers(0, MAX_RETRY))
def test_an_added_retry_changes_no_other_field(event, retry):
    (received,), decoder = decode([encode(event, retry=retry)])
    assert (received.data, received.name, received.id, received.comment) == (
        event.data, event.name, event.id, event.comment
    )  # fmt: skip
    assert received.retry == decoder.retry == (retry if event.retry is None else event.retry)


@no_deadline
@given(event=events)
def test_a_frame_has_one_blank_line_and_only_lf_line_ends(event):
    sent = encode(event)
    alone = (event.data, event.id, event.retry) == (None, None, None)
    assert sent.endswith(b"\n:\n" if alone else b"\n\n")
    assert sent.count(b"\n\n") == (not alone)
    assert b"\r" not in sent
    assert not sent.startswith(b"\xef\xbb\xbf")


# Comparison with httpx-sse.


def expected_of_httpx_sse(sent):
    """Return what httpx-sse yields, including its deviations from WHATWG HTML 9.2.6."""
    last_id = ""
    for event in sent:
        if event is None or (event.data, event.id, event.retry) == (None, None, None):
            continue  # no blank line
        last_id = last_id if event.id is None else event.id
        if event.data is not None or last_id or event.retry is not None:
            yield event.name or "message", event.data or "", last_id, event.retry


@no_deadline
@given(sent=st.lists(events | heartbeats, max_size=8), points=split_points)
@example(sent=[Event("a", id="1"), None, Event(comment=""), Event("b")], points=[])
def test_httpx_sse_decodes_what_was_encoded(sent, points):
    """An independent decoder agrees on type, data, ID, retry and order.

    httpx-sse 0.4.3 deviates from WHATWG HTML 9.2.6:

    * A blank line also yields an event without ``data``, if the frame has a ``retry`` or there was an ID in this frame
      or an earlier one. It ignores heartbeats and comments, because they have no blank line.
    * A BOM at the start of the stream is not removed. ``encode`` writes none, and starts no line with a user's text.
    * ``retry`` is parsed by ``int()``, which accepts ``+1``, ``1_000`` and full-width digits. ``encode`` writes ASCII
      digits.

    It splits lines at CR, LF and CRLF only, as specified.
    """
    assert decode_with_httpx_sse(split(b"".join(map(frame, sent)), points)) == list(expected_of_httpx_sse(sent))


line_ends = st.sampled_from(["\n", "\r", "\r\n"])
well_known_lines = [
    *("data", "data:", "data: ", "data:  x", "Data: x", " data: x", "foo: x", "x", ":", ": data: x"),
    *("id", "id:1", "id: 2\0", "id: 3", "event", "event: x", "event: "),
    *("retry", "retry: 10", "retry: 007", "retry: 1.5", "retry: -"),
]
other_lines = st.one_of(
    st.sampled_from(well_known_lines),
    one_line.filter(lambda line: line and not line.startswith(("retry", "\ufeff"))),
)
other_frames = st.lists(st.tuples(other_lines, line_ends), max_size=6)


@no_deadline
@given(frames=st.lists(other_frames, max_size=5), end=line_ends, points=split_points)
def test_the_decoder_agrees_with_httpx_sse_on_streams_of_other_servers(frames, end, points):
    """Any lines with any line ends, without the deviations listed above.

    Each frame has a ``data`` line, no ``retry`` is valid only for ``int()``, and the stream does not start with a BOM.
    """
    stream = "".join(
        "".join(line + line_end for line, line_end in [*lines, ("data: last", end)]) + end for lines in frames
    ).encode()
    last_id, expected = "", []
    for event in decode(split(stream, points))[0]:
        if event.data is None:
            continue  # only a comment
        last_id = last_id if event.id is None else event.id
        expected.append((event.name or "message", event.data, last_id, event.retry))
    assert decode_with_httpx_sse(split(stream, points)) == expected


fragments = st.one_of(
    st.sampled_from([b"data", b"id", b"retry", b"event", b":", b" ", b"\r", b"\n", b"\0", b"7"]),
    st.sampled_from([b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xf0", b"\x80", b"\xff"]),
    st.binary(max_size=3),
)


@no_deadline
@given(stream=st.lists(fragments).map(b"".join), points=split_points)
def test_chunk_boundaries_do_not_change_the_result(stream, points):
    whole, chunked = decode([stream]), decode(split(stream, points))
    assert chunked[0] == whole[0]
    assert (chunked[1].last_event_id, chunked[1].retry) == (whole[1].last_event_id, whole[1].retry)


# Injection.

VALID = {"data": "price: 1", "name": "tick", "id": "41", "retry": 3000, "comment": "no. 41"}


@no_deadline
@given(field=st.sampled_from(["data", "name", "id", "comment"]), text=anything, points=split_points)
@example(field="comment", text="a\ndata: injected\n\n", points=[])
@example(field="data", text="a\rid: injected\r\r", points=[])
@example(field="name", text="a\r\ndata: injected", points=[])
@example(field="id", text="41\n\ndata: injected\n\n", points=[])
@example(field="id", text="41\0", points=[])
def test_no_text_injects_a_field_or_an_event(field, text, points):
    """CWE-93: either the event is rejected, or both decoders return one event with the text in its field."""
    hostile = {**VALID, field: text}
    invalid = any("\ud800" <= character <= "\udfff" for character in text)
    if field in {"name", "id"}:
        invalid = invalid or "\n" in text or "\r" in text or (field == "id" and "\0" in text)
    if invalid:
        with pytest.raises(ValueError, match=f"an event's {field} "):
            Event(**hostile)
        return
    event = Event(**hostile)
    (received,), decoder = decode(split(encode(event), points))
    fields = {name: getattr(received, name) for name in VALID}
    decoded = fields.pop(field)
    assert fields == {name: value for name, value in VALID.items() if name != field}
    if field in {"data", "comment"}:
        assert decoded == text.replace("\r\n", "\n").replace("\r", "\n")
    else:
        assert decoded == (text if text.strip() or (field, text) == ("id", "") else None)
    assert decoder.last_event_id == (received.id or "")
    assert decode_with_httpx_sse([encode(event)]) == [
        (received.name or "message", received.data, received.id or "", received.retry)
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
)


@no_deadline
@given(value=json_values, points=split_points)
def test_json_is_one_line_of_data(value, points):
    event = Event.json(value)
    assert encode(event).count(b"\n") == 2
    (received,), _ = decode(split(encode(event), points))
    assert json.loads(received.data) == value
