"""A record: what it holds, and what is shown of it."""

import pytest

from aiohttp_interceptors.hub.record import Record
from aiohttp_interceptors.sse.event import Event


def test_it_holds_what_it_was_made_of():
    event = Event("x")
    record = Record(7, "e-7", "orders", event, b"data: x\n\n", "k", 1.5)
    assert (record.position, record.id, record.topic, record.key, record.time) == (7, "e-7", "orders", "k", 1.5)
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
