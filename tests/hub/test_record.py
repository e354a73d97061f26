"""Records: their attributes, their repr, and the event that is decoded from the frame of a broker."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.hub.message import Message, decode_payload
from aiohttp_interceptors.hub.record import Record
from aiohttp_interceptors.sse import MAX_RETRY, Event

HOSTILE = "\r\n\0:  \ufeff\x0b\x0c\x1c\x85\u2028\u2029\tdataeventidretry7😀"

sendable = st.text(st.one_of(st.sampled_from(HOSTILE), st.characters(exclude_categories=["Cs"])))
publishable = st.builds(
    Event,
    data=st.none() | sendable | st.integers() | st.floats(),
    name=st.none() | sendable.map(lambda text: text.replace("\r", "").replace("\n", "")),
    retry=st.none() | st.integers(0, MAX_RETRY),
    comment=st.none() | sendable,
)


def replicated(event, offset):
    """Return the record that a process makes of the payload of another one. Offset 0 makes the event ephemeral."""
    frame, key, ephemeral, _ = decode_payload(Message("orders", event, "k", not offset, None, None).payload())
    if ephemeral:
        return Record(0, None, "orders", None, frame, key, 0.0)
    return Record(offset, f"e-{offset}", "orders", None, b"id: e-%d\n%b" % (offset, frame), key, 0.0)


def test_a_record_has_the_arguments_as_attributes():
    event = Event("x")
    record = Record(7, "e-7", "orders", event, b"data: x\n\n", "k", 1.5)
    assert (record.offset, record.id, record.topic, record.key, record.time) == (7, "e-7", "orders", "k", 1.5)
    assert record.event is event
    assert record.frame == b"data: x\n\n"


def test_the_repr_does_not_contain_the_frame():
    record = Record(7, "e-7", "orders", Event("x"), b"secret", "k", 1.5)
    assert repr(record) == "Record(id='e-7', topic='orders', event=Event(data='x'), key='k')"


def test_a_record_has_slots():
    record = Record(0, None, "orders", Event("x"), b"", None, 0.0)
    with pytest.raises(AttributeError):
        record.note = 1
    assert not hasattr(record, "__dict__")


@settings(deadline=None)
@given(event=publishable, offset=st.sampled_from([0, 1, 2**63 - 1]))
@example(event=Event(""), offset=0)
@example(event=Event("\ufeff"), offset=0)
@example(event=Event("id: e-7\n\ndata: x"), offset=0)
@example(event=Event(name="created"), offset=1)
@example(event=Event(comment=""), offset=1)
@example(event=Event(comment="\n"), offset=0)
@example(event=Event(retry=0), offset=0)
@example(event=Event("", name=" created ", retry=MAX_RETRY, comment="id: e-7"), offset=1)
def test_the_event_of_a_replicated_record_is_what_was_published(event, offset):
    assert replicated(event, offset).event == event


def test_the_event_of_a_replicated_record_is_decoded_once():
    record = replicated(Event("x"), 7)
    assert record.event is record.event


def test_the_repr_of_a_replicated_record_is_the_same():
    assert repr(replicated(Event("x"), 7)) == "Record(id='e-7', topic='orders', event=Event(data='x'), key='k')"
