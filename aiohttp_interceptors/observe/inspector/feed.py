"""What a page receives: a sample each second, of the state of this process and of what changed since the last one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Mapping

from ..._tasks import cancel_and_wait
from ...hub.hub import Hub
from .hubs import TopicSelection, hub_rows
from .pacer import Pacer
from .recorder import Recorder
from .streams import Query, Row, Scope, Selection

__all__ = ["Feed", "Sampler"]


PROBE_INTERVAL = 0.1  # seconds between two measurements of the delay of the event loop
CLOSE_TIMEOUT = 5.0  # seconds for the task to end
CHECK_EVERY = 32  # rows between two looks at the clock


class Sampler:
    """Measures rates and the delay of the event loop while at least one page is open.

    Args:
        hubs: The Hubs by name.
        recorder: Where the samples are kept.
    """

    def __init__(self, hubs: Mapping[str, Hub], recorder: Recorder) -> None:
        self._hubs = hubs
        self._recorder = recorder
        self._pages = 0
        self._task: asyncio.Task[None] | None = None

    def page_opened(self) -> None:
        """Measure from now on. Each call needs one of ``page_closed``."""
        self._pages += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def page_closed(self) -> None:
        """Stop measuring if this was the last page."""
        self._pages -= 1
        if not self._pages and self._task is not None:
            self._task.cancel()
            self._task = None

    async def close(self) -> None:
        """Stop measuring. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait(task, CLOSE_TIMEOUT, "the sampler of an inspector")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        published, delivered = self._totals()
        while True:
            sample = self._recorder.sample()
            due = loop.time() + PROBE_INTERVAL
            await asyncio.sleep(PROBE_INTERVAL)
            lag = max(0.0, loop.time() - due)
            sample.lag = lag if sample.lag is None else max(sample.lag, lag)
            before, (published, delivered) = (published, delivered), self._totals()
            sample.published = (sample.published or 0) + published - before[0]
            sample.delivered = (sample.delivered or 0) + delivered - before[1]

    def _totals(self) -> tuple[int, int]:
        statistics = [hub.statistics() for hub in self._hubs.values()]
        return sum(each.published for each in statistics), sum(each.delivered for each in statistics)


class _Table:
    """The rows of a table that a page has, so that it receives only those that have changed."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    async def update(self, rows: dict[str, Row], pacer: Pacer) -> tuple[str, list[str] | None]:
        """Return the JSON of the rows that are new or have changed, and the order if that has changed."""
        known, self._rows = self._rows, rows
        changed: list[str] = []
        for number, (key, row) in enumerate(rows.items()):
            if number % CHECK_EVERY == 0 and pacer.due:
                await pacer.give_way()
            if known.get(key) != row:
                changed.append(f"{json.dumps(key)}:{_to_json(row)}")
        order = list(rows)
        return f"{{{','.join(changed)}}}", None if order == list(known) else order


class Feed:
    """The samples for one page.

    Args:
        process: What identifies this process.
        scope: The streams to show.
        hubs: The Hubs by name.
        recorder: The facts and samples.
        query: What the page asks for.
        topic_filter: What the names of topics must contain.
    """

    def __init__(  # they are independent
        self,
        process: str,
        scope: Scope,
        hubs: Mapping[str, Hub],
        recorder: Recorder,
        query: Query,
        topic_filter: str,
    ) -> None:
        self._process = {"key": process, "name": f"process {os.getpid()} on {socket.gethostname()}"}
        self._scope = scope
        self._hubs = hubs
        self._recorder = recorder
        self._query = query
        self._topic_filter = topic_filter.casefold()
        self._epoch = time.time() - asyncio.get_running_loop().time()  # fixed, so that rows do not change by rounding
        self._pacer = Pacer()
        self._streams = _Table()
        self._topics = _Table()
        self._last_fact = 0
        self._last_second = 0

    @property
    def interval(self) -> float:
        """Seconds from the beginning of the last sample to the next one."""
        return self._pacer.interval

    async def next(self) -> str:
        """Return the next sample as JSON. Other tasks run meanwhile. Cancelling is safe."""
        pacer = self._pacer
        pacer.begin()
        streams = await Selection.of(self._scope.streams(), self._query, self._epoch, pacer)
        topics = await TopicSelection.of(self._hubs, self._topic_filter, pacer)
        await pacer.give_way()
        facts, self._last_fact = self._recorder.facts_after(self._last_fact)
        await pacer.give_way()
        samples = self._recorder.samples_since(self._last_second)
        # The current second goes on, and is sent again.
        self._last_second = int(samples[-1][0] or 0) if samples else 0
        stream_rows, stream_order = await self._streams.update(streams.rows, pacer)
        topic_rows, topic_order = await self._topics.update(topics.rows, pacer)
        sample: dict[str, object] = {
            "now": round(time.time(), 3),
            "interval": round(pacer.interval, 1),
            "process": self._process,
            "streams": {
                "total": streams.total,
                "matching": streams.matching,
                "own": self._scope.own(),
                "order": stream_order,
            },
            "topics": {"total": topics.total, "matching": topics.matching, "order": topic_order},
            "hubs": hub_rows(self._hubs, self._recorder.down),
            "facts": facts,
            "samples": samples,
        }
        encoded = f'{_to_json(sample)[:-1]},"stream_rows":{stream_rows},"topic_rows":{topic_rows}}}'
        pacer.end()
        return encoded


def _to_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))  # in ASCII: a path may have what cannot be encoded
