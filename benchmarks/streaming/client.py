"""The client: it drives a server over sockets, measures its CPU, and checks the events."""

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
TIMEOUT = 30.0  # seconds for a response, or for all events of a load
READ_SIZE = 2**18  # bytes
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, with a timeout of 0


class Server:
    """A server process, and a connection for commands to it."""

    def __init__(self, name: str, loop: str, core: int) -> None:
        command = [sys.executable, "-m", "streaming.server", name, loop, str(core)]
        self._process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = self._process.stdout.readline()
        assert port, f"the server {name} did not start"
        self.address = ("127.0.0.1", int(port))
        # What clock_getcpuclockid(3) returns, which Python lacks. psutil counts in hundredths of a second.
        self._clock = ~self._process.pid << 3 | 2
        self._control = socket.create_connection(self.address, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def cpu(self) -> float:
        """Return the CPU seconds of the process, in user and system mode."""
        return time.clock_gettime(self._clock)

    def send_command(self, verb: str, events: int = 0) -> None:
        """Send a command on the connection of the latest ``command``, without waiting for the result."""
        self._control.sendall(b"GET /control?verb=%b&events=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (verb.encode(), events))

    def read_result(self) -> Any:
        """Read the result of a command."""
        head, rest = read_head(self._control)
        length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:"))
        while len(rest) < length:
            rest += self._control.recv(READ_SIZE)
        return json.loads(rest)

    def command(self, verb: str, events: int = 0) -> Any:
        """Send a command on a new connection, since an idle one may be closed, and return its result."""
        self._control.close()
        self._control = socket.create_connection(self.address, timeout=TIMEOUT)
        self.send_command(verb, events)
        return self.read_result()

    def open(self, path: str) -> Stream:
        """Open a stream and wait for its response head."""
        connection = socket.create_connection(self.address, timeout=TIMEOUT)
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n" % path.encode())
        head, rest = read_head(connection)
        assert head.startswith(b"HTTP/1.1 200 "), head
        return Stream(connection, rest)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read the head of a response. Return it and the bytes after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(READ_SIZE)
        assert received, f"the server closed after {data!r}"
        data += received
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


class Stream:
    """The client's end of an open stream. Received data is parsed at the end."""

    def __init__(self, connection: socket.socket, received: bytes) -> None:
        self._connection = connection
        self._received = [received]
        self._tail = b""

    def fileno(self) -> int:
        """Return the file descriptor, for epoll."""
        return self._connection.fileno()

    def read(self, last: bytes) -> bool:
        """Read what is available. Return whether it ends with the chunk of the last event."""
        received = self._connection.recv(READ_SIZE)
        assert received, "the server closed a stream"
        self._received.append(received)
        self._tail = (self._tail + received)[-2 * len(last) :]
        return received.endswith(b"\n\r\n") and last in self._tail

    def events(self) -> tuple[list[str], int]:
        """Read to the end of the body. Return the data of its events, and the number of chunks."""
        while not (self._received[-1].endswith(b"0\r\n\r\n")):
            received = self._connection.recv(READ_SIZE)
            assert received, "the server closed a stream before the end of its body"
            self._received.append(received)
        body, chunks = decode_chunks(b"".join(self._received))
        lines = body.replace(b"\r\n", b"\n").decode().split("\n")
        frames = "\n".join([line for line in lines if not line.startswith(":")]).split("\n\n")
        return [frame.strip("\n").removeprefix("data: ") for frame in frames if frame.strip("\n")], chunks

    def close(self, *, reset: bool = False) -> None:
        """Close, with a TCP reset if ``reset``."""
        if reset:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._connection.close()


def decode_chunks(data: bytes) -> tuple[bytes, int]:
    """Remove the chunk framing of a complete body. Return the body and the number of chunks."""
    chunks: list[bytes] = []
    start = 0
    while True:
        end = data.index(b"\r\n", start)
        size = int(data[start:end], 16)
        if size == 0:
            return b"".join(chunks), len(chunks)
        chunks.append(data[end + 2 : end + 2 + size])
        start = end + 2 + size + 2


class Delivery(NamedTuple):
    """The cost of delivering the events of one load."""

    cpu: float  # CPU seconds of the server per event
    chunk: float  # events per chunk
    server: float  # CPU utilisation of the server
    client: float  # CPU utilisation of the client; near 1, the client would be the bottleneck


def deliver(server: Server, shape: str, streams: int, events: int) -> Delivery:
    """Send ``events`` events on each of some streams, and check that all are received in order."""
    server.command("new", events)
    opened = [server.open(f"/{shape}?events={events}") for _ in range(streams)]
    expected = texts(events)
    started, cpu, own_cpu = time.monotonic(), server.cpu(), time.process_time()
    server.send_command(shape, events)
    read_all(opened, expected[-1].encode())
    cpu, own_cpu, seconds = server.cpu() - cpu, time.process_time() - own_cpu, time.monotonic() - started
    server.read_result()
    server.command("done")
    total = 0
    for stream in opened:
        received, chunks = stream.events()
        assert received == expected, f"received {len(received)} events, not {events}, or out of order"
        total += chunks
        stream.close()
    return Delivery(cpu / (streams * events), streams * events / total, cpu / seconds, own_cpu / seconds)


def read_all(streams: Sequence[Stream], last: bytes) -> None:
    """Read from all streams until each has received the last event."""
    poll = select.epoll()
    by_descriptor = {stream.fileno(): stream for stream in streams}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    waiting = len(by_descriptor)
    end = time.monotonic() + TIMEOUT  # a total, since heartbeats arrive even if events are lost
    while waiting:
        ready = poll.poll(TIMEOUT)
        assert time.monotonic() < end, f"{waiting} streams did not receive their last event"
        for descriptor, _ in ready:
            if by_descriptor[descriptor].read(last):
                waiting -= 1
                poll.unregister(descriptor)
    poll.close()


class Cost(NamedTuple):
    """The cost of an open stream for the server."""

    memory: float  # bytes
    tasks: float
    timers: float


def hold(server: Server, path: str, streams: int) -> Cost:
    """Open ``streams`` idle streams twice, and return the cost of each stream of the second half."""
    opened = [server.open(path) for _ in range(streams)]
    before = server.command("memory")
    opened += [server.open(path) for _ in range(streams)]
    after = server.command("memory")
    for stream in opened:
        stream.close()
    per_stream = {key: (after[key] - before[key]) / streams for key in before}
    return Cost(per_stream["rss"], per_stream["tasks"], per_stream["timers"])


def request(server: Server, path: str, count: int) -> float:
    """Request a stream that ends by itself ``count`` times, on one connection. Return the CPU seconds of each."""
    line = b"GET %b HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n" % path.encode()
    with socket.create_connection(server.address, timeout=TIMEOUT) as connection:
        cpu = server.cpu()
        for _ in range(count):
            connection.sendall(line)
            response = b""
            while not response.endswith(b"0\r\n\r\n"):
                received = connection.recv(READ_SIZE)
                assert received, f"the server closed after {response!r}"
                response += received
        return (server.cpu() - cpu) / count


class Latency(NamedTuple):
    """Seconds from a disconnect until the server detects it. Infinite after the timeout."""

    closed: list[float]
    refused: list[float]


def disconnect(server: Server, streams: int, count: int, timeout: float) -> Latency:
    """Open idle streams, and close ``count`` of them one after another, every second one with a reset."""
    opened = [server.open(f"/watched?number={number}") for number in range(streams)]
    closed_at: dict[str, float] = {}
    for number in range(0, streams, streams // count):
        time.sleep(0.004)  # so that the server is idle again
        closed_at[str(number)] = time.monotonic()
        opened[number].close(reset=len(closed_at) % 2 == 0)
    end = time.monotonic() + timeout
    detected = server.command("disconnects")
    while len(detected["closed"]) < len(closed_at) and time.monotonic() < end:
        time.sleep(0.05)
        detected = server.command("disconnects")
    for stream in opened:
        stream.close()
    assert set(detected["closed"]) <= set(closed_at), "the server reports other disconnects"
    never = float("inf")
    return Latency(
        *([detected[key].get(n, never) - then for n, then in closed_at.items()] for key in ("closed", "refused"))
    )
