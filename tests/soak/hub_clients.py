"""Clients of a Hub that open streams several times and resume, whatever way their streams ended."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from urllib.parse import quote

from tests.soak.connection import Connection, ConnectionLost, ReadTimedOut
from tests.soak.hub_client_stream import FrameParser, HubClientStream
from tests.soak.hub_publisher import HISTORY, TOPICS
from tests.soak.hub_routes import PARTS

ROUTES = ("plain", "plain", "unprimed", "select", "snapshot", "close", "conflate", "conflate", "replay", "change",
          "change", "aged", "stall")  # fmt: skip
BEHAVIORS = ("reads all", "reads all", "reads all", "disconnects", "disconnects", "resets", "half-closes",
             "reads slowly", "stops reading", "stops reading", "resets within a frame")  # fmt: skip
WILDCARDS = ("a.*", "b.>", "*.x", "*.*.1", "c.y.*", "*.z.>", ">", "c.>", "s.*")
INVALID_IDS = ("garbage", "-", "0-5", "x" * 300, "1-99999999999999999999", "ffff-\u00fc".encode().decode("latin-1"))
SMALL_BUFFER = 4096  # bytes; with this receive buffer the server soon notices a client that does not read
MAX_ABSENCE = 10.0  # seconds


class HubClientResults:
    """What all clients observed."""

    def __init__(self) -> None:
        self.streams: list[HubClientStream] = []
        self.problems: list[str] = []
        self.behaviors: Counter[str] = Counter()


class HubClient:
    """One client. It runs until its task is cancelled."""

    def __init__(self, number: int, seed: int, port: int, results: HubClientResults, epoch: int) -> None:
        self._rng = random.Random(f"{seed} {number}")
        self._name = f"h{number}e{epoch}"
        self._port = port
        self._results = results
        self._streams = 0

    async def run(self) -> None:
        """Run until cancelled. Unexpected exceptions are recorded as problems."""
        while True:
            try:
                await self._resume_several_times()
            except Exception as error:  # noqa: BLE001  # as the docstring says
                self._problem(repr(error))
            await asyncio.sleep(self._rng.uniform(0, 0.3))

    async def _resume_several_times(self) -> None:
        """Subscribe to some topics, and reconnect several times with the same ones."""
        rng = self._rng
        route, hub = rng.choice(ROUTES), rng.randrange(len(HISTORY))
        topics = set(rng.sample(TOPICS, rng.randint(1, 5)))
        if route != "change":  # with wildcards it would be unknown which pattern a record matched
            topics.update(rng.sample(WILDCARDS, rng.choice((0, 0, 1, 1, 2))))
        part = rng.randrange(PARTS) if route == "select" else None
        last: str | None = rng.choice(INVALID_IDS) if rng.random() < 0.05 else None
        for _ in range(rng.randint(1, 8)):
            if last is not None:
                self._results.behaviors["resumes"] += 1
            last = await self._open_and_read(HubClientStream(
                route, f"/{route}/{hub}/{self._name}-{self._next_stream()}", rng.choice(BEHAVIORS), hub=hub,
                topics=tuple(sorted(topics)), part=part, last_event_id=last,
            ))  # fmt: skip
            if last is not None and rng.random() < 0.02:
                self._results.behaviors["resumes with an ID of the future"] += 1
                last = f"{last.rsplit('-', 1)[0]}-{10**9}"
            await asyncio.sleep(rng.uniform(0, MAX_ABSENCE if rng.random() < 0.15 else 0.3))

    def _next_stream(self) -> int:
        self._streams += 1
        return self._streams

    async def _open_and_read(self, stream: HubClientStream) -> str | None:
        """Read one stream, and return the ID to resume with."""
        self._results.behaviors[stream.behavior] += 1
        self._results.streams.append(stream)
        parser = FrameParser(stream)
        try:
            await self._request(stream, parser)
        except asyncio.CancelledError:
            stream.disconnected = True
            raise
        except (ConnectionLost, ConnectionError):
            stream.end = time.monotonic()
            await asyncio.sleep(self._rng.uniform(0, 0.5))  # the server restarts
        except ReadTimedOut:
            stream.timed_out = True
        finally:
            stream.finished = True
            stream.end = stream.end or time.monotonic()
        return parser.last_event_id

    async def _request(self, stream: HubClientStream, parser: FrameParser) -> None:
        rng = self._rng
        slow = stream.behavior in {"reads slowly", "stops reading"}
        connection = await Connection.open(self._port, receive_buffer=SMALL_BUFFER if slow else 0)
        try:
            query = [("topic", topic) for topic in stream.topics]
            if stream.part is not None:
                query.append(("part", str(stream.part)))
            header = None
            if stream.last_event_id is not None and rng.random() < 0.5:
                query.append(("last_event_id", stream.last_event_id))
            elif stream.last_event_id is not None:
                header = stream.last_event_id
            version = "1.0" if rng.random() < 0.1 else "1.1"
            path = stream.path + "?" + "&".join(f"{name}={quote(value)}" for name, value in query)
            connection.request("GET", path, version, Last_Event_ID=header)
            stream.status = (await connection.read_head()).status
            if stream.status == 200:
                await self._read(connection, stream, parser)
            elif stream.status != 503:  # the response of a server that stops
                self._problem(f"{stream.path}: status {stream.status}")
        finally:
            connection.close(rng)

    async def _read(self, connection: Connection, stream: HubClientStream, parser: FrameParser) -> None:
        """Read as the behavior says, until the client disconnects or the stream ends."""
        rng, behavior = self._rng, stream.behavior
        stream.reading_since = time.monotonic()
        long = behavior in {"reads all", "reads slowly", "stops reading"}
        seconds = rng.uniform(1, 16) if long else rng.uniform(0, 3)
        end = stream.reading_since + seconds
        stop_after = rng.uniform(0, 2) if behavior == "stops reading" else seconds
        while (now := time.monotonic()) < end:
            if now > stream.reading_since + stop_after:
                stream.reading_since = math.inf
                await asyncio.sleep(rng.uniform(1, 7))
                stop_after, stream.reading_since = 2 * MAX_ABSENCE, time.monotonic()
                end = max(end, stream.reading_since + rng.uniform(0, 12))
            if not (chunk := await connection.read_chunk()):
                stream.ended = True
                if connection.head.chunked:
                    parser.end()
                return
            if behavior == "resets within a frame" and rng.random() < 0.1:
                parser.feed(chunk[: rng.randrange(len(chunk) + 1)])
                break
            parser.feed(chunk)
            if behavior == "reads slowly":
                await asyncio.sleep(rng.uniform(0, 0.5))
                stream.reading_since = time.monotonic()
        stream.end, stream.disconnected = time.monotonic(), True
        if behavior == "half-closes":
            connection.half_close()
            await connection.wait_closed_by_server()
        elif behavior in {"resets", "resets within a frame"}:
            connection.reset()

    def _problem(self, message: str) -> None:
        self._results.problems.append(f"{self._name}: {message}")
