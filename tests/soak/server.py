"""The server process of the soak test. It runs until SIGTERM.

    python -m tests.soak.server PORT EPOCH asyncio|uvloop FACTS MAX_STREAMS PER_USER

Prints the port of a second application, which reports what the process holds. What happens to streams is written to the
file FACTS, and log lines to standard error.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path

import structlog
import uvloop
from aiohttp import web

from aiohttp_interceptors import STREAMS, Hub, Streams
from tests.soak.feed import Feed
from tests.soak.resources import count_baseline, wait_released
from tests.soak.routes import FactLog, application

RELEASE_TIMEOUT = 5.0  # seconds after the end in which everything must be released


def control(streams: Streams, *hubs: Hub) -> web.Application:
    """Create the application that reports what the process holds more than at ``/baseline``."""
    baseline: dict[str, int] = {}

    async def set_baseline(request: web.Request) -> web.Response:
        baseline.update(await count_baseline(streams, *hubs))
        return web.json_response(baseline)

    async def leaks(request: web.Request) -> web.Response:
        more = await wait_released(streams, baseline, float(request.query["timeout"]), *hubs)
        return web.json_response(more)

    app = web.Application()
    app.router.add_get("/baseline", set_baseline)
    app.router.add_get("/leaks", leaks)
    return app


class LateConnections:
    """Closes the sockets of connections that asyncio accepted while their server closed, which asyncio does not do.

    docs/upstream.md has a program that shows this. Any other transport that stays open still causes a ResourceWarning.
    """

    def __init__(self) -> None:
        self.count = 0
        attach = asyncio.base_events.Server._attach

        def close_first(server: asyncio.base_events.Server) -> None:
            if server._sockets is None:
                self.count += 1
                transport = sys._getframe(1).f_locals["self"]  # its constructor called this, and will raise
                transport._sock.close()
                transport._sock = None
            attach(server)

        asyncio.base_events.Server._attach = close_first


class JsonFormatter(logging.Formatter):
    """Formats the log records of aiohttp and asyncio as JSON lines, like those of the library."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        line = {
            "level": record.levelname.lower(),
            "event": f"{record.name}: {record.getMessage()}",
            "kind": "" if error is None else f"{type(error).__module__}.{type(error).__name__}",
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps(line)


async def serve(app: web.Application, port: int, log: FactLog, *hubs: Hub) -> None:
    """Serve until SIGTERM, and log what is left then."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    late = LateConnections()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    control_runner = web.AppRunner(control(app[STREAMS], *hubs), access_log=None)
    await control_runner.setup()
    await web.TCPSite(control_runner, "127.0.0.1", 0).start()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    baseline = await count_baseline(app[STREAMS], *hubs)
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    sys.stdout.write(f"{control_runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await stop.wait()
    started = loop.time()
    await runner.cleanup()
    log.total("cleanup", loop.time() - started)
    log.total("leaks", await wait_released(app[STREAMS], baseline, RELEASE_TIMEOUT, *hubs))
    await control_runner.cleanup()
    log.total("late", late.count)


async def serve_feed(port: int, epoch: int, facts: Path, max_streams: int, per_user: int) -> None:
    feed = Feed(epoch)
    growing = asyncio.create_task(feed.run())
    with facts.open("w") as file:
        log = FactLog(file)
        await serve(application(feed, log, max_streams, per_user), port, log)
    growing.cancel()


def run(loop_name: str, main: Coroutine[None, None, None]) -> None:
    """Run a server on the event loop of this name, with log lines in JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )  # fmt: skip
    factory = uvloop.new_event_loop if loop_name == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
        gc.collect()  # finalizers of leaked objects warn now


def main() -> None:
    port, epoch, loop_name, facts, max_streams, per_user = sys.argv[1:]
    run(loop_name, serve_feed(int(port), int(epoch), Path(facts), int(max_streams), int(per_user)))


if __name__ == "__main__":
    main()
