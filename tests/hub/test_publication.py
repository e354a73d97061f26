"""What is about to be published: what is refused, in which words, and that what is not can be sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.exceptions import EventTooLarge
from aiohttp_interceptors.hub.message import LONGEST_IDEMPOTENCY_KEY, MAX_KEY, Message, unpack
from aiohttp_interceptors.sse import Event, encode


def publication(event="x", key=None, *, ephemeral=False, idempotency_key=None, size=None):
    return Message("orders", event, key, ephemeral, idempotency_key, size)


def test_it_holds_what_was_given():
    event = Event("x", name="created")
    made = publication(event, "k", ephemeral=True, idempotency_key="order 7")
    assert made.event is event
    assert (made.topic, made.key, made.ephemeral, made.idempotency_key) == ("orders", "k", True, "order 7")


def test_text_is_an_event_with_that_data():
    assert publication("two\nlines").event == Event("two\nlines")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"event": 7}, TypeError, r"an Event or a str is published, not 7; Event\.json\(value\) makes one"),
        ({"event": None}, TypeError, "an Event or a str is published, not None"),
        ({"event": b"x"}, TypeError, "an Event or a str is published, not b'x'"),
        ({"event": Event("x", id="7")}, ValueError, r"the Hub gives events their ids, and Event\(.*id='7'\) has one"),
        ({"event": Event("x", id="")}, ValueError, "the Hub gives events their ids"),
        ({"event": "\ud800"}, ValueError, "UTF-8"),
        ({"key": 7}, TypeError, "an event's key is a str or None, not 7"),
        ({"key": 0}, TypeError, "an event's key is a str or None, not 0"),
        ({"key": b"k"}, TypeError, "an event's key is a str or None, not b'k'"),
        ({"key": "k" * (MAX_KEY + 1)}, ValueError, "an event's key has at most 65535 bytes, not 65536"),
        ({"key": "é" * (MAX_KEY // 2 + 1)}, ValueError, "an event's key has at most 65535 bytes, not 65536"),
        ({"key": "😀" * (MAX_KEY // 4 + 1)}, ValueError, "an event's key has at most 65535 bytes, not 65536"),
        ({"key": "k\ud800"}, ValueError, r"an event's key is sent as UTF-8, which cannot carry 'k\\ud800': surrogates"),
        ({"idempotency_key": 7}, TypeError, "an idempotency_key is a str or None, not 7"),
        ({"idempotency_key": ""}, ValueError, "an idempotency_key is 1 to 200 printable characters, not ''"),
        ({"idempotency_key": "k" * 201}, ValueError, "an idempotency_key is 1 to 200 printable characters"),
        ({"idempotency_key": "a\nb"}, ValueError, r"an idempotency_key is 1 to 200 printable .* not 'a\\nb'"),
        ({"idempotency_key": "\ud800"}, ValueError, "an idempotency_key is 1 to 200 printable characters"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_cannot_be_sent_is_refused_with_its_value(arguments, error, match):
    with pytest.raises(error, match=match):
        publication(**arguments)


@pytest.mark.parametrize("key", ["", "k", "k" * MAX_KEY, "é" * (MAX_KEY // 2), "😀" * (MAX_KEY // 4), "a\0\n\r b"])
def test_a_key_is_any_text_of_so_many_bytes(key):
    assert unpack(publication(key=key).payload()).key == key


@pytest.mark.parametrize("key", ["k", " ", "order 7", "k" * LONGEST_IDEMPOTENCY_KEY, "é" * LONGEST_IDEMPOTENCY_KEY])
def test_an_idempotency_key_is_a_short_line(key):
    assert publication(idempotency_key=key).idempotency_key == key


@pytest.mark.parametrize("event", ["x" * 90, "é" * 45, Event("x" * 70, name="n" * 12, comment="c")])
def test_an_event_of_as_many_bytes_as_are_allowed_is_taken_and_of_one_more_is_not(event):
    size = len(encode(event if isinstance(event, Event) else Event(event)))
    assert publication(event, size=size)
    with pytest.raises(EventTooLarge, match=rf"an event of more than {size - 1} bytes was published under 'orders'"):
        publication(event, size=size - 1)


def test_without_a_limit_any_size_is_taken():
    assert publication("x" * 3_000_000, size=None)


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    key=st.none() | st.text(max_size=10),
    ephemeral=st.booleans(),
    idempotency_key=st.none() | st.text(max_size=10),
)
def test_what_is_taken_can_be_sent(text, key, ephemeral, idempotency_key):
    try:
        taken = publication(text, key, ephemeral=ephemeral, idempotency_key=idempotency_key)
    except ValueError:
        return
    assert unpack(taken.payload()) == (encode(Event(text)), key, ephemeral)
