"""The comparison of the fail-over test: what counts as a loss or a repeat, and which of them a gap reports."""

from __future__ import annotations

import pytest

from aiohttp_interceptors import Decoder, Event
from aiohttp_interceptors.hub.record import Gap, GapReason
from aiohttp_interceptors.sse import encode
from tests.soak.failover_ledger import (
    Acknowledged,
    Received,
    ReceivedGap,
    compare,
    longest_pause,
    parse_event,
    text,
)


def acknowledged(number, event_id, time=None, *, took=0.1):
    time = float(number) if time is None else time
    return Acknowledged(number, event_id, time - took, time)


def received(number, event_id, time=None, *, process=0, connected=0.0):
    return Received(number, event_id, number + 0.01 if time is None else time, process, connected)


def gap(after, through, time, reason="truncated"):
    return ReceivedGap(reason, after, through, time)


ALL = [acknowledged(number, f"e-{number}") for number in range(1, 6)]


def receive(*numbers):
    return [received(number, f"e-{number}") for number in numbers]


def test_events_that_were_received_once_and_in_order_pass():
    result = compare(ALL, {"a": receive(1, 2, 3, 4, 5), "b": receive(1, 2, 3, 4, 5)})
    assert result.passed
    assert (result.acknowledged, result.delivered, result.missing, result.repeated) == (5, 10, 0, 0)


def test_an_event_that_one_client_did_not_receive_is_a_loss():
    result = compare(ALL, {"a": receive(1, 2, 3, 4, 5), "b": receive(1, 2, 4, 5)})
    assert not result.passed
    assert (result.missing, result.unreported_losses) == (1, 1)
    assert "b never received" in result.violations[0]


def test_an_event_that_was_not_acknowledged_need_not_be_received():
    assert compare(ALL[:4], {"a": receive(1, 2, 3, 4, 5), "b": receive(1, 2, 3, 4)}).passed


@pytest.mark.parametrize(
    ("after", "through", "time", "covered"),
    [
        ("e-2", "e-3", 6.0, True),
        ("e-3", "e-4", 6.0, False),  # about a later event
        ("e-1", "e-2", 6.0, False),  # about an earlier event
        ("e-2", "f-2", 6.0, True),  # the log continued in another epoch after e-2
        ("e-3", "f-3", 6.0, False),
        ("d-9", "e-4", 6.0, True),  # the client has an ID of another epoch, and records of this one are gone
        ("d-9", "e-2", 6.0, False),
        ("d-9", "f-4", 6.0, True),  # the epoch of a discarded log, which neither end names
        ("d-9", "f-4", 30.0, False),  # much later, so it has another reason
        ("garbage", "e-3", 6.0, True),
        ("e-2", "e-3", 2.5, False),  # received before the event was sent
    ],
)
def test_a_gap_covers_earlier_events_between_its_ends(after, through, time, covered):
    result = compare(ALL, {"a": [*receive(1, 2), gap(after, through, time), *receive(4, 5)]})
    assert result.missing == 1
    assert result.passed is covered


def test_an_event_that_an_old_primary_acknowledges_after_the_gap_is_a_loss():
    received_gap = gap("e-3", "f-3", 3.5)
    assert compare([acknowledged(4, "e-4", 3.6, took=0.2)], {"a": [received_gap]}).passed
    assert not compare([acknowledged(4, "e-4", 4.0, took=0.2)], {"a": [received_gap]}).passed


def test_a_repeat_needs_a_gap_before_it():
    result = compare(ALL, {"a": [*receive(1, 2, 3), *receive(2), *receive(4, 5)]})
    assert (result.passed, result.repeated, result.unreported_repeats) == (False, 1, 1)
    result = compare(ALL, {"a": [*receive(1, 2, 3), gap("e-3", "e-0", 3.5, "foreign"), *receive(1, 2, 3, 4, 5)]})
    assert (result.passed, result.repeated, result.unreported_repeats) == (True, 3, 0)


def test_a_gap_covers_each_repeat_once():
    foreign = gap("e-3", "e-0", 3.5, "foreign")
    result = compare(ALL, {"a": [*receive(1, 2, 3), foreign, *receive(1, 2), *receive(2), *receive(3, 4, 5)]})
    assert (result.passed, result.repeated, result.unreported_repeats) == (False, 4, 1)


def test_an_event_after_a_later_one_is_out_of_order():
    result = compare(ALL, {"a": receive(1, 3, 2, 4, 5)})
    assert (result.passed, result.disordered, result.repeated) == (False, 1, 0)


def test_only_some_violations_of_each_kind_are_shown():
    result = compare([acknowledged(number, f"e-{number}") for number in range(1, 50)], {"a": []})
    assert result.unreported_losses == 49
    assert len(result.violations) == 3


def test_the_delay_of_a_gap_is_measured_from_the_acknowledgement():
    result = compare(ALL, {"a": [*receive(1, 2), gap("e-2", "f-2", 9.0)]})
    assert result.passed
    assert result.max_report_delay == 6.0


def probes(*ready, interval=0.5):
    return [(number * interval, bool(value)) for number, value in enumerate(ready)]


@pytest.mark.parametrize(
    ("readiness", "connected", "late"),
    [
        (probes(*[1] * 20), 0.0, 4.0),
        (probes(1, 1, 1, 1, 0, *[1] * 20), 0.0, 0.0),  # the process reported that it was not ready
        (probes(1, 1), 0.0, 0.0),  # the process did not respond
        (probes(*[1] * 20), 4.0, 1.0),  # the client was not connected before
        (probes(*[1] * 20), 5.5, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_late_counts_only_while_the_process_is_ready_and_the_client_connected(readiness, connected, late):
    event = acknowledged(1, "e-1", 1.0)
    result = compare([event], {"a": [received(1, "e-1", 5.0, process=1, connected=connected)]}, {1: readiness})
    assert result.late == late
    assert result.passed


def item(event, event_id="e-7"):
    """Return the item of an event that was encoded and decoded."""
    decoder = Decoder()
    (decoded,) = decoder.feed(f"id: {event_id}\n".encode() + encode(event))
    return parse_event(decoded, decoder.last_event_id, 1.0, 0, 0.5)


def test_events_are_parsed_into_items():
    assert item(Event(text(3))) == Received(3, "e-7", 1.0, 0, 0.5)
    assert item(Gap(GapReason.TRUNCATED, "d-9", "e-5").event("gap")) == ReceivedGap("truncated", "d-9", "e-4", 1.0)
    assert item(Gap(GapReason.FOREIGN, "d-9").event("gap")) == ReceivedGap("foreign", "d-9", "e-7", 1.0)
    assert item(Gap(GapReason.EVICTED, "e-1", "e-5", "e-8").event("gap")) == ReceivedGap("evicted", "e-1", "e-8", 1.0)
    assert item(Event("bye", name="farewell")) is None
    with pytest.raises(ValueError, match="was not published"):
        item(Event("3 something else"))


def test_the_longest_pause_includes_start_and_end():
    assert longest_pause(ALL, 0.5, 5.5) == 1.0
    assert longest_pause(ALL, 0.5, 15.0) == 10.0
    assert longest_pause([], 1.0, 4.0) == 3.0
