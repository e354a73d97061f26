"""Clients that open streams one after another, and misbehave at random."""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections import Counter

from tests.soak.client_stream import ClientPosition, ClientStream, FrameChecker
from tests.soak.connection import Connection, ConnectionLost, ReadTimedOut

# The query that each route is requested with.
FROM_NOW, UP_TO = "", "?after=0&last={last}"
ROUTES = {"plain": FROM_NOW, "aged": FROM_NOW, "sliding": FROM_NOW, "strict": FROM_NOW, "hose": FROM_NOW,
          "failing": "?count=20", "finite": UP_TO, "generated": UP_TO}  # fmt: skip
ROUTE_WEIGHTS = ("plain", "plain", *ROUTES)
BEHAVIORS = ("reads all", "reads all", "disconnects", "disconnects", "resets", "half-closes", "reads slowly",
             "sends garbage")  # fmt: skip
RARE_BEHAVIORS = ("pipelines", "reuses the connection", "posts a body", "stops reading", "truncates its body",
                  "sends half a request", "sends HEAD", "asks for HTML")  # fmt: skip
STATUS_WITHOUT_STREAM = {204, 429, 503}
# Receive buffers of slow clients, in bytes. The kernel acknowledges data that was read in steps of up to half a buffer:
# with a small one, /hose takes some clients that read slowly for stalled ones.
SMALL_BUFFER, BUFFER = 4096, 65536
EVENTS_BEFORE_STOP = 100  # events of /hose that a client reads before it stops reading
UNLIMITED = 9e9


class ClientResults:
    """What all clients observed."""

    def __init__(self) -> None:
        self.streams: dict[str, ClientStream] = {}
        self.problems: list[str] = []
        self.behaviors: Counter[str] = Counter()
        self.baseline: dict[int, object] = {}  # the settings of a new connection, by server
        self.connections: list[tuple[str, dict[str, object]]] = []  # those of other connections, by client

    def check_connections(self) -> None:
        """Find connections whose settings were not restored after a stream."""
        for name, settings in self.connections:
            if settings != self.baseline.get(settings["epoch"]):
                self.problems.append(f"{name}: a stream changed the settings of its connection: {settings}")


class Client:
    """One client. It runs until its task is cancelled."""

    def __init__(self, number: int, seed: int, port: int, results: ClientResults, users: int, epoch: int) -> None:
        self._rng = random.Random(f"{seed} {number}")
        self._name = f"c{number}e{epoch}"  # the epoch makes names unique over all servers
        self._user = f"u{number % users}"
        self._port = port
        self._results = results
        self._streams = 0
        self._current: ClientStream | None = None

    async def run(self) -> None:
        """Run until cancelled. Unexpected exceptions are recorded as problems."""
        while True:
            behavior = self._rng.choice(RARE_BEHAVIORS) if self._rng.random() < 0.35 else "resumes"
            self._results.behaviors[behavior] += 1
            try:
                await getattr(self, "_" + behavior.replace(" ", "_"))()
            except asyncio.CancelledError:
                if self._current is not None:
                    self._current.disconnected = True
                raise
            except (ConnectionLost, ConnectionError):
                await self._pause(0.2)  # the server restarts, or it received garbage
            except ReadTimedOut:
                self._problem(f"{behavior}: the server sent nothing for too long")
            except Exception as error:  # noqa: BLE001  # as the docstring says
                self._problem(f"{behavior}: {error!r}")
            await self._pause(0.1)

    def _new_stream(self, route: str, behavior: str) -> ClientStream:
        self._streams += 1
        stream = self._current = ClientStream(route, f"/{route}/{self._name}-{self._streams}", behavior)
        self._results.streams[stream.path] = stream
        return stream

    def _request(
        self,
        connection: Connection,
        stream: ClientStream,
        position: ClientPosition,
        query: str = "",
        version: str = "1.1",
    ) -> None:
        connection.request("GET", stream.path + query, version, X_User=self._user, Last_Event_ID=position.last_event_id)

    async def _opened(self, connection: Connection, stream: ClientStream) -> bool:
        """Read the head of a response, and the body if it is not a stream. Return whether it is one."""
        head = await connection.read_head()
        stream.status = head.status
        if head.status == 200:
            return True
        if head.status not in STATUS_WITHOUT_STREAM:
            self._problem(f"{stream.path} ({stream.behavior}): status {head.status}")
        elif head.status in {429, 503}:
            if not 1 <= int(head.headers.get("retry-after", 0)) <= 10:
                self._problem(f"{stream.path}: {head.status} with Retry-After {head.headers.get('retry-after')}")
            await connection.read_body()
        return False

    async def _read(
        self, connection: Connection, stream: ClientStream, checker: FrameChecker, *, events: float, seconds: float
    ) -> bool:
        """Read a stream until it has ``events`` events or ``seconds`` passed. Return whether it ended before."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while stream.events < events and loop.time() < end:
            if not (chunk := await connection.read_chunk()):
                if connection.head.chunked:
                    checker.end()
                return True
            checker.feed(chunk)
            if stream.behavior == "reads slowly":
                await self._pause(0.3)
        return False

    async def _read_all(self, connection: Connection, stream: ClientStream, position: ClientPosition) -> None:
        """Read a stream to its end, if the response is one."""
        if await self._opened(connection, stream):
            checker = FrameChecker(position, stream)
            await self._read(connection, stream, checker, events=UNLIMITED, seconds=UNLIMITED)

    async def _resumes(self) -> None:
        """Open a stream several times, each time after the last event that was received."""
        route, position = self._rng.choice(ROUTE_WEIGHTS), ClientPosition()
        if ROUTES[route] == UP_TO:
            position = ClientPosition(start=0)
        last = self._rng.randint(1, 80)
        for _ in range(self._rng.randint(1, 6)):
            behavior = self._rng.choice(BEHAVIORS) if route != "hose" else "reads slowly"  # /hose never pauses
            self._results.behaviors[behavior] += 1
            stream = self._new_stream(route, behavior)
            try:
                await self._open_and_read(stream, position, last)
            except (ConnectionLost, ConnectionError) as error:
                if stream.prompt and stream.status == 200:
                    self._problem(f"{stream.path} ({behavior}): disconnected while it was read: {error!r}")
                await self._pause(0.3)
            is_end = stream.complete and route in {"finite", "generated"} and position.number == last
            if stream.status == 204 or is_end:
                return
            if stream.status in {429, 503}:
                await self._pause(1.5)

    async def _open_and_read(self, stream: ClientStream, position: ClientPosition, last: int) -> None:
        behavior, checker = stream.behavior, FrameChecker(position, stream)
        stream.prompt = behavior == "reads all"
        buffer = 0 if behavior != "reads slowly" else BUFFER if stream.route == "hose" else SMALL_BUFFER
        connection = await Connection.open(self._port, receive_buffer=buffer)
        try:
            version = "1.0" if behavior == "disconnects" and self._rng.random() < 0.2 else "1.1"
            self._request(connection, stream, position, ROUTES[stream.route].format(last=last), version)
            if not await self._opened(connection, stream):
                return
            if behavior == "sends garbage":
                connection.send(self._rng.randbytes(self._rng.choice((1, 100, 5_000, 200_000))))
            if behavior in {"reads all", "reads slowly", "sends garbage"}:
                events, seconds = UNLIMITED, self._rng.uniform(1, 12)
            else:
                events, seconds = self._rng.randint(0, 40), 5
            if await self._read(connection, stream, checker, events=events, seconds=seconds):
                return
            stream.disconnected = True
            if behavior == "half-closes":
                connection.half_close()
                await connection.wait_closed_by_server()
            elif behavior == "resets":
                connection.reset()
        finally:
            connection.close(self._rng)

    # Rare behaviors.

    async def _pipelines(self) -> None:
        """Send many requests after one for a stream. They are handled when the stream has ended."""
        stream, position = self._new_stream("finite", "pipelines"), ClientPosition(start=0)
        connection = await Connection.open(self._port)
        try:
            requests = self._rng.randint(1, 40)
            self._request(connection, stream, position, f"?after=0&last={self._rng.randint(1, 30)}")
            for _ in range(requests):
                connection.request("GET", "/options")
            await self._read_all(connection, stream, position)
            for _ in range(requests):
                await self._read_settings(connection)
        finally:
            connection.close(self._rng)

    async def _reuses_the_connection(self) -> None:
        """Request several streams and other responses on one connection."""
        connection = await Connection.open(self._port)
        try:
            connection.request("GET", "/options")
            await self._read_settings(connection)
            for _ in range(self._rng.randint(1, 5)):
                route = self._rng.choice(("finite", "generated"))
                stream, position = self._new_stream(route, "reuses the connection"), ClientPosition(start=0)
                self._request(connection, stream, position, f"?after=0&last={self._rng.randint(1, 30)}")
                await self._read_all(connection, stream, position)
                connection.request("GET", "/options")
                await self._read_settings(connection)
        finally:
            connection.close(self._rng)

    async def _read_settings(self, connection: Connection) -> None:
        """Read the response of ``/options``: the settings of the connection, which a stream must restore."""
        await connection.read_head()
        settings = json.loads(await connection.read_body())
        self._results.connections.append((self._name, settings))

    async def _posts_a_body(self) -> None:
        """Send a body, which the server reads before the first event."""
        stream, position = self._new_stream("chat", "posts a body"), ClientPosition(start=0)
        body = self._rng.randbytes(self._rng.choice((0, 10, 5_000, 300_000)))
        connection = await Connection.open(self._port)
        try:
            connection.request(
                "POST",
                f"{stream.path}?after=0&last={self._rng.randint(1, 50)}",
                body=body,
                X_User=self._user,
                Content_Length=str(len(body)),
            )
            if await self._opened(connection, stream):
                checker = FrameChecker(position, stream)
                first = await connection.read_chunk()
                if f"data: {len(body)} {zlib.crc32(body)}\n".encode() not in first and first != b":\n":
                    self._problem(f"{stream.path}: the server received another body: {first[:80]!r}")
                checker.feed(first)
                await self._read(connection, stream, checker, events=UNLIMITED, seconds=UNLIMITED)
        finally:
            connection.close(self._rng)

    async def _stops_reading(self) -> None:
        """Open an endless stream without pauses, and stop reading for a while."""
        stream, position = self._new_stream("hose", "stops reading"), ClientPosition()
        stream.prompt = False
        connection = await Connection.open(self._port, receive_buffer=SMALL_BUFFER)
        try:
            self._request(connection, stream, position)
            if await self._opened(connection, stream):
                checker = FrameChecker(position, stream)
                await self._read(connection, stream, checker, events=EVENTS_BEFORE_STOP, seconds=9)
                await self._pause(6)  # longer than the stall_timeout, or shorter
                await self._read(connection, stream, checker, events=5 * EVENTS_BEFORE_STOP, seconds=9)
            stream.disconnected = True
        finally:
            connection.close(self._rng)

    async def _truncates_its_body(self) -> None:
        """Send less of a body than ``Content-Length`` says."""
        stream = self._new_stream("chat", "truncates its body")
        stream.prompt = False
        connection = await Connection.open(self._port)
        try:
            connection.request(
                "POST",
                f"{stream.path}?last=5",
                body=b"x" * self._rng.randint(0, 900),
                X_User=self._user,
                Content_Length="1000",
            )
            await self._pause(0.5)
        finally:
            connection.close(self._rng)

    async def _sends_half_a_request(self) -> None:
        """Connect, and send nothing, a part of a request, garbage, or a request whose response is not read."""
        connection = await Connection.open(self._port)
        try:
            path = self._new_stream("plain", "sends half a request").path.encode()
            connection.send(
                self._rng.choice((b"", b"GET /pla", b"\x16\x03\x01\0\xff", b"GET " + path + b" HTTP/1.1\r\n\r\n"))
            )
            await self._pause(0.2)
        finally:
            connection.close(self._rng)

    async def _sends_HEAD(self) -> None:  # noqa: N802  # named by its behavior
        """Send HEAD, which opens no stream, and another request after it."""
        connection = await Connection.open(self._port)
        try:
            connection.request("HEAD", f"/plain/{self._name}-head", X_User=self._user)
            connection.request("GET", "/options")
            head = await connection.read_head()
            if head.status != 200 or head.headers["content-type"] != "text/event-stream":
                self._problem(f"the response to HEAD was {head}")
            await self._read_settings(connection)
        finally:
            connection.close(self._rng)

    async def _asks_for_HTML(self) -> None:  # noqa: N802  # named by its behavior
        """Request a strict stream with ``Accept: text/html``, which is refused."""
        connection = await Connection.open(self._port)
        try:
            connection.request("GET", f"/strict/{self._name}-refused", X_User=self._user, Accept="text/html")
            head = await connection.read_head()
            if head.status != 406:
                self._problem(f"the response to a request for HTML was {head}")
            await connection.read_body()
        finally:
            connection.close(self._rng)

    async def _pause(self, max_seconds: float) -> None:
        await asyncio.sleep(self._rng.uniform(0, max_seconds))

    def _problem(self, message: str) -> None:
        self._results.problems.append(f"{self._name}: {message}")
