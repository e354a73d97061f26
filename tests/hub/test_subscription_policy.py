"""Subscription policies: the defaults, and which options are refused."""

import pytest

from aiohttp_interceptors.hub.cursor import SubscriptionPolicy


def test_the_defaults():
    policy = SubscriptionPolicy()
    assert (policy.on_gap, policy.gap_event, policy.replay, policy.prime, policy.retry) == (
        "signal",
        "gap",
        0,
        True,
        None,
    )
    assert policy.prefix == b""


@pytest.mark.parametrize("on_gap", ["signal", "close", "conflate"])
def test_on_gap_has_three_values(on_gap):
    assert SubscriptionPolicy(on_gap=on_gap).on_gap == on_gap


@pytest.mark.parametrize(("retry", "prefix"), [(0, b"retry: 0\n"), (3000, b"retry: 3000\n"), (None, b"")])
def test_the_reconnection_time_is_in_the_prefix(retry, prefix):
    assert SubscriptionPolicy(retry=retry).prefix == prefix


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"on_gap": "ignore"}, ValueError, "on_gap is one of signal, close, conflate, not 'ignore'"),
        ({"on_gap": None}, ValueError, "on_gap is one of signal, close, conflate, not None"),
        ({"on_gap": ["close"]}, ValueError, "on_gap is one of"),
        ({"gap_event": ""}, ValueError, "gap_event is the name of an event, not ''"),
        ({"gap_event": " "}, ValueError, "gap_event is the name of an event, not ' '"),
        ({"gap_event": None}, ValueError, "gap_event is the name of an event, not None"),
        ({"gap_event": "a\nb"}, ValueError, "name is one line"),
        ({"gap_event": "\ud800"}, ValueError, "UTF-8"),
        ({"gap_event": 1}, TypeError, "name is a str, not 1"),
        ({"replay": -1}, ValueError, "replay is a number of records, 0 or more, or 'latest', not -1"),
        ({"replay": True}, TypeError, "replay is a number of records, 0 or more, or 'latest', not True"),
        ({"replay": 1.0}, TypeError, "replay is a number of records, 0 or more, or 'latest', not 1.0"),
        ({"replay": None}, TypeError, "replay is a number of records, 0 or more, or 'latest', not None"),
        ({"retry": -1}, ValueError, "retry is a whole number of milliseconds"),
        ({"retry": 1.5}, TypeError, "retry is a whole number of milliseconds"),
        ({"retry": True}, TypeError, "retry is a whole number of milliseconds"),
    ],
)
def test_an_invalid_option_is_refused_by_its_name(wrong, error, message):
    with pytest.raises(error, match=message):
        SubscriptionPolicy(**wrong)


def test_a_policy_is_immutable():
    with pytest.raises(AttributeError):
        SubscriptionPolicy().replay = 1
