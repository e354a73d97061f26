"""Gaps: the event that reports one, for any ID that a client may send."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.hub.record import MAX_ECHOED_ID, Gap, GapReason
from aiohttp_interceptors.sse import Decoder, Event, encode


@pytest.mark.parametrize("reason", ["evicted", "unknown", "foreign", "future", "truncated"])
def test_the_event_has_the_reason_and_the_ids_as_json(reason):
    event = Gap(GapReason(reason), "e-1", "e-5").event("gap")
    assert event == Event(f'{{"reason":"{reason}","after":"e-1","first":"e-5"}}', "gap")


def test_the_event_has_the_last_id_if_records_after_the_first_may_be_missing():
    event = Gap(GapReason.EVICTED, "e-1", "e-2", "e-7").event("gap")
    assert event.data == '{"reason":"evicted","after":"e-1","first":"e-2","last":"e-7"}'


def test_there_are_no_other_reasons():
    assert len(GapReason) == 5


def test_the_first_id_may_be_null():
    event = Gap(GapReason.FOREIGN, "e-1", None).event("lost")
    assert (event.name, json.loads(event.data)["first"]) == ("lost", None)


@settings(deadline=None)  # the machine may be busy
@given(after=st.text(st.characters() | st.sampled_from("\r\n\0\ud800\u2028\\\"'<"), max_size=2 * MAX_ECHOED_ID))
@example(after="\ud800" * MAX_ECHOED_ID)
@example(after="1\n\ndata: stolen\n\n")
@example(after="\0")
def test_an_id_of_a_client_cannot_break_the_frame(after):
    """An ID with line ends, or one that UTF-8 cannot carry, is echoed without an error."""
    (event,) = Decoder().feed(encode(Gap(GapReason.UNKNOWN, after, None).event("gap")))
    assert event.name == "gap"
    data = json.loads(event.data)
    assert data.keys() == {"reason", "after", "first"}
    assert data["after"] == "".join("?" if "\ud800" <= one <= "\udfff" else one for one in after[:MAX_ECHOED_ID])


def test_a_long_id_is_echoed_up_to_a_maximum_length():
    frame = encode(Gap(GapReason.UNKNOWN, "\U0001f600" * 10_000_000, None).event("gap"))
    assert len(frame) < 12 * MAX_ECHOED_ID + 100
