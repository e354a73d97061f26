"""The wire format: ``encode``, and ``Decoder`` on streams of any origin.

Each stream of the tables is decoded whole, byte by byte, and split in two at each position.
"""

import sys
import time

import pytest

from aiohttp_interceptors.sse import HEARTBEAT, MAX_RETRY, Decoder, Event, encode, frame_with_id

BOM = "\ufeff"


def decode(*chunks):
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)], decoder


def splits(stream):
    """Return the ways in which a stream is split into chunks."""
    yield (stream,)
    yield tuple(stream[at : at + 1] for at in range(len(stream)))
    yield from ((stream[:at], stream[at:]) for at in range(len(stream)))
    yield tuple(part for at in range(len(stream)) for part in (b"", stream[at : at + 1], b""))


def as_message(event):
    """Return what a page receives: the event type and the data."""
    return event.name or "message", event.data


# Encoding.

ENCODED = [
    (Event("hi"), b"data: hi\n\n"),
    (Event("d", "n", "1"), b"event: n\ndata: d\nid: 1\n\n"),
    (Event("d", "n", "1", 5, "c"), b": c\nevent: n\ndata: d\nid: 1\nretry: 5\n\n"),
    (Event("d", "n"), b"event: n\ndata: d\n\n"),
    (Event("d", id="1"), b"data: d\nid: 1\n\n"),
    (Event("d", retry=5), b"data: d\nretry: 5\n\n"),
    (Event("d", comment="c"), b": c\ndata: d\n\n"),
    (Event("a\nb", id="1"), b"data: a\ndata: b\nid: 1\n\n"),
    (Event("", id=""), b"data: \nid: \n\n"),
    (Event(id="1"), b"id: 1\n\n"),
    (Event(retry=0), b"retry: 0\n\n"),
    (Event(comment=""), b": \n:\n"),
    (Event(comment="a\r\nb\rdata: c\n\nd"), b": a\n: b\n: data: c\n: \n: d\n:\n"),
    (Event(" x"), b"data:  x\n\n"),
    (Event("data: x"), b"data: data: x\n\n"),
    (Event(BOM + "x"), b"data: \xef\xbb\xbfx\n\n"),
]


@pytest.mark.parametrize(("event", "frame"), ENCODED)
def test_encode(event, frame):
    assert encode(event) == frame


def test_an_event_with_data_alone_is_a_message_without_an_id():
    events, decoder = decode(encode(Event("hi")))
    assert encode(Event("hi")) == b"data: hi\n\n"
    assert [as_message(event) for event in events] == [("message", "hi")]
    assert decoder.last_event_id == ""


def test_fields_are_written_in_a_fixed_order():
    assert encode(Event(id="1", data="d", name="n")) == b"event: n\ndata: d\nid: 1\n\n"


@pytest.mark.parametrize(
    ("event", "frame"),
    [
        (Event("d", " ", " "), b"data: d\n\n"),
        (Event("d", "", None), b"data: d\n\n"),
        (Event("d", id=""), b"data: d\nid: \n\n"),
        (Event("d", id=7), b"data: d\nid: 7\n\n"),
        (Event(0), b"data: 0\n\n"),
        (Event(False), b"data: False\n\n"),
    ],
)
def test_blank_fields_are_omitted_and_numbers_become_text(event, frame):
    """An empty ID is sent, because it resets the last event ID."""
    assert encode(event) == frame


@pytest.mark.parametrize("data", ["a\nb\nc", "a\r\nb\r\nc", "a\rb\rc", "a\rb\nc"])
@pytest.mark.parametrize("more", [{}, {"name": "n"}, {"id": "1"}, {"comment": "c"}])
def test_each_line_of_data_becomes_a_data_field(data, more):
    """LF, CRLF and a lone CR separate lines; the client receives LF."""
    frame = encode(Event(data, **more))
    assert b"data: a\ndata: b\ndata: c\n" in frame
    assert decode(frame)[0][0].data == "a\nb\nc"


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        ("a\n", b"data: a\ndata: \n\n"),
        ("\n", b"data: \ndata: \n\n"),
        ("a\n\n", b"data: a\ndata: \ndata: \n\n"),
        ("\na", b"data: \ndata: a\n\n"),
        ("a\n\nb", b"data: a\ndata: \ndata: b\n\n"),
    ],
)
def test_leading_trailing_and_inner_blank_lines_are_kept(data, frame):
    assert encode(Event(data)) == frame
    assert decode(frame)[0] == [Event(data)]


@pytest.mark.parametrize("other", list("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\0\t"))
def test_other_separators_do_not_end_a_line(other):
    data = f"a{other}b"
    assert encode(Event(data, data, comment=data)) == f": {data}\nevent: {data}\ndata: {data}\n\n".encode()
    assert decode(encode(Event(data, data, comment=data)))[0] == [Event(data, data, comment=data)]


@pytest.mark.parametrize(
    ("event", "frame"),
    [
        (Event(), b"data: \n\n"),
        (Event(None), b"data: \n\n"),
        (Event(""), b"data: \n\n"),
        (Event(name="n"), b"event: n\ndata: \n\n"),
    ],
)
def test_empty_data_becomes_one_empty_data_field(event, frame):
    """A client would not dispatch an event without data."""
    assert encode(event) == frame
    assert as_message(decode(frame)[0][0]) == (event.name or "message", "")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("field", ["name", "id"])
def test_a_line_end_in_name_or_id_cannot_inject_a_field(field, end):
    with pytest.raises(ValueError, match="the rest would be parsed as other fields"):
        encode(Event("x", **{field: f"a{end}data: stolen"}))


def test_frames_are_utf_8_without_a_byte_order_mark():
    assert encode(Event("ü€😀", "é", "😀")) == "event: é\ndata: ü€😀\nid: 😀\n\n".encode()


def test_retry_and_comment_are_sent_and_an_empty_id_resets_the_last_event_id():
    events, decoder = decode(encode(Event("a", id="1", retry=1500, comment="c")))
    assert events == [Event("a", id="1", retry=1500, comment="c")]
    assert (decoder.last_event_id, decoder.retry) == ("1", 1500)
    decoder.feed(encode(Event("b", id="")))
    assert (decoder.last_event_id, decoder.retry) == ("", 1500)


def test_extreme_values_can_be_encoded():
    assert encode(Event("\U0010ffff", "\U0010ffff", "\U0010ffff", MAX_RETRY, "\U0010ffff")).endswith(
        b"retry: 9007199254740991\n\n"
    )


@pytest.mark.parametrize(
    ("event", "frame"),
    [
        (Event("d"), b"data: d\nretry: 5\n\n"),
        (Event("a\nb"), b"data: a\ndata: b\nretry: 5\n\n"),
        (Event("d", retry=7), b"data: d\nretry: 7\n\n"),
        (Event("d", retry=0), b"data: d\nretry: 0\n\n"),
        (Event(id="1"), b"id: 1\nretry: 5\n\n"),
    ],
)
def test_retry_is_added_to_an_event_without_one(event, frame):
    assert encode(event, retry=5) == frame


def test_a_retry_of_zero_is_added():
    assert encode(Event("d"), retry=0) == b"data: d\nretry: 0\n\n"


def test_a_heartbeat_is_a_lone_colon_and_not_an_event():
    """Some clients would dispatch an empty event at a blank line."""
    assert HEARTBEAT == b":\n"
    events, decoder = decode(HEARTBEAT * 3)
    assert (events, decoder.heartbeats, decoder.last_event_id, decoder.retry) == ([], 3, "", None)


def test_heartbeats_do_not_change_the_next_event():
    decoder = Decoder()
    before = sys.getsizeof(decoder._comments)
    for _ in range(1000):
        assert decoder.feed(HEARTBEAT) == []
    assert sys.getsizeof(decoder._comments) == before
    assert decoder.feed(encode(Event("d"))) == [Event("d")]


def test_a_comment_has_no_blank_line_and_does_not_join_the_next_event():
    sent = [Event(comment="a"), Event(comment="b\n\nc"), Event("d"), Event("e", comment="f"), Event(comment="")]
    stream = b"".join(map(encode, sent))
    assert stream.count(b"\n\n") == 2
    events, decoder = decode(stream)
    assert (events, decoder.heartbeats) == (sent, 0)


def test_a_heartbeat_within_an_event_is_ignored():
    assert decode(b"data: a\n: b\n:\ndata: c\n\n")[0] == [Event("a\nc", comment="b")]


def test_an_id_can_be_prepended_to_a_comment():
    """The Hub prepends an ID to the frame of a published event."""
    for event in (Event("d"), Event(comment="c"), Event(comment="c\n\nd")):
        frame = frame_with_id("7", encode(event))
        (received,), decoder = decode(frame)
        assert received == Event(event.data, id="7", comment=event.comment)
        assert decoder.last_event_id == "7"


# Decoding. The tables contain the web platform tests (eventsource/format-*.any.js) and further cases.

STREAMS = {
    # stream: the events that are dispatched, as (type, data)
    "one": ("data: a\n\n", [("message", "a")]),
    "crlf": ("data: a\r\n\r\n", [("message", "a")]),
    "cr": ("data: a\r\r", [("message", "a")]),
    "all three line ends": ("data:a\rdata:b\ndata:c\r\ndata:d\n\n", [("message", "a\nb\nc\nd")]),
    "cr, then a frame that begins with lf": ("data: a\r\n\n", [("message", "a")]),
    "lf cr is two line ends": ("data: a\n\rdata: b\n\n", [("message", "a"), ("message", "b")]),
    "cr cr lf is two line ends": ("data: a\r\r\ndata: b\n\n", [("message", "a"), ("message", "b")]),
    "bom": (BOM + "data: a\n\n", [("message", "a")]),
    "bom twice": (BOM + BOM + "data: a\n\ndata: b\n\n", [("message", "b")]),
    "bom in the second line": ("data: a\n" + BOM + "data: b\n\n", [("message", "a")]),
    "bom in the second frame": ("data: a\n\n" + BOM + "data: b\n\n", [("message", "a")]),
    "bom in data": ("data:" + BOM + "a\n\n", [("message", BOM + "a")]),
    "bom alone": (BOM, []),
    "nothing": ("", []),
    "comment": (": data: a\n\ndata: b\n\n", [("message", "b")]),
    "comments among fields": (":\ndata: a\n:x\ndata: b\n: y:z\n\n", [("message", "a\nb")]),
    "long comment": (":" + "x" * 2048 + "\ndata: a\n\n", [("message", "a")]),
    "comment, then cr": (":\rdata: a\r\r", [("message", "a")]),
    "data without colon": ("data\n\n", [("message", "")]),
    "data empty": ("data:\n\n", [("message", "")]),
    "data with a blank": ("data: \n\n", [("message", "")]),
    "data twice without colon": ("data\ndata\n\n", [("message", "\n")]),
    "data of wpt": ("data:\n\ndata\ndata\n\ndata:test\n\n", [("message", ""), ("message", "\n"), ("message", "test")]),
    "one leading space is removed": ("data:  a\n\n", [("message", " a")]),
    "a leading tab is not": ("data:\ta\n\n", [("message", "\ta")]),
    "a trailing space stays": ("data: a \n\n", [("message", "a ")]),
    "colons in the value": ("data: a: b:c\n\n", [("message", "a: b:c")]),
    "space before the name": (" data: a\ndata: b\n\n", [("message", "b")]),
    "space after the name": ("data : a\ndata: b\n\n", [("message", "b")]),
    "case": ("Data: a\nDATA: b\ndata: c\nEvent: x\nID: 7\nRetry: 1\n\n", [("message", "c")]),
    "unknown fields": ("foo: a\ndata: b\nfoo\nda: c\ndatas: d\nevents: e\n\n", [("message", "b")]),
    "nul in a field name": ("data\0: a\ndata: b\n\n", [("message", "b")]),
    "nul in data": ("data: \0\n\n", [("message", "\0")]),
    "unicode line separators": ("data: a\u2028b\x85c\x0bd\x0ce\n\n", [("message", "a\u2028b\x85c\x0bd\x0ce")]),
    "type": ("event: test\ndata: a\n\ndata: b\n\n", [("test", "a"), ("message", "b")]),
    "type empty": ("event: \ndata: a\n\nevent:\ndata: b\n\nevent\ndata: c\n\n", [("message", x) for x in "abc"]),
    "type blank": ("event:  \ndata: a\n\n", [(" ", "a")]),
    "type twice": ("event: x\nevent: y\ndata: a\n\n", [("y", "a")]),
    "type emptied again": ("event: x\nevent:\ndata: a\n\n", [("message", "a")]),
    "type without data is reset": ("event: x\n\ndata: a\n\n", [("message", "a")]),
    "type after data": ("data: a\nevent: x\n\n", [("x", "a")]),
    "no data, no event": ("id: 1\n\nevent: x\n\nretry: 1\n\n\n\n\n", []),
    "pending at the end": ("data: a\n\ndata: b\n", [("message", "a")]),
    "pending in the middle of a line": ("data: a\n\ndata: b", [("message", "a")]),
    "blank lines between": ("\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [("message", "a"), ("message", "b")]),
    "astral": ("data: ü€😀\n\n", [("message", "ü€😀")]),
}


@pytest.mark.parametrize(("stream", "expected"), STREAMS.values(), ids=STREAMS)
def test_events_are_dispatched_as_in_a_browser(stream, expected):
    for chunks in splits(stream.encode()):
        assert [as_message(event) for event in decode(*chunks)[0] if event.data is not None] == expected, chunks


IDS = {
    # stream: the last event ID at the end, and the ID of each event
    "none": ("data: a\n\n", "", [None]),
    "one": ("id: 1\ndata: a\n\n", "1", ["1"]),
    "it persists": ("id: 1\ndata: a\n\ndata: b\n\n", "1", ["1", None]),
    "without data": ("id: 1\n\n", "1", ["1"]),
    "empty resets": ("id: 1\ndata: a\n\nid:\ndata: b\n\n", "", ["1", ""]),
    "without colon resets": ("id: 1\ndata: a\n\nid\ndata: b\n\n", "", ["1", ""]),
    "the last of two": ("id: 1\nid: 2\ndata: a\n\n", "2", ["2"]),
    "blank is an id": ("id:  \ndata: a\n\n", " ", [" "]),
    "nul is ignored": ("id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", "1", ["1", None]),
    "nul is ignored in front": ("id: 1\nid: \0\ndata: b\n\n", "1", ["1"]),
    "pending does not count": ("id: 1\ndata: a\n\nid: 2\ndata: b\n", "1", ["1"]),
    "pending does not reset": ("id: 1\ndata: a\n\nid\n", "1", ["1"]),
    "any text": ("id: …ü 😀\ndata: a\n\n", "…ü 😀", ["…ü 😀"]),
}


@pytest.mark.parametrize(("stream", "last", "ids"), IDS.values(), ids=IDS)
def test_the_last_event_id_is_set_at_the_end_of_an_event(stream, last, ids):
    for chunks in splits(stream.encode()):
        events, decoder = decode(*chunks)
        assert (decoder.last_event_id, [event.id for event in events]) == (last, ids), chunks


RETRIES = {
    # value of the field: the reconnection time, or None if the field is ignored
    "3000": 3000,
    "0": 0,
    "007": 7,
    "": None,
    " 1": None,  # one of two spaces is removed
    "1 ": None,
    "+1": None,
    "-1": None,
    "1.5": None,
    "1e3": None,
    "0x10": None,
    "1_000": None,
    "3000bogus": None,
    "１": None,
    "²": None,
    "٣": None,
    "9007199254740991": MAX_RETRY,
    "9007199254740992": MAX_RETRY,
    "9" * 5000: MAX_RETRY,  # int() refuses as many digits
    "0" * 5000 + "25": 25,
    "0" * 5000: 0,
    "0" * 5000 + "1" + "0" * 17: MAX_RETRY,
}


@pytest.mark.parametrize(("value", "expected"), RETRIES.items(), ids=[value[:20] for value in RETRIES])
def test_a_reconnection_time_consists_of_ascii_digits(value, expected):
    events, decoder = decode(f"retry: 1234\n\nretry: {value}\ndata: a\n\n".encode())
    assert decoder.retry == (1234 if expected is None else expected)
    assert events == [Event(retry=1234), Event("a", retry=expected)]


def test_a_reconnection_time_is_set_immediately():
    """WHATWG HTML 9.2.6 sets it when the field is processed, not at the end of the event."""
    events, decoder = decode(b"retry: 5\n")
    assert (events, decoder.retry) == ([], 5)


def test_without_a_retry_there_is_no_reconnection_time():
    assert decode(b"data: a\n\n")[1].retry is None


def test_a_retry_field_without_colon_is_ignored():
    assert decode(b"retry\n\n")[1].retry is None


FRAMES = {
    "heartbeat": (":\n", []),
    "heartbeat of others": (":\n\n", []),
    "comment of two lines": (": a\n:  b\n\n", [Event(comment="a\n b")]),
    "comment and data": (": a\ndata: b\n\n", [Event("b", comment="a")]),
    "id only": ("id: 1\n\n", [Event(id="1")]),
    "id and type only": ("id: 1\nevent: x\n\n", [Event(id="1")]),
    "retry only": ("retry: 1\n\n", [Event(retry=1)]),
    "type only": ("event: x\n\n", []),
    "unknown only": ("foo: x\n\n", []),
    "unknown with digits": ("foo: 12\nretries: 12\n\n", []),
    "empty type": ("event:\ndata: a\n\n", [Event("a")]),
    "empty": ("\n\n\n", []),
    "each has its own": (
        ": c\nevent: n\ndata: d\nid: i\nretry: 3\n\ndata: e\n\n",
        [Event("d", "n", "i", 3, "c"), Event("e")],
    ),
}


@pytest.mark.parametrize(("stream", "expected"), FRAMES.values(), ids=FRAMES)
def test_events_that_are_not_dispatched_are_returned_too(stream, expected):
    for chunks in splits(stream.encode()):
        assert decode(*chunks)[0] == expected, chunks


INVALID_UTF_8 = {
    "alone": (b"\xff", "\ufffd"),
    "start of two": (b"\xc3", "\ufffd"),
    "start of two, then another start": (b"\xc3\xc3\xbc", "\ufffdü"),
    "three of four": (b"\xf0\x9f\x98", "\ufffd"),
    "overlong": (b"\xc0\x80", "\ufffd\ufffd"),
    "surrogate": (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    "above unicode": (b"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"),
    "continuations": (b"\x80\xbf", "\ufffd\ufffd"),
}


@pytest.mark.parametrize(("data", "text"), INVALID_UTF_8.values(), ids=INVALID_UTF_8)
def test_invalid_utf_8_becomes_u_fffd_wherever_it_is_split(data, text):
    for chunks in splits(b"data: a" + data + b"z\nid: " + data + b"\n\n"):
        assert decode(*chunks)[0] == [Event(f"a{text}z", id=text)], chunks


def test_an_incomplete_character_at_the_end_is_discarded():
    assert decode(b"data: a\n\ndata: \xf0\x9f")[0] == [Event("a")]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ((b"data: a\r", b"\n", b"\n"), ["a"]),
        ((b"data: a\r", b"", b"\n\r", b"\ndata: b\n\n"), ["a", "b"]),
        ((b"data: a\r", b"\r", b"\n", b"data: b\n\n"), ["a", "b"]),
        ((b"data: a\r", b"\xc3", b"\xbc\n\n"), ["a"]),
        ((b"\xef", b"\xbb", b"\xbf", b"\r", b"\ndata: a\n\n"), ["a"]),
        ((b"\xef\xbb\xbf", b"\ndata: a\n\n"), ["a"]),
        ((b"", b"\xef\xbb\xbfdata: a\n\n"), ["a"]),
        ((b"\n", b"\xef\xbb\xbfdata: a\n\n"), []),
    ],
)
def test_a_line_end_or_a_byte_order_mark_may_be_split(chunks, expected):
    assert [event.data for event in decode(*chunks)[0]] == expected


def test_an_event_is_returned_as_soon_as_its_blank_line_arrives():
    decoder = Decoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\r") == [Event("a")]
    assert decoder.feed(b"\ndata: b\n") == []
    assert decoder.feed(b"\n") == [Event("b")]


def test_a_decoded_event_may_have_a_blank_name_and_id():
    """``Event()`` would drop them. A browser and ``encode`` do not."""
    (event,), _ = decode(b"event:  \ndata: a\nid:  \n\n")
    assert (event.name, event.id) == (" ", " ")
    assert decode(encode(event))[0] == [event]


def test_a_long_line_in_small_chunks_is_decoded_in_linear_time():
    def seconds(kilobytes):
        decoder, chunk = Decoder(), b"x" * 256
        began = time.process_time()
        decoder.feed(b"data: ")
        for _ in range(4 * kilobytes):
            decoder.feed(chunk)
        (event,) = decoder.feed(b"\n\n")
        assert len(event.data) == kilobytes * 1024
        return time.process_time() - began

    one = min(seconds(256) for _ in range(5))
    eight = min(seconds(8 * 256) for _ in range(3))
    assert eight < 24 * one  # 8 when linear, 64 when not
