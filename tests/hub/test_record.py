"""A record: what it holds, and what is shown of it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.hub.message import Message, unpack
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


def brought(event, offset):
    """Return the record that a process makes of what another one published; 0 is the place of an ephemeral event."""
    frame, key, ephemeral = unpack(Message("orders", event, "k", not offset, None, None).payload())
    if ephemeral:
        return Record(0, None, "orders", None, frame, key, 0.0)
    return Record(offset, f"e-{offset}", "orders", None, b"id: e-%d\n%b" % (offset, frame), key, 0.0)


def test_it_holds_what_it_was_made_of():
    event = Event("x")
    record = Record(7, "e-7", "orders", event, b"data: x\n\n", "k", 1.5)
    assert (record.offset, record.id, record.topic, record.key, record.time) == (7, "e-7", "orders", "k", 1.5)
    assert record.event is event
    assert record.frame == b"data: x\n\n"


def test_what_is_shown_tells_which_one_it_is_and_not_its_bytes():
    record = Record(7, "e-7", "orders", Event("x"), b"secret", "k", 1.5)
    assert repr(record) == "Record(id='e-7', topic='orders', event=Event(data='x'), key='k')"


def test_nothing_else_can_be_put_on_it_as_there_are_many():
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
def test_what_a_broker_brought_is_what_was_published(event, offset):
    assert brought(event, offset).event == event


def test_what_a_broker_brought_is_read_once_when_somebody_asks():
    record = brought(Event("x"), 7)
    assert record.event is record.event


def test_what_is_shown_of_it_is_the_same():
    assert repr(brought(Event("x"), 7)) == "Record(id='e-7', topic='orders', event=Event(data='x'), key='k')"
