from __future__ import annotations

import random

import pytest

from aiohttp_interceptors.web.transport import CHECKS_PER_TIMEOUT, StallDetector


def stalled_at(timeout: float, acks: list[tuple[float, int]], intervals, sent: int = 10_000) -> float:
    """Check a client that acknowledges data at these times until it has stalled, and return when."""
    detector, now = StallDetector(timeout, 0.0), 0.0
    for interval in intervals:
        now = min(now + interval, detector.next_check(now))
        acked = max((count for at, count in acks if at <= now), default=0)
        if detector.check(now, acked, sent - acked):
            return now
    raise AssertionError("never")


def test_a_client_that_acknowledges_nothing_stalls_after_the_timeout():
    assert 45.0 <= stalled_at(60.0, [], [15.0] * 10) <= 60.0


def test_a_client_that_acknowledges_a_byte_at_a_time_does_not_stall():
    detector = StallDetector(60.0, 0.0)
    for number in range(1, 1000):
        assert not detector.check(number * 15.0, number // 2, 5000)


def test_a_client_without_outstanding_data_does_not_stall():
    detector = StallDetector(60.0, 0.0)
    for number in range(1, 1000):
        assert not detector.check(number * 15.0, 0, 0)


def test_the_timeout_starts_when_data_is_outstanding():
    detector = StallDetector(60.0, 0.0)
    assert not detector.check(1000.0, 50, 0)
    assert not detector.check(1015.0, 50, 8)
    assert not detector.check(1030.0, 50, 16)
    assert detector.check(1045.0, 50, 16)


@pytest.mark.parametrize("seed", range(20))
def test_a_stall_is_detected_in_the_last_quarter_of_the_timeout_whatever_the_intervals(seed):
    """Heartbeats run checks too, at their own interval."""
    chance = random.Random(seed)
    timeout = chance.choice([0.2, 1.0, 60.0])
    last = chance.uniform(0, 5) * timeout
    acks = [(last * part / 40, part + 1) for part in range(1, 41)]
    heartbeat = chance.uniform(0.05, 1.5) * timeout
    detected = stalled_at(timeout, acks, [heartbeat] * 1000)
    assert last + timeout * (1 - 1 / CHECKS_PER_TIMEOUT) <= detected + 1e-9
    assert detected <= last + timeout + 1e-9


def test_the_next_check_is_one_interval_away_or_at_the_deadline():
    detector = StallDetector(60.0, 0.0)
    assert detector.next_check(0.0) == 15.0
    assert detector.next_check(40.0) == 45.0
