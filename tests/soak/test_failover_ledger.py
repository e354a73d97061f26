"""The judge of the fail-over rig: what is a loss, what is a repeat, and which of them a client was told of."""

from __future__ import annotations

import pytest

from aiohttp_interceptors import Decoder, Event
from aiohttp_interceptors.hub.record import Gap, GapReason
from aiohttp_interceptors.sse import encode
from tests.soak.failover_ledger import Acknowledged, Received, Told, item_of, judge, longest_pause, text


def acknowledged(number, event_id, time=None, *, took=0.1):
    time = float(number) if time is None else time
    return Acknowledged(number, event_id, time - took, time)


def received(number, event_id, time=None, *, process=0, opened=0.0):
    return Received(number, event_id, number + 0.01 if time is None else time, process, opened)


def gap(after, reach, time, reason="truncated"):
    return Told(reason, after, reach, time)


ALL = [acknowledged(number, f"e-{number}") for number in range(1, 6)]


def came(*numbers):
    return [received(number, f"e-{number}") for number in numbers]


def test_all_that_came_once_and_in_order_holds():
    verdict = judge(ALL, {"a": came(1, 2, 3, 4, 5), "b": came(1, 2, 3, 4, 5)})
    assert verdict.holds
    assert (verdict.acknowledged, verdict.delivered, verdict.missing, verdict.repeated) == (5, 10, 0, 0)


def test_an_event_that_one_client_lacks_is_a_loss():
    verdict = judge(ALL, {"a": came(1, 2, 3, 4, 5), "b": came(1, 2, 4, 5)})
    assert not verdict.holds
    assert (verdict.missing, verdict.untold_losses) == (1, 1)
    assert "b never received" in verdict.violations[0]


def test_an_event_that_was_not_acknowledged_is_owed_to_no_client():
    assert judge(ALL[:4], {"a": came(1, 2, 3, 4, 5), "b": came(1, 2, 3, 4)}).holds


@pytest.mark.parametrize(
    ("after", "reach", "time", "covered"),
    [
        ("e-2", "e-3", 6.0, True),
        ("e-3", "e-4", 6.0, False),  # it is about a later one
        ("e-1", "e-2", 6.0, False),  # it is about an earlier one
        ("e-2", "f-2", 6.0, True),  # the log went on in another epoch, without what followed
        ("e-3", "f-3", 6.0, False),
        ("d-9", "e-4", 6.0, True),  # the client came from another life, and of this one something is gone
        ("d-9", "e-2", 6.0, False),
        ("d-9", "f-4", 6.0, True),  # of a history that was given up, which neither end knows
        ("d-9", "f-4", 30.0, False),  # and one that is told much later is about something else
        ("garbage", "e-3", 6.0, True),
        ("e-2", "e-3", 2.5, False),  # it was told before the event was sent
    ],
)
def test_a_gap_covers_what_lies_between_its_ends_and_was_there_before(after, reach, time, covered):
    verdict = judge(ALL, {"a": [*came(1, 2), gap(after, reach, time), *came(4, 5)]})
    assert verdict.missing == 1
    assert verdict.holds is covered


def test_what_an_old_primary_acknowledges_after_the_gap_was_told_is_a_loss():
    told = gap("e-3", "f-3", 3.5)
    assert judge([acknowledged(4, "e-4", 3.6, took=0.2)], {"a": [told]}).holds
    assert not judge([acknowledged(4, "e-4", 4.0, took=0.2)], {"a": [told]}).holds


def test_a_repeat_needs_a_gap_before_it():
    verdict = judge(ALL, {"a": [*came(1, 2, 3), *came(2), *came(4, 5)]})
    assert (verdict.holds, verdict.repeated, verdict.untold_repeats) == (False, 1, 1)
    verdict = judge(ALL, {"a": [*came(1, 2, 3), gap("e-3", "e-0", 3.5, "foreign"), *came(1, 2, 3, 4, 5)]})
    assert (verdict.holds, verdict.repeated, verdict.untold_repeats) == (True, 3, 0)


def test_a_gap_excuses_each_repeat_once():
    foreign = gap("e-3", "e-0", 3.5, "foreign")
    verdict = judge(ALL, {"a": [*came(1, 2, 3), foreign, *came(1, 2), *came(2), *came(3, 4, 5)]})
    assert (verdict.holds, verdict.repeated, verdict.untold_repeats) == (False, 4, 1)


def test_what_comes_after_a_later_one_is_out_of_order():
    verdict = judge(ALL, {"a": came(1, 3, 2, 4, 5)})
    assert (verdict.holds, verdict.disordered, verdict.repeated) == (False, 1, 0)


def test_only_some_violations_of_a_kind_are_shown():
    verdict = judge([acknowledged(number, f"e-{number}") for number in range(1, 50)], {"a": []})
    assert verdict.untold_losses == 49
    assert len(verdict.violations) == 3


def test_how_long_after_its_acknowledgement_a_loss_was_told():
    verdict = judge(ALL, {"a": [*came(1, 2), gap("e-2", "f-2", 9.0)]})
    assert verdict.holds
    assert verdict.told_after == 6.0


def answers(*ready, every=0.5):
    return [(number * every, bool(one)) for number, one in enumerate(ready)]


@pytest.mark.parametrize(
    ("readiness", "opened", "late"),
    [
        (answers(*[1] * 20), 0.0, 4.0),
        (answers(1, 1, 1, 1, 0, *[1] * 20), 0.0, 0.0),  # it said so
        (answers(1, 1), 0.0, 0.0),  # it did not answer
        (answers(*[1] * 20), 4.0, 1.0),  # the client was not there before
        (answers(*[1] * 20), 5.5, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_late_is_what_a_process_kept_back_while_it_said_that_it_was_ready(readiness, opened, late):
    event = acknowledged(1, "e-1", 1.0)
    verdict = judge([event], {"a": [received(1, "e-1", 5.0, process=1, opened=opened)]}, {1: readiness})
    assert verdict.late == late
    assert verdict.holds


def item(event, event_id="e-7"):
    """Return what a client makes of an event on the wire."""
    decoder = Decoder()
    (read,) = decoder.feed(f"id: {event_id}\n".encode() + encode(event))
    return item_of(read, decoder.last_event_id, 1.0, 0, 0.5)


def test_what_a_client_makes_of_frames():
    assert item(Event(text(3))) == Received(3, "e-7", 1.0, 0, 0.5)
    assert item(Gap(GapReason.TRUNCATED, "d-9", "e-5").event("gap")) == Told("truncated", "d-9", "e-4", 1.0)
    assert item(Gap(GapReason.FOREIGN, "d-9").event("gap")) == Told("foreign", "d-9", "e-7", 1.0)
    assert item(Gap(GapReason.EVICTED, "e-1", "e-5", "e-8").event("gap")) == Told("evicted", "e-1", "e-8", 1.0)
    assert item(Event("bye", name="farewell")) is None
    with pytest.raises(ValueError, match="was not published"):
        item(Event("3 something else"))


def test_the_longest_pause_counts_the_begin_and_the_end():
    assert longest_pause(ALL, 0.5, 5.5) == 1.0
    assert longest_pause(ALL, 0.5, 15.0) == 10.0
    assert longest_pause([], 1.0, 4.0) == 3.0
