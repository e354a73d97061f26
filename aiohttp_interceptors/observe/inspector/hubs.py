"""The Hubs of an application and their topics, as rows of tables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...facts import HubDown
from ...hub.hub import Hub
from ...hub.topic_history import TopicHistory
from ...hub.topics import is_wildcard
from .order import FirstEntries
from .pacer import Pacer
from .streams import Row

__all__ = ["MAX_TOPICS", "TopicSelection", "hub_rows"]


MAX_TOPICS = 200
"""Number of topics that a page receives: those with the highest rate, then those with the most records."""
RATE_WINDOW = 10.0  # seconds over which the rate of a topic is measured
CHECK_EVERY = 64  # topics between two looks at the clock


def hub_rows(hubs: Mapping[str, Hub], down: Mapping[str, HubDown]) -> list[Row]:
    """Return what a page shows of each Hub.

    Args:
        hubs: The Hubs by name.
        down: Those that have lost their brokers.
    """
    return [_hub_row(name, hub, down.get(name)) for name, hub in hubs.items()]


def _hub_row(name: str, hub: Hub, down: HubDown | None) -> Row:
    statistics = hub.statistics()
    if statistics.connected is None:
        state = "no broker"
    elif statistics.connected:
        state = "connected"
    else:
        state = "connecting" if down is None else "down"
    age = statistics.confirmation_age
    return {
        "name": name,
        "broker": "" if hub._broker is None else type(hub._broker).__name__,  # its repr may have a password
        "state": state,
        "since": None if down is None or statistics.connected else round(down.since, 3),
        "error": "" if down is None or statistics.connected else down.error[:300],
        "ready": int(hub.ready),
        "confirmation_age": None if age is None else round(age, 1),
        "topics": statistics.topics,
        "records": statistics.records,
        "bytes": statistics.bytes,
        "evicted": statistics.evicted,
        "latest": statistics.latest,
        "subscribers": statistics.subscribers,
        "catching_up": statistics.catching_up,
        "runs": statistics.runs,
        "groups": statistics.groups,
        "published": statistics.published,
        "delivered": statistics.delivered,
        "gaps": statistics.gaps,
        "epoch": hub.history.epoch,
        "offset": hub.history.end,
    }


@dataclass(frozen=True, slots=True)
class TopicSelection:
    """The topics that a page shows."""

    total: int
    """Number of topics that have records or subscribers."""
    matching: int
    """Number of topics that match the filter."""
    rows: dict[str, Row]
    """The first ones, by Hub and name."""

    @classmethod
    async def of(cls, hubs: Mapping[str, Hub], text: str, pacer: Pacer) -> TopicSelection:
        """Select the busiest topics whose name contains a text. Other tasks run in between. Cancelling is safe.

        Args:
            hubs: The Hubs by name.
            text: What a name must contain, in lower case.
            pacer: Says when it is time for other tasks.
        """
        first: FirstEntries[tuple[str, str, int, int]] = FirstEntries(MAX_TOPICS, descending=True)
        total = matching = 0
        since = asyncio.get_running_loop().time() - RATE_WINDOW
        for hub_name, hub in hubs.items():
            for number, (name, history) in enumerate(_topics_of(hub)):
                if number % CHECK_EVERY == 0 and pacer.due:
                    await pacer.give_way()
                total += 1
                if text not in name.casefold():
                    continue
                matching += 1
                recent, records = (0, 0) if history is None else (history.count_since(since), len(history))
                first.add((recent, records), (hub_name, name, recent, records))
        await pacer.give_way()
        rows: dict[str, Row] = {}
        for number, (hub_name, name, recent, records) in enumerate(first.entries()):
            if number % CHECK_EVERY == 0 and pacer.due:
                await pacer.give_way()
            hub = hubs[hub_name]
            history = hub.history.topic_history(name)
            rows[f"{hub_name} {name}"] = {
                "hub": hub_name,
                "topic": name,
                "rate": round(recent / RATE_WINDOW, 1),
                "subscribers": hub.subscribers(name),
                "records": records,
                "bytes": 0 if history is None else history.bytes,
                "finished": int(hub.history.is_finished(name)),
            }
        return cls(total, matching, rows)


def _topics_of(hub: Hub) -> Iterator[tuple[str, TopicHistory | None]]:
    """Yield the topics that have records, and then those that only have subscribers. The Hub may change meanwhile."""
    for history in hub.history.topic_histories():
        if history:
            yield history.topic, history
    for name in hub._dispatcher.subscribed_topics():
        if not is_wildcard(name) and hub.history.topic_history(name) is None:
            yield name, None
