"""Random clients: each one opens streams, one after another, and treats them badly."""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections import Counter

from reading import Frames, ReadResult, Receipt
from wire import Cut, Silent, Wire

# What each route is asked for.
FROM_NOW, UP_TO = "", "?after=0&last={last}"
ROUTES = {"plain": FROM_NOW, "aged": FROM_NOW, "sliding": FROM_NOW, "strict": FROM_NOW, "hose": FROM_NOW,
          "failing": "?count=20", "finite": UP_TO, "generated": UP_TO}  # fmt: skip
CHOICE = ("plain", "plain", *ROUTES)
MANNERS = ("stays", "stays", "leaves", "leaves", "resets", "half-closes", "reads slowly", "sends garbage")
STRANGE = ("pipelines", "reuses", "chats", "floods", "cuts its body", "says half", "asks for the head", "is refused")
NO_STREAM = {200: "200", 204: "204", 429: "429", 503: "503"}
# Bytes that the kernel keeps for who reads slowly: with little room the server feels it at once. A kernel confirms what
# was read in lumps of up to half of that, so that /hose takes some who read slowly for stalled.
LITTLE_ROOM, ROOM = 4096, 65536
FLOOD = 100  # events of /hose that are read before nothing is


class Ledger:
    """What all clients saw."""

    def __init__(self) -> None:
        self.receipts: dict[str, Receipt] = {}
        self.problems: list[str] = []
        self.did: Counter[str] = Counter()
        self.fresh: dict[int, object] = {}  # how a new connection is set up, by server
        self.connections: list[tuple[str, dict[str, object]]] = []  # and others, after a stream or before one

    def compare_connections(self) -> None:
        """Find connections on which a stream has left something."""
        for name, found in self.connections:
            if found != self.fresh.get(found["epoch"]):
                self.problems.append(f"{name}: a connection is not as it was before its stream: {found}")


class Client:
    """One client, for as long as its task runs."""

    def __init__(self, number: int, seed: int, port: int, ledger: Ledger, users: int, epoch: int) -> None:
        self._chance = random.Random(f"{seed} {number}")
        self._name = f"c{number}e{epoch}"  # clients who come anew are others
        self._user = f"u{number % users}"
        self._port = port
        self._ledger = ledger
        self._streams = 0
        self._current: Receipt | None = None

    async def run(self) -> None:
        """Go on until cancelled. What breaks this client is a finding too."""
        while True:
            manner = self._chance.choice(STRANGE) if self._chance.random() < 0.35 else "resumes"
            self._ledger.did[manner] += 1
            try:
                await getattr(self, "_" + manner.replace(" ", "_"))()
            except asyncio.CancelledError:
                if self._current is not None:
                    self._current.left = True
                raise
            except (Cut, ConnectionError):
                await self._pause(0.2)  # the server restarts, or was told nonsense
            except Silent:
                self._problem(f"{manner}: the server said nothing for too long")
            except Exception as error:  # noqa: BLE001  # as the docstring says
                self._problem(f"{manner}: {error!r}")
            await self._pause(0.1)

    # One stream.

    def _receipt(self, route: str, manner: str) -> Receipt:
        self._streams += 1
        receipt = self._current = Receipt(route, f"/{route}/{self._name}-{self._streams}", manner)
        self._ledger.receipts[receipt.path] = receipt
        return receipt

    def _ask(self, wire: Wire, receipt: Receipt, reading: ReadResult, query: str = "", version: str = "1.1") -> None:
        wire.request("GET", receipt.path + query, version, X_User=self._user, Last_Event_ID=reading.last_event_id)

    async def _opened(self, wire: Wire, receipt: Receipt) -> bool:
        """Read a head, and the body of an answer that is no stream; return whether there is a stream."""
        head = await wire.read_head()
        receipt.status = head.status
        if head.status == 200:
            return True
        if head.status not in NO_STREAM:
            self._problem(f"{receipt.path} ({receipt.manner}): status {head.status}")
        elif head.status in {429, 503}:
            if not 1 <= int(head.headers.get("retry-after", 0)) <= 10:
                self._problem(f"{receipt.path}: {head.status} with Retry-After {head.headers.get('retry-after')}")
            await wire.body()
        return False

    async def _read(self, wire: Wire, receipt: Receipt, frames: Frames, *, events: float, seconds: float) -> bool:
        """Read a stream until so much came; return whether it ended before."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while receipt.events < events and loop.time() < end:
            if not (piece := await wire.piece()):
                if wire.head.chunked:
                    frames.end()
                return True
            frames.feed(piece)
            if receipt.manner == "reads slowly":
                await self._pause(0.3)
        return False

    async def _resumes(self) -> None:
        """Open a stream, end it in some way or have it ended, and go on where it was; several times."""
        route, reading = self._chance.choice(CHOICE), ReadResult()
        if ROUTES[route] == UP_TO:
            reading = ReadResult(begins=0)
        last = self._chance.randint(1, 80)
        for _ in range(self._chance.randint(1, 6)):
            manner = self._chance.choice(MANNERS) if route != "hose" else "reads slowly"  # or it reads all the time
            self._ledger.did[manner] += 1
            receipt = self._receipt(route, manner)
            try:
                await self._once(receipt, reading, last)
            except (Cut, ConnectionError) as error:
                if receipt.prompt and receipt.status == 200:
                    self._problem(f"{receipt.path} ({manner}): cut while it was read: {error!r}")
                await self._pause(0.3)
            if receipt.status == 204 or (receipt.clean and route in {"finite", "generated"} and reading.number == last):
                return
            if receipt.status in {429, 503}:
                await self._pause(1.5)

    async def _once(self, receipt: Receipt, reading: ReadResult, last: int) -> None:
        manner, frames = receipt.manner, Frames(reading, receipt)
        receipt.prompt = manner == "stays"
        room = 0 if manner != "reads slowly" else ROOM if receipt.route == "hose" else LITTLE_ROOM
        wire = await Wire.open(self._port, room=room)
        try:
            version = "1.0" if manner == "leaves" and self._chance.random() < 0.2 else "1.1"
            self._ask(wire, receipt, reading, ROUTES[receipt.route].format(last=last), version)
            if not await self._opened(wire, receipt):
                return
            if manner == "sends garbage":
                wire.send(self._chance.randbytes(self._chance.choice((1, 100, 5_000, 200_000))))
            stays = manner in {"stays", "reads slowly", "sends garbage"}
            events, seconds = (9e9, self._chance.uniform(1, 12)) if stays else (self._chance.randint(0, 40), 5)
            if await self._read(wire, receipt, frames, events=events, seconds=seconds):
                return
            receipt.left = True
            if manner == "half-closes":
                wire.half_close()
                await wire.until_closed()
            elif manner == "resets":
                wire.reset()
        finally:
            wire.close(self._chance)

    # What is done once in a while.

    async def _pipelines(self) -> None:
        """Send many requests behind that for a stream: they are answered when it is over."""
        receipt, reading = self._receipt("finite", "pipelines"), ReadResult(begins=0)
        wire = await Wire.open(self._port)
        try:
            requests = self._chance.randint(1, 40)
            self._ask(wire, receipt, reading, f"?after=0&last={self._chance.randint(1, 30)}")
            for _ in range(requests):
                wire.request("GET", "/options")
            if await self._opened(wire, receipt):
                await self._read(wire, receipt, Frames(reading, receipt), events=9e9, seconds=9e9)
            for _ in range(requests):
                await self._as_new(wire)
        finally:
            wire.close(self._chance)

    async def _reuses(self) -> None:
        """Have several streams and other answers on one connection."""
        wire = await Wire.open(self._port)
        try:
            wire.request("GET", "/options")
            await self._as_new(wire)
            for _ in range(self._chance.randint(1, 5)):
                receipt, reading = (
                    self._receipt(self._chance.choice(("finite", "generated")), "reuses"),
                    ReadResult(begins=0),
                )
                last = self._chance.randint(1, 30)
                self._ask(wire, receipt, reading, f"?after=0&last={last}")
                if await self._opened(wire, receipt):
                    await self._read(wire, receipt, Frames(reading, receipt), events=9e9, seconds=9e9)
                wire.request("GET", "/options")
                await self._as_new(wire)
        finally:
            wire.close(self._chance)

    async def _as_new(self, wire: Wire) -> None:
        """Read an answer that tells how the connection is set up; no stream may have left anything on it."""
        await wire.read_head()
        found = json.loads(await wire.body())
        self._ledger.connections.append((self._name, found))

    async def _chats(self) -> None:
        """Send a body, and have it before the first event."""
        receipt, reading = self._receipt("chat", "chats"), ReadResult(begins=0)
        body = self._chance.randbytes(self._chance.choice((0, 10, 5_000, 300_000)))
        wire = await Wire.open(self._port)
        try:
            wire.request(
                "POST",
                f"{receipt.path}?after=0&last={self._chance.randint(1, 50)}",
                body=body,
                X_User=self._user,
                Content_Length=str(len(body)),
            )
            if await self._opened(wire, receipt):
                frames = Frames(reading, receipt)
                first = await wire.piece()
                if f"data: {len(body)} {zlib.crc32(body)}\n".encode() not in first and first != b":\n":
                    self._problem(f"{receipt.path}: the body arrived as {first[:80]!r}")
                frames.feed(first)
                await self._read(wire, receipt, frames, events=9e9, seconds=9e9)
        finally:
            wire.close(self._chance)

    async def _floods(self) -> None:
        """Ask for all there is as fast as it comes, and stop reading."""
        receipt, reading = self._receipt("hose", "floods"), ReadResult()
        receipt.prompt = False
        wire = await Wire.open(self._port, room=LITTLE_ROOM)
        try:
            self._ask(wire, receipt, reading)
            if await self._opened(wire, receipt):
                frames = Frames(reading, receipt)
                await self._read(wire, receipt, frames, events=FLOOD, seconds=9)
                await self._pause(6)  # longer than its stall_timeout, or not
                await self._read(wire, receipt, frames, events=5 * FLOOD, seconds=9)
            receipt.left = True
        finally:
            wire.close(self._chance)

    async def _cuts_its_body(self) -> None:
        """Announce a body and send a part of it."""
        receipt = self._receipt("chat", "cuts its body")
        receipt.prompt = False
        wire = await Wire.open(self._port)
        try:
            wire.request(
                "POST",
                f"{receipt.path}?last=5",
                body=b"x" * self._chance.randint(0, 900),
                X_User=self._user,
                Content_Length="1000",
            )
            await self._pause(0.5)
        finally:
            wire.close(self._chance)

    async def _says_half(self) -> None:
        """Connect, and say nothing, half a request, or nonsense; or ask for a stream and be gone."""
        wire = await Wire.open(self._port)
        try:
            whole = self._receipt("plain", "says half").path.encode()
            wire.send(
                self._chance.choice((b"", b"GET /pla", b"\x16\x03\x01\0\xff", b"GET " + whole + b" HTTP/1.1\r\n\r\n"))
            )
            await self._pause(0.2)
        finally:
            wire.close(self._chance)

    async def _asks_for_the_head(self) -> None:
        """Send HEAD, for which no stream is opened, and another request behind it."""
        wire = await Wire.open(self._port)
        try:
            wire.request("HEAD", f"/plain/{self._name}-head", X_User=self._user)
            wire.request("GET", "/options")
            head = await wire.read_head()
            if head.status != 200 or head.headers["content-type"] != "text/event-stream":
                self._problem(f"HEAD was answered with {head}")
            await self._as_new(wire)
        finally:
            wire.close(self._chance)

    async def _is_refused(self) -> None:
        """Ask for a page where there is a stream."""
        wire = await Wire.open(self._port)
        try:
            wire.request("GET", f"/strict/{self._name}-refused", X_User=self._user, Accept="text/html")
            head = await wire.read_head()
            if head.status != 406:
                self._problem(f"a request for a page was answered with {head}")
            await wire.body()
        finally:
            wire.close(self._chance)

    async def _pause(self, most: float) -> None:
        await asyncio.sleep(self._chance.uniform(0, most))

    def _problem(self, what: str) -> None:
        self._ledger.problems.append(f"{self._name}: {what}")
