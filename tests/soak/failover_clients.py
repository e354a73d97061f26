"""Clients of the fail-over test: publishers that retry, subscribers that reconnect, and readiness probes."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import ClientError, ClientSession, ClientTimeout

from aiohttp_interceptors import Decoder
from tests.soak.failover_ledger import TOPICS, Acknowledged, Item, parse_event

PUBLISHERS = 8
RATE = 100  # events per second of all publishers, without failures
PUBLISH_TIMEOUT = 12.0  # seconds for one attempt: twice the Hub's own timeout
READ_TIMEOUT = 6.0  # seconds without data after which a subscriber reconnects; heartbeats are sent every second
RECONNECT_DELAY = 0.2  # seconds, as the server's ``retry`` says
PROBE_INTERVAL = 0.1  # seconds between two readiness probes
CONNECTION_ERRORS = (ClientError, OSError, TimeoutError, asyncio.IncompleteReadError)


class Publishers:
    """Publish by HTTP at any process, and retry with the same idempotency key until the event is acknowledged."""

    def __init__(self, session: ClientSession, urls: Sequence[str]) -> None:
        self._session = session
        self._urls = urls
        self._numbers = itertools.count(1)
        self._next = 0.0
        self.acknowledged: list[Acknowledged] = []
        self.pending: set[int] = set()
        """Numbers of events that were not acknowledged yet."""
        self.outcomes: Counter[str] = Counter()
        """The outcomes of all attempts."""
        self.longest = 0.0
        """Seconds of the longest attempt."""
        self.stopped = False

    async def run(self) -> None:
        """Publish until ``stopped``, and then until all events are acknowledged."""
        await asyncio.gather(*(self._publish(publisher) for publisher in range(PUBLISHERS)))

    async def _publish(self, publisher: int) -> None:
        while not self.stopped:
            number = next(self._numbers)
            self.pending.add(number)
            for attempt in itertools.count():
                if await self._attempt(number, self._urls[(publisher + attempt) % len(self._urls)]):
                    break
                await asyncio.sleep(0.05)
            self.pending.discard(number)
            now = time.monotonic()
            self._next = max(now, self._next + 1 / RATE)
            await asyncio.sleep(self._next - now)

    async def _attempt(self, number: int, url: str) -> bool:
        sent = time.monotonic()
        query = {"number": str(number), "topic": TOPICS[number % len(TOPICS)]}
        limit = ClientTimeout(PUBLISH_TIMEOUT)
        try:
            async with self._session.post(f"{url}/publish", params=query, timeout=limit) as response:
                body = await response.json()
        except CONNECTION_ERRORS as error:
            self.outcomes[type(error).__name__] += 1
            return False
        except ValueError:  # an error page of aiohttp
            self.outcomes["no JSON"] += 1
            return False
        now = time.monotonic()
        self.longest = max(self.longest, now - sent)
        if response.status != 200:
            self.outcomes[body["error"]] += 1
            return False
        self.outcomes["acknowledged"] += 1
        self.acknowledged.append(Acknowledged(number, body["id"], sent, now))
        return True


class Subscriber:
    """A client like a browser's ``EventSource``. It reconnects with the last ID, also to another process."""

    def __init__(
        self,
        session: ClientSession,
        urls: Sequence[str],
        process: int,
        stay: tuple[float, float] | None,
        rng: random.Random,
    ) -> None:
        self._session = session
        self._urls = urls
        self._stay = stay
        self._rng = rng
        self._last_id = ""
        self._process = process
        self.items: list[Item] = []
        self.connected = asyncio.Event()
        """Set when the first connection has an ID to resume with."""
        self.problems: list[str] = []

    async def run(self) -> None:
        """Run until cancelled. A client with ``stay`` changes the process with each connection."""
        while True:
            try:
                async with asyncio.timeout(None if self._stay is None else self._rng.uniform(*self._stay)):
                    await self._read(self._urls[self._process])
            except CONNECTION_ERRORS:
                pass
            if self._stay is not None:
                self._process = (self._process + 1) % len(self._urls)
            await asyncio.sleep(RECONNECT_DELAY)

    async def _read(self, url: str) -> None:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Pragma": "no-cache"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        limit = ClientTimeout(total=None, sock_connect=READ_TIMEOUT, sock_read=READ_TIMEOUT)
        async with self._session.get(f"{url}/events", headers=headers, timeout=limit) as response:
            if response.status != 200:
                return
            decoder, connected = Decoder(), 0.0
            async for data in response.content.iter_any():
                now = time.monotonic()
                for event in decoder.feed(data):
                    connected = connected or now
                    if event.id is not None:
                        self._last_id = event.id
                        self.connected.set()
                    try:
                        item = parse_event(event, self._last_id, now, self._process, connected)
                    except ValueError as error:
                        self.problems.append(str(error))
                        continue
                    if item is not None:
                        self.items.append(item)


async def probe_readiness(session: ClientSession, url: str, probes: list[tuple[float, bool]]) -> None:
    """Request the readiness route of a process until cancelled."""
    while True:
        try:
            async with session.get(f"{url}/ready", timeout=ClientTimeout(READ_TIMEOUT)) as response:
                probes.append((time.monotonic(), response.status == 200))
        except CONNECTION_ERRORS:
            pass
        await asyncio.sleep(PROBE_INTERVAL)


async def eventually(condition: Callable[[], bool | Awaitable[bool]], limit: float) -> bool:
    """Wait until a condition holds, ``limit`` seconds at most. Return whether it does."""
    deadline = time.monotonic() + limit
    while True:
        holds = condition()
        if not isinstance(holds, bool):
            holds = await holds
        if holds or time.monotonic() > deadline:
            return holds
        await asyncio.sleep(0.05)
