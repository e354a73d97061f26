from __future__ import annotations

import random

import pytest

from aiohttp_interceptors.web.transport import CHECKS_PER_TIMEOUT, StallDetector


def looked(timeout: float, taken_at: list[tuple[float, int]], gaps, sent: int = 10_000) -> float:
    """Look at a client that took so many bytes in all at these times until it counts as stalled; return when."""
    stall, now = StallDetector(timeout, 0.0), 0.0
    for gap in gaps:
        now = min(now + gap, stall.next_look(now))
        taken = max((count for at, count in taken_at if at <= now), default=0)
        if stall.look(now, taken, sent - taken):
            return now
    raise AssertionError("never")


def test_a_client_that_takes_nothing_from_the_beginning_is_stalled_after_the_timeout():
    assert 45.0 <= looked(60.0, [], [15.0] * 10) <= 60.0


def test_a_client_that_takes_a_byte_now_and_then_is_not():
    stall = StallDetector(60.0, 0.0)
    for number in range(1, 1000):
        assert not stall.look(number * 15.0, number // 2, 5000)


def test_a_client_that_is_owed_nothing_is_not():
    stall = StallDetector(60.0, 0.0)
    for number in range(1, 1000):
        assert not stall.look(number * 15.0, 0, 0)


def test_the_time_counts_from_when_it_is_owed_something():
    stall = StallDetector(60.0, 0.0)
    assert not stall.look(1000.0, 50, 0)
    assert not stall.look(1015.0, 50, 8)
    assert not stall.look(1030.0, 50, 16)
    assert stall.look(1045.0, 50, 16)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_said_in_the_last_quarter_of_the_timeout_however_often_one_looks(seed):
    """Heartbeats look too, at times of their own."""
    chance = random.Random(seed)
    timeout = chance.choice([0.2, 1.0, 60.0])
    last = chance.uniform(0, 5) * timeout
    takes = [(last * part / 40, part + 1) for part in range(1, 41)]
    heartbeat = chance.uniform(0.05, 1.5) * timeout
    said = looked(timeout, takes, [heartbeat] * 1000)
    assert last + timeout * (1 - 1 / CHECKS_PER_TIMEOUT) <= said + 1e-9
    assert said <= last + timeout + 1e-9


def test_the_next_look_is_one_period_away_or_when_the_time_is_up():
    stall = StallDetector(60.0, 0.0)
    assert stall.next_look(0.0) == 15.0
    assert stall.next_look(40.0) == 45.0
