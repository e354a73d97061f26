"""Messages and payloads: which are refused, that encoding and decoding agree, and the bytes of version 1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.exceptions import EventTooLarge
from aiohttp_interceptors.hub.message import (
    MAX_IDEMPOTENCY_KEY,
    MAX_KEY_BYTES,
    DecodedPayload,
    Kind,
    Message,
    decode_payload,
    encode_payload,
)
from aiohttp_interceptors.sse import Event, encode

X = Event("x")


def make_message(event=X, key=None, *, ephemeral=False, idempotency_key=None, max_size=None):
    return Message("orders", event, key, ephemeral, idempotency_key, max_size)


def test_a_message_has_the_arguments_as_attributes():
    event = Event("x", name="created")
    message = make_message(event, "k", ephemeral=True, idempotency_key="order 7")
    assert message.event is event
    assert (message.topic, message.key, message.ephemeral, message.idempotency_key) == ("orders", "k", True, "order 7")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            {"event": Event("x", id="7")},
            ValueError,
            r"assigns the ids of events, and Event\(.*id='7'\) already has one",
        ),
        ({"event": Event("x", id="")}, ValueError, "the Hub assigns the ids of events"),
        ({"key": 7}, TypeError, "an event's key is a str or None, not 7"),
        ({"key": 0}, TypeError, "an event's key is a str or None, not 0"),
        ({"key": b"k"}, TypeError, "an event's key is a str or None, not b'k'"),
        ({"key": "k" * (MAX_KEY_BYTES + 1)}, ValueError, "an event's key has at most 65535 bytes, not 65536"),
        ({"key": "é" * (MAX_KEY_BYTES // 2 + 1)}, ValueError, "an event's key has at most 65535 bytes, not 65536"),
        ({"key": "😀" * (MAX_KEY_BYTES // 4 + 1)}, ValueError, "an event's key has at most 65535 bytes, not 65536"),
        ({"key": "k\ud800"}, ValueError, r"event's key is sent as UTF-8, which cannot encode 'k\\ud800': surrogates"),
        ({"idempotency_key": 7}, TypeError, "an idempotency_key is a str or None, not 7"),
        ({"idempotency_key": ""}, ValueError, "an idempotency_key is 1 to 200 printable characters, not ''"),
        ({"idempotency_key": "k" * 201}, ValueError, "an idempotency_key is 1 to 200 printable characters"),
        ({"idempotency_key": "a\nb"}, ValueError, r"an idempotency_key is 1 to 200 printable .* not 'a\\nb'"),
        ({"idempotency_key": "\ud800"}, ValueError, "an idempotency_key is 1 to 200 printable characters"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_an_invalid_argument_is_refused_with_its_value(arguments, error, match):
    with pytest.raises(error, match=match):
        make_message(**arguments)


@pytest.mark.parametrize(
    "key", ["", "k", "k" * MAX_KEY_BYTES, "é" * (MAX_KEY_BYTES // 2), "😀" * (MAX_KEY_BYTES // 4), "a\0\n\r b"]
)
def test_a_key_is_any_text_up_to_its_maximum_size(key):
    assert decode_payload(make_message(key=key).payload()).key == key


@pytest.mark.parametrize("key", ["k", " ", "order 7", "k" * MAX_IDEMPOTENCY_KEY, "é" * MAX_IDEMPOTENCY_KEY])
def test_an_idempotency_key_is_a_short_printable_text(key):
    assert make_message(idempotency_key=key).idempotency_key == key


@pytest.mark.parametrize("event", [Event("x" * 90), Event("é" * 45), Event("x" * 70, name="n" * 12, comment="c")])
def test_an_event_may_have_the_maximum_size_and_not_one_byte_more(event):
    size = len(encode(event))
    assert make_message(event, max_size=size)
    with pytest.raises(EventTooLarge, match=rf"an event of more than {size - 1} bytes was published under 'orders'"):
        make_message(event, max_size=size - 1)


def test_without_a_maximum_any_size_is_accepted():
    assert make_message(Event("x" * 3_000_000), max_size=None)


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    key=st.none() | st.text(max_size=10),
    ephemeral=st.booleans(),
    idempotency_key=st.none() | st.text(max_size=10),
)
def test_every_accepted_message_can_be_encoded(text, key, ephemeral, idempotency_key):
    try:
        message = make_message(Event(text), key, ephemeral=ephemeral, idempotency_key=idempotency_key)
    except ValueError:
        return
    assert decode_payload(message.payload()) == (encode(Event(text)), key, ephemeral, Kind.EVENT)


keys = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(frame=st.binary(), key=keys, ephemeral=st.booleans(), kind=st.sampled_from(Kind))
def test_decoding_inverts_encoding(frame, key, ephemeral, kind):
    payload = encode_payload(frame, key, ephemeral=ephemeral, kind=kind)
    assert decode_payload(payload) == DecodedPayload(frame, key, ephemeral, kind)


@pytest.mark.parametrize("length", [0, 1, 255, 256, MAX_KEY_BYTES])
def test_a_key_may_be_as_long_as_its_two_length_bytes_allow(length):
    key = "k" * length
    payload = encode_payload(b"data: x\n\n", key, ephemeral=False)
    assert decode_payload(payload) == DecodedPayload(b"data: x\n\n", key, False)


@pytest.mark.parametrize(
    ("payload", "decoded"),
    [
        (b"\x10data: x\n\n", DecodedPayload(b"data: x\n\n", None, False)),
        (b"\x11\x00\x01kdata: x\n\n", DecodedPayload(b"data: x\n\n", "k", False)),
        (b"\x12data: x\n\n", DecodedPayload(b"data: x\n\n", None, True)),
        (b"\x13\x00\x02\xc3\xa9data: x\n\n", DecodedPayload(b"data: x\n\n", "é", True)),
        (b"\x11\x00\x00data: x\n\n", DecodedPayload(b"data: x\n\n", "", False)),
        (b"\x14\x01data: x\n\n", DecodedPayload(b"data: x\n\n", None, False, Kind.FINAL)),
        (b"\x14\x01", DecodedPayload(b"", None, False, Kind.FINAL)),
        (b"\x15\x02\x00\x01kdata: x\n\n", DecodedPayload(b"data: x\n\n", "k", False, Kind.TOMBSTONE)),
        (b"\x16\x03{}", DecodedPayload(b"{}", None, True, Kind.CONTROL)),
        (b"\x14\x04", DecodedPayload(b"", None, False, Kind.ERASURE)),
        (b"\x15\x04\x00\x01kfinished", DecodedPayload(b"finished", "k", False, Kind.ERASURE)),
    ],
)
def test_the_bytes_of_version_1_are_these(payload, decoded):
    """Stored payloads outlive the release that wrote them."""
    assert encode_payload(decoded.frame, decoded.key, ephemeral=decoded.ephemeral, kind=decoded.kind) == payload
    assert decode_payload(payload) == decoded


@pytest.mark.parametrize("first", [number for number in range(256) if number not in range(0x10, 0x18)])
def test_any_other_first_byte_is_refused_and_shown(first):
    with pytest.raises(ValueError, match="was not written by a Hub, or by one of a later release") as raised:
        decode_payload(bytes([first]) + b"\0\1kdata: x\n\n")
    assert repr(bytes([first]))[:-1] in str(raised.value)


@pytest.mark.parametrize("flags", [0x14, 0x15, 0x16, 0x17])
@pytest.mark.parametrize("kind", [0, 5, 255])
def test_an_unknown_kind_is_refused_and_shown(flags, kind):
    with pytest.raises(ValueError, match="was not written by a Hub, or by one of a later release") as raised:
        decode_payload(bytes([flags, kind]) + b"data: x\n\n")
    assert repr(bytes([flags, kind])) in str(raised.value)


def test_an_empty_payload_is_refused():
    with pytest.raises(ValueError, match="was not written by a Hub"):
        decode_payload(b"")


@given(key=st.text(st.characters(exclude_categories=["Cs"]), max_size=9), kind=st.sampled_from(Kind), data=st.data())
def test_a_payload_that_was_cut_within_its_key_is_refused(key, kind, data):
    whole = encode_payload(b"", key, ephemeral=False, kind=kind)
    cut = whole[: data.draw(st.integers(1 + (kind is not Kind.EVENT), len(whole) - 1))]
    with pytest.raises(ValueError, match=f"a payload of {len(cut)} bytes was cut before byte"):
        decode_payload(cut)


def test_a_key_that_is_not_utf_8_is_refused():
    with pytest.raises(ValueError, match="utf-8"):
        decode_payload(b"\x11\x00\x01\xffdata: x\n\n")
