"""What a page is told of a gap, whatever it said that it had."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohttp_interceptors.hub.record import SHOWN, Gap, GapReason
from aiohttp_interceptors.sse import Decoder, Event, encode


@pytest.mark.parametrize("reason", ["evicted", "unknown", "foreign", "future"])
def test_it_is_an_event_whose_data_is_json_of_the_reason_and_the_ids(reason):
    event = Gap(GapReason(reason), "e-1", "e-5").event("gap")
    assert event == Event(f'{{"reason":"{reason}","after":"e-1","first":"e-5"}}', "gap")


def test_it_says_up_to_where_others_may_be_missing_if_some_are_not():
    event = Gap(GapReason.EVICTED, "e-1", "e-2", "e-7").event("gap")
    assert event.data == '{"reason":"evicted","after":"e-1","first":"e-2","last":"e-7"}'


def test_there_are_no_other_reasons():
    assert len(GapReason) == 5


def test_it_may_be_known_before_there_is_a_first_record():
    event = Gap(GapReason.FOREIGN, "e-1", None).event("lost")
    assert (event.name, json.loads(event.data)["first"]) == ("lost", None)


@settings(deadline=None)  # a busy machine is no bug
@given(after=st.text(st.characters() | st.sampled_from("\r\n\0\ud800\u2028\\\"'<"), max_size=2 * SHOWN))
@example(after="\ud800" * SHOWN)
@example(after="1\n\ndata: stolen\n\n")
@example(after="\0")
def test_whatever_id_a_client_sent_the_event_is_whole_and_tells_it_back(after):
    """Peer bug 49: an id that is hostile, or that UTF-8 cannot carry, breaks no frame and raises nothing."""
    (event,) = Decoder().feed(encode(Gap(GapReason.UNKNOWN, after, None).event("gap")))
    assert event.name == "gap"
    told = json.loads(event.data)
    assert told.keys() == {"reason", "after", "first"}
    assert told["after"] == "".join("?" if "\ud800" <= one <= "\udfff" else one for one in after[:SHOWN])


def test_of_an_id_of_ten_megabytes_a_line_is_told_back():
    """Peer bug 49: bounded work."""
    frame = encode(Gap(GapReason.UNKNOWN, "\U0001f600" * 10_000_000, None).event("gap"))
    assert len(frame) < 12 * SHOWN + 100
