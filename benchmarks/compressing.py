"""Compression of one event to many streams: CPU per delivery and bytes on the wire, against streams without it.

A server process with one worker on one core publishes events, one at a time. A load process on the other core opens the
streams, reads them, and counts bytes. A few of its streams are decompressed, and their events are counted. CPU is the
user and system time of the server's processes while it publishes. The servers alternate, figures are medians of the
rounds, and ratios are medians of the rounds' ratios to the streams without compression.

* ``plain``: topic streams without compression.
* ``shared``: topic streams with ``compress=True``.
* ``own``: a plain aiohttp handler with a queue and a compressor for each stream, as a peer does it.
* ``nginx``: the streams of ``plain`` behind nginx, which compresses each of them.

    python benchmarks/compressing.py [--rounds N] [--streams N] [--audience N] [--churn] [--servers NAME,NAME] [--write]

With ``--audience`` the streams are divided among as many topics as needed. With ``--churn`` 1 % of the streams a second
are replaced by new ones. With ``--write`` all ``CASES`` are measured, which takes a quarter of an hour, and are written
to ``results/compression.*``, with a plot. Linux with two cores only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

import psutil
import structlog
from aiohttp import web
from fanning.plot import bars

from aiohttp_interceptors import Event, Hub, as_handler, setup, start_topic_stream

RESULTS = Path(__file__).with_name("results") / "compression"
SERVERS = ("plain", "shared", "own", "nginx")
EVENTS = {"100 B of JSON": 100, "1 kB of JSON": 1000, "5 kB of HTML": 5000}
PAUSE = 0.02  # seconds between two events
SERVER_CORE, LOAD_CORE = 0, 1
TIMEOUT = 120.0  # seconds for one step
CHURN = 0.01  # of the streams, per second
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile 65536;
events {{ worker_connections 40000; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
server {{ listen 127.0.0.1:{port} backlog=4096;
location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1; proxy_buffering off;
gzip on; gzip_types text/event-stream; gzip_comp_level 6; gzip_min_length 0; }} }} }}
"""


def make_event(size: int, number: int) -> str:
    """Make the data of an event of about this size: a row of numbers, or a fragment of a table."""
    generator = random.Random(number)  # noqa: S311  # the same events for each server
    if size < 5000:
        fields = {"id": number, "symbol": generator.choice(["ACME", "INIT", "HOOL"]), "price": generator.random()}
        while len(json.dumps(fields)) < size - 30:
            fields[f"field_{len(fields)}"] = round(generator.uniform(0, 1000), 2)
        return json.dumps(fields)
    rows: list[str] = []
    while len("".join(rows)) < size:
        rows.append(
            f'<tr class="row" id="row-{len(rows)}"><td class="name">Item {len(rows)}</td>'
            f'<td class="price">{generator.uniform(0, 100):.2f}</td></tr>'
        )
    return "".join(rows)


# The server.


async def _own(request: web.Request) -> web.StreamResponse:
    """Compress a stream as a peer does it: a queue, a task and a compressor for each."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})
    await response.prepare(request)
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues: set[asyncio.Queue[str]] = request.app[QUEUES]
    queues.add(queue)
    try:
        while True:
            frame = f"data: {await queue.get()}\n\n".encode()
            await response.write(compressor.compress(frame) + compressor.flush(zlib.Z_SYNC_FLUSH))
    except ConnectionError:
        return response
    finally:
        queues.discard(queue)


QUEUES = web.AppKey("queues", set[asyncio.Queue[str]])


async def serve(name: str) -> None:
    """Serve streams, and publish on request. Prints the port."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    hub = Hub()
    app = web.Application()
    setup(app, hub)
    app[QUEUES] = set()

    async def publish(request: web.Request) -> web.Response:
        size, events, topics = (int(request.query[key]) for key in ("size", "events", "topics"))
        texts = [make_event(size, number) for number in range(events)]
        began = time.process_time()
        for text in texts:
            for topic in range(topics):
                if name == "own":
                    for queue in app[QUEUES]:
                        queue.put_nowait(text)
                else:
                    await hub.publish(f"t{topic}", Event(text))
            await asyncio.sleep(PAUSE)
        return web.json_response({"cpu": time.process_time() - began})

    topics = start_topic_stream(
        hub, lambda context: context.request.match_info["topic"], compress=name == "shared", heartbeat=None, prime=True
    )
    app.router.add_get("/publish", publish)
    app.router.add_get("/{topic}", _own if name == "own" else as_handler(topics))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@contextmanager
def running(name: str) -> Iterator[tuple[int, int, list[psutil.Process]]]:
    """Start a server. Yields the port of its streams, that of its commands, and its processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["taskset", "-c", str(SERVER_CORE), sys.executable, __file__, "--serve", name]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        proxy: subprocess.Popen[bytes] | None = None
        try:
            assert server.stdout is not None
            upstream = port = int(server.stdout.readline())
            processes = [psutil.Process(server.pid)]
            if name == "nginx":
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 0))
                    port = probe.getsockname()[1]
                file = Path(folder, "nginx.conf")
                file.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
                proxy = subprocess.Popen(["taskset", "-c", str(SERVER_CORE), "nginx", "-c", str(file), "-p", folder])  # noqa: S607
                _wait_for(port)
                processes += [psutil.Process(proxy.pid), *psutil.Process(proxy.pid).children()]
            yield port, upstream, processes
        finally:
            for process in filter(None, (proxy, server)):
                process.terminate()
                process.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise TimeoutError("nginx does not listen")


# The load.


class Load:
    """Streams that are read until a command has been answered."""

    def __init__(self, port: int, streams: int, topics: int) -> None:
        self.port, self.topics = port, topics
        self.selector = selectors.DefaultSelector()
        self.bytes = 0
        self.opened = 0
        self.open: list[socket.socket] = []
        for _ in range(streams):
            self.add()
        self.wait_for_heads()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.selector.close()
        for stream in self.open:
            stream.close()

    def add(self) -> None:
        """Open a stream. Every hundredth one is decompressed."""
        stream = socket.create_connection(("127.0.0.1", self.port))
        head = f"GET /t{self.opened % self.topics} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n"
        stream.sendall(head.encode())
        stream.settimeout(0)
        checked = bytearray() if self.opened % 100 == 0 else None
        self.selector.register(stream, selectors.EVENT_READ, checked)
        self.open.append(stream)
        self.opened += 1

    def wait_for_heads(self) -> None:
        """Wait until each stream has its response head, and is subscribed."""
        waiting = {stream.fileno() for stream in self.open}
        while waiting:
            ready = self.selector.select(1)
            if not ready:
                return  # nginx may send the head with the first event
            for key, _ in ready:
                waiting.discard(key.fd)
            list(self.read(0))

    def replace(self) -> None:
        """Close the oldest stream, and open another one."""
        stream = self.open.pop(0)
        self.selector.unregister(stream)
        stream.close()
        self.add()

    def read(self, timeout: float) -> Iterator[int]:
        """Read what has arrived, and yield its sizes."""
        for key, _ in self.selector.select(timeout):
            data = key.fileobj.recv(65536)  # type: ignore[union-attr]  # sockets only
            assert data, "the server closed a stream"
            if key.data is not None:
                key.data.extend(data)
            self.bytes += len(data)
            yield len(data)

    def publish(self, command_port: int, size: int, events: int, *, churn: bool) -> float:
        """Let the server publish, and return the CPU seconds of its process while the streams are read."""
        path = f"/publish?size={size}&events={events}&topics={self.topics}"
        command = socket.create_connection(("127.0.0.1", command_port))
        command.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        command.settimeout(0)
        answer, replaced, began = b"", 0, time.monotonic()
        while not answer.endswith(b"}"):
            assert time.monotonic() - began < TIMEOUT, "the server does not answer"
            list(self.read(0.005))
            if churn and (time.monotonic() - began) * CHURN * len(self.open) > replaced:
                replaced += 1
                self.replace()
            try:
                answer += command.recv(4096)
            except BlockingIOError:
                continue
        while any(self.read(0.2)):
            pass
        return float(json.loads(answer.partition(b"\r\n\r\n")[2])["cpu"])

    def check(self, events: int) -> None:
        """Check that the streams that are decompressed have all events."""
        for key in self.selector.get_map().values():
            if key.data is None:
                continue
            head, _, body = bytes(key.data).partition(b"\r\n\r\n")
            content = b"".join(_chunks(body))
            if b"Content-Encoding: gzip" in head:
                content = zlib.decompressobj(31).decompress(content)
            found = content.count(b"data: ")
            assert found == events, f"{found} of {events} events"


def _chunks(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


class Case(NamedTuple):
    """What is measured."""

    streams: int = 1000
    audience: int = 1000  # streams of a topic
    churn: bool = False
    servers: Sequence[str] = ("plain", "shared")
    rounds: int = 5
    events: int = 100  # of a round

    @property
    def title(self) -> str:
        """What the case is about."""
        audience = "of one topic" if self.audience >= self.streams else f"{self.audience} of each topic"
        churn = ", 1 % replaced a second" * self.churn
        return f"{self.streams:,} streams, {audience}{churn}; {self.rounds} rounds of {self.events} events"


CASES = (
    Case(rounds=9),
    Case(rounds=3, events=30, servers=SERVERS),
    Case(rounds=5, churn=True),
    Case(streams=8000, audience=8000, rounds=3, events=30),
    Case(audience=10, rounds=3, events=40),
    Case(audience=1, rounds=3, events=20),
)


class Row(NamedTuple):
    """The medians of one server, and of its rounds' ratios to the streams without compression."""

    event: str
    server: str
    cpu: float  # µs per delivery
    cpu_ratio: float
    size: float  # bytes per delivery
    size_ratio: float
    memory: float  # KiB a stream


def measure(name: str, size: int, case: Case) -> tuple[float, float, float]:
    """Return the CPU in µs and the bytes per delivery, and the memory of a stream in KiB."""
    topics = max(1, case.streams // case.audience)
    with running(name) as (port, command_port, processes):
        before = sum(process.memory_full_info().uss for process in processes)
        with Load(port, case.streams, topics) as load:
            load.publish(command_port, size, 5, churn=False)
            memory = sum(process.memory_full_info().uss for process in processes) - before
            load.bytes = 0
            used = _cpu(processes)
            load.publish(command_port, size, case.events, churn=case.churn)
            used = _cpu(processes) - used
            if not case.churn and name in ("plain", "shared"):
                load.check(case.events + 5)
    deliveries = case.events * case.streams
    return used / deliveries * 1e6, load.bytes / deliveries, memory / case.streams / 1024


def rows_of(case: Case) -> Iterator[Row]:
    """Measure a case."""
    for label, size in EVENTS.items():
        rounds = [{name: measure(name, size, case) for name in case.servers} for _ in range(case.rounds)]
        for name in case.servers:
            cpu, sent, memory = (statistics.median(each[name][index] for each in rounds) for index in range(3))
            ratios = [
                statistics.median(each[name][index] / each["plain"][index] for each in rounds) for index in (0, 1)
            ]
            yield Row(label, name, cpu, ratios[0], sent, ratios[1], memory)


def report(case: Case) -> tuple[list[str], list[Row]]:
    """Measure a case and print its table. Returns the lines of the table, and the rows."""
    lines = [f"**{case.title}**", "", "| events | server | CPU µs | x plain | bytes | x plain | KiB a stream |"]
    lines.append("|---|---|---|---|---|---|---|")
    print("\n".join(lines), flush=True)
    rows: list[Row] = []
    for row in rows_of(case):
        cells = [row.event, row.server, f"{row.cpu:.2f}", f"{row.cpu_ratio:.2f}"]
        cells += [f"{row.size:.0f}", f"{row.size_ratio:.2f}", f"{row.memory:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        rows.append(row)
    print()
    return [*lines, ""], rows


def _cpu(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description="Measure the compression of one event to many streams.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--audience", type=int, help="streams of a topic; all by default")
    parser.add_argument("--events", type=int, default=100, help="events of a round")
    parser.add_argument("--churn", action="store_true", help="replace 1 %% of the streams a second")
    parser.add_argument("--servers", default=",".join(SERVERS), help=f"some of {', '.join(SERVERS)}")
    parser.add_argument("--write", action="store_true", help=f"measure all cases, and write {RESULTS.name}.*")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _raise_limit()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    os.sched_setaffinity(0, {LOAD_CORE})
    names = [name for name in options.servers.split(",") if name != "nginx" or shutil.which("nginx")]
    audience = options.audience or options.streams
    one = Case(options.streams, audience, options.churn, names, options.rounds, options.events)
    found = [report(case) for case in (CASES if options.write else (one,))]
    if options.write:
        where = f"{datetime.now(UTC):%Y-%m-%d}, Linux {platform.release()}, Python {platform.python_version()}"
        lines = ["# Compression, measured", "", "![CPU and bytes of a delivery](compression.svg)", "", f"{where}.", ""]
        text = "\n".join([*lines, *(line for table, _ in found for line in table)])
        RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
        peers = found[1][1]
        groups = {"CPU": [(row.event, row.server, row.cpu_ratio) for row in peers]}
        groups["bytes"] = [(row.event, row.server, row.size_ratio) for row in peers]
        RESULTS.with_suffix(".svg").write_text(bars(groups), encoding="utf-8")


def _raise_limit() -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


if __name__ == "__main__":
    main()
