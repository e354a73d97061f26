"""Facts cannot be changed."""

from __future__ import annotations

import dataclasses

import pytest

from aiohttp_interceptors.facts import (
    EventsDropped,
    HubFlushed,
    HubGap,
    HubPublished,
    StageRan,
    StreamClosed,
    StreamFirstEvent,
    StreamOpened,
    StreamRefused,
)

FACTS = [
    StageRan("run 1", "a", "enter", 0.1, {}, {}),
    StreamOpened("run 1", "/"),
    StreamClosed("run 1", "/", "closed", events=1, bytes=9, dropped=0, seconds=0.1),
    StreamRefused("run 1", "/", 503, "The server is stopping."),
    EventsDropped("run 1", "/", count=1, total=2),
    StreamFirstEvent("run 1", "/", "/", 0.1),
    HubFlushed(0.1, records=1, streams=2),
    HubPublished(0.1, "stored"),
    HubGap("evicted"),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_a_fact_is_frozen(fact) -> None:
    for field in dataclasses.fields(fact):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(fact, field.name, None)
    with pytest.raises((AttributeError, TypeError)):
        fact.more = 1
