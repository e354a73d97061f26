"""The client: one process with bare sockets that drives a server, counts its CPU and checks what it delivered."""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from .control import texts

HERE = Path(__file__).parent.parent
PATIENCE = 30.0  # seconds that a server has for an answer, or for all events of a load
PIECE = 2**18  # bytes to read at most at once
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Server:
    """A server in a process of its own, and what it is told over a connection of its own."""

    def __init__(self, name: str, loop: str, core: int) -> None:
        command = [sys.executable, "-m", "streaming.server", name, loop, str(core)]
        self._process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)  # our own
        assert self._process.stdout is not None
        port = self._process.stdout.readline()
        assert port, f"the server {name} did not start"
        self.address = ("127.0.0.1", int(port))
        # clock_getcpuclockid(3) for another process, which Python has for threads only; psutil counts in hundredths
        self._clock = ~self._process.pid << 3 | 2
        self._control = socket.create_connection(self.address, timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def cpu(self) -> float:
        """Return the seconds of CPU that the process has taken, in user and system mode."""
        return time.clock_gettime(self._clock)

    def tell(self, verb: str, events: int = 0) -> None:
        """Tell it, over the connection of the last ``ask``, without waiting for the answer."""
        self._control.sendall(b"GET /control?verb=%b&events=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (verb.encode(), events))

    def answer(self) -> Any:
        """Read what it answers to what it was told."""
        head, rest = read_head(self._control)
        length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:"))
        while len(rest) < length:
            rest += self._control.recv(PIECE)
        return json.loads(rest)

    def ask(self, verb: str, events: int = 0) -> Any:
        """Tell it over a new connection, for an idle one may have been closed, and return its answer."""
        self._control.close()
        self._control = socket.create_connection(self.address, timeout=PATIENCE)
        self.tell(verb, events)
        return self.answer()

    def open(self, path: str) -> Stream:
        """Open a stream and wait for its head."""
        connection = socket.create_connection(self.address, timeout=PATIENCE)
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n" % path.encode())
        head, rest = read_head(connection)
        assert head.startswith(b"HTTP/1.1 200 "), head
        return Stream(connection, rest)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read a response's head, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(PIECE)
        assert piece, f"the server closed after {data!r}"
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


class Stream:
    """The client's end of an open stream: takes what comes, and looks into it when all is over."""

    def __init__(self, connection: socket.socket, rest: bytes) -> None:
        self._connection = connection
        self._pieces = [rest]
        self._tail = b""

    def fileno(self) -> int:
        """Return what the kernel knows it by."""
        return self._connection.fileno()

    def read(self, last: bytes) -> bool:
        """Take what is there, and return whether it ends with the chunk of this text."""
        piece = self._connection.recv(PIECE)
        assert piece, "the server closed a stream"
        self._pieces.append(piece)
        self._tail = (self._tail + piece)[-2 * len(last) :]
        return piece.endswith(b"\n\r\n") and last in self._tail

    def events(self) -> tuple[list[str], int]:
        """Read to the end of the body; return the data of its events, and in how many chunks they came."""
        while not (self._pieces[-1].endswith(b"0\r\n\r\n")):
            piece = self._connection.recv(PIECE)
            assert piece, "the server closed a stream before the end of its body"
            self._pieces.append(piece)
        body, chunks = unchunked(b"".join(self._pieces))
        lines = body.replace(b"\r\n", b"\n").decode().split("\n")
        frames = "\n".join([line for line in lines if not line.startswith(":")]).split("\n\n")
        return [frame.strip("\n").removeprefix("data: ") for frame in frames if frame.strip("\n")], chunks

    def close(self, *, reset: bool = False) -> None:
        """Close, as a browser does or with a reset."""
        if reset:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self._connection.close()


def unchunked(data: bytes) -> tuple[bytes, int]:
    """Return a whole body without the marks of its chunks, and how many there were."""
    pieces: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        if size == 0:
            return b"".join(pieces), len(pieces)
        pieces.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


class Delivery(NamedTuple):
    """What it took to deliver the events of one load."""

    cpu: float  # the server's seconds per event
    chunk: float  # events that went out in one chunk, on average
    server: float  # the part of the time that the server's CPU was at work
    client: float  # the same of the client: were it near 1, the client would be what is measured


def deliver(server: Server, shape: str, streams: int, events: int) -> Delivery:
    """Have so many streams send so many events each; check that all came, and in order."""
    server.ask("new", events)
    opened = [server.open(f"/{shape}?events={events}") for _ in range(streams)]
    expected = texts(events)
    began, cpu, own = time.monotonic(), server.cpu(), time.process_time()
    server.tell(shape, events)
    read_all(opened, expected[-1].encode())
    cpu, own, took = server.cpu() - cpu, time.process_time() - own, time.monotonic() - began
    server.answer()
    server.ask("done")
    total = 0
    for stream in opened:
        got, chunks = stream.events()
        assert got == expected, f"{len(got)} events came, not {events}, or not in order"
        total += chunks
        stream.close()
    return Delivery(cpu / (streams * events), streams * events / total, cpu / took, own / took)


def read_all(streams: Sequence[Stream], last: bytes) -> None:
    """Read from all streams until each has had this last event."""
    poll = select.epoll()
    of = {stream.fileno(): stream for stream in streams}
    for number in of:
        poll.register(number, select.EPOLLIN)
    waiting = len(of)
    end = time.monotonic() + PATIENCE  # for all of it: heartbeats go on, whatever is lost
    while waiting:
        ready = poll.poll(PATIENCE)
        assert time.monotonic() < end, f"{waiting} streams did not get their last event"
        for number, _ in ready:
            if of[number].read(last):
                waiting -= 1
                poll.unregister(number)
    poll.close()


class Cost(NamedTuple):
    """What an open stream costs the server."""

    memory: float  # bytes
    tasks: float
    timers: float


def hold(server: Server, path: str, streams: int) -> Cost:
    """Open so many idle streams and as many again, and return what each of the latter costs."""
    opened = [server.open(path) for _ in range(streams)]
    before = server.ask("memory")
    opened += [server.open(path) for _ in range(streams)]
    after = server.ask("memory")
    for stream in opened:
        stream.close()
    each = {key: (after[key] - before[key]) / streams for key in before}
    return Cost(each["rss"], each["tasks"], each["timers"])


class Latency(NamedTuple):
    """Seconds from a client's close to the server's knowing of it; infinite if it did not within the bound."""

    closed: list[float]
    refused: list[float]


def leave(server: Server, streams: int, leaving: int, bound: float) -> Latency:
    """Open idle streams, and close some of them one after another, every other one with a reset."""
    opened = [server.open(f"/watched?number={number}") for number in range(streams)]
    left: dict[str, float] = {}
    for number in range(0, streams, streams // leaving):
        time.sleep(0.004)  # each meets a server that is idle again
        left[str(number)] = time.monotonic()
        opened[number].close(reset=len(left) % 2 == 0)
    end = time.monotonic() + bound
    known = server.ask("left")
    while len(known["closed"]) < len(left) and time.monotonic() < end:
        time.sleep(0.05)
        known = server.ask("left")
    for stream in opened:
        stream.close()
    assert set(known["closed"]) <= set(left), "the server says that others left"
    never = float("inf")
    return Latency(*([known[key].get(n, never) - at for n, at in left.items()] for key in ("closed", "refused")))
