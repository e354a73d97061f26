"""Random clients of the Hub: each one goes on where it was, however its streams end, several times."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from urllib.parse import quote

from hub_feed import HISTORY, TOPICS
from hub_reading import Frames, Opening
from hub_routes import PARTS
from wire import Cut, Silent, Wire

KINDS = ("plain", "plain", "unprimed", "select", "snapshot", "close", "conflate", "conflate", "replay", "change",
         "change", "aged", "stall")  # fmt: skip
MANNERS = ("stays", "stays", "stays", "leaves", "leaves", "resets", "half-closes", "reads slowly", "stops reading",
           "stops reading", "cuts")  # fmt: skip
WILDCARDS = ("a.*", "b.>", "*.x", "*.*.1", "c.y.*", "*.z.>", ">", "c.>", "s.*")
NONSENSE = ("garbage", "-", "0-5", "x" * 300, "1-99999999999999999999", "ffff-\u00fc".encode().decode("latin-1"))
LITTLE_ROOM = 4096  # bytes that the kernel keeps for who does not read: the server feels it soon
AWAY = 10.0  # seconds, at most


class Ledger:
    """What all clients saw."""

    def __init__(self) -> None:
        self.openings: list[Opening] = []
        self.problems: list[str] = []
        self.did: Counter[str] = Counter()
        self.unread = 0  # requests that nobody has read


class HubClient:
    """One client, for as long as its task runs."""

    def __init__(self, number: int, seed: int, port: int, ledger: Ledger, epoch: int) -> None:
        self._chance = random.Random(f"{seed} {number}")
        self._name = f"h{number}e{epoch}"
        self._port = port
        self._ledger = ledger
        self._streams = 0

    async def run(self) -> None:
        """Go on until cancelled. What breaks this client is a finding too."""
        while True:
            try:
                await self._life()
            except Exception as error:  # noqa: BLE001  # as the docstring says
                self._problem(repr(error))
            await asyncio.sleep(self._chance.uniform(0, 0.3))

    async def _life(self) -> None:
        """Ask for some topics, and come back for the same several times."""
        chance = self._chance
        kind, hub = chance.choice(KINDS), chance.randrange(len(HISTORY))
        topics = set(chance.sample(TOPICS, chance.randint(1, 5)))
        if kind != "change":  # or it cannot be told from which name a record came
            topics.update(chance.sample(WILDCARDS, chance.choice((0, 0, 1, 1, 2))))
        part = chance.randrange(PARTS) if kind == "select" else None
        last: str | None = chance.choice(NONSENSE) if chance.random() < 0.05 else None
        for _ in range(chance.randint(1, 8)):
            if last is not None:
                self._ledger.did["returns"] += 1
            last = await self._once(Opening(
                kind, f"/{kind}/{hub}/{self._name}-{self._new()}", chance.choice(MANNERS), hub=hub,
                topics=tuple(sorted(topics)), part=part, asked=last,
            ))  # fmt: skip
            if last is not None and chance.random() < 0.02:
                self._ledger.did["comes from the future"] += 1
                last = f"{last.rsplit('-', 1)[0]}-{10**9}"
            await asyncio.sleep(chance.uniform(0, AWAY if chance.random() < 0.15 else 0.3))

    def _new(self) -> int:
        self._streams += 1
        return self._streams

    async def _once(self, opening: Opening) -> str | None:
        """Have one stream, and return the id to come back with."""
        self._ledger.did[opening.manner] += 1
        self._ledger.openings.append(opening)
        frames = Frames(opening)
        try:
            await self._stream(opening, frames)
        except asyncio.CancelledError:
            opening.left = True
            raise
        except (Cut, ConnectionError):
            opening.end = time.monotonic()
            await asyncio.sleep(self._chance.uniform(0, 0.5))  # the server restarts
        except Silent:
            opening.silent = True
        finally:
            opening.over = True
            opening.end = opening.end or time.monotonic()
        return frames.last

    async def _stream(self, opening: Opening, frames: Frames) -> None:
        chance, manner = self._chance, opening.manner
        slow = manner in {"reads slowly", "stops reading"}
        wire = await Wire.open(self._port, room=LITTLE_ROOM if slow else 0)
        try:
            query = [("topic", topic) for topic in opening.topics]
            if opening.part is not None:
                query.append(("part", str(opening.part)))
            header = None
            if opening.asked is not None and chance.random() < 0.5:
                query.append(("last_event_id", opening.asked))
            elif opening.asked is not None:
                header = opening.asked
            version = "1.0" if chance.random() < 0.1 else "1.1"
            path = opening.path + "?" + "&".join(f"{name}={quote(value)}" for name, value in query)
            wire.request("GET", path, version, Last_Event_ID=header)
            opening.status = (await wire.read_head()).status
            if opening.status == 200:
                await self._read(wire, opening, frames)
            elif opening.status != 503:  # which it says when it is about to stop
                self._problem(f"{opening.path}: status {opening.status}")
        finally:
            wire.close(chance)

    async def _read(self, wire: Wire, opening: Opening, frames: Frames) -> None:
        """Read in the manner of the stream, until that or the stream is over."""
        chance, manner = self._chance, opening.manner
        opening.reading_since = time.monotonic()
        seconds = (
            chance.uniform(1, 16) if manner in {"stays", "reads slowly", "stops reading"} else chance.uniform(0, 3)
        )
        end = opening.reading_since + seconds
        stops = chance.uniform(0, 2) if manner == "stops reading" else seconds
        while (now := time.monotonic()) < end:
            if now > opening.reading_since + stops:
                opening.reading_since = math.inf
                await asyncio.sleep(chance.uniform(1, 7))
                stops, opening.reading_since = 2 * AWAY, time.monotonic()
                end = max(end, opening.reading_since + chance.uniform(0, 12))
            if not (piece := await wire.piece()):
                opening.closed = True
                if wire.head.chunked:
                    frames.finish()
                return
            if manner == "cuts" and chance.random() < 0.1:
                frames.feed(piece[: chance.randrange(len(piece) + 1)])
                break
            frames.feed(piece)
            if manner == "reads slowly":
                await asyncio.sleep(chance.uniform(0, 0.5))
                opening.reading_since = time.monotonic()
        opening.end, opening.left = time.monotonic(), True
        if manner == "half-closes":
            wire.half_close()
            await wire.until_closed()
        elif manner in {"resets", "cuts"}:
            wire.reset()

    def _problem(self, what: str) -> None:
        self._ledger.problems.append(f"{self._name}: {what}")
