"""One life of the server that is soaked: from its start to SIGTERM.

    python tests/soak/server.py PORT EPOCH asyncio|uvloop FACTS MAX_STREAMS PER_USER

Prints the port of its control, which tells what the process holds. What happens to streams goes into the file FACTS,
what is logged to the standard error.
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
from census import census, until_calm
from feed import Feed
from routes import Book, application

from aiohttp_interceptors import STREAMS, Hub, Streams

AFTER_THE_END = 5.0  # seconds in which what closes must have closed


def control(streams: Streams, *hubs: Hub) -> web.Application:
    """Make the application that tells what the process holds, now or since ``/remember``."""
    began: dict[str, int] = {}

    async def remember(request: web.Request) -> web.Response:
        began.update(census(streams, *hubs))
        return web.json_response(began)

    async def calm(request: web.Request) -> web.Response:
        more = await until_calm(streams, began, float(request.query["patience"]), *hubs)
        return web.json_response(more)

    app = web.Application()
    app.router.add_get("/remember", remember)
    app.router.add_get("/calm", calm)
    return app


class LateConnections:
    """Close the sockets of connections that asyncio accepted as their server closed, which asyncio does not.

    docs/upstream.md has the program that shows it. Any other transport that is left open complains as ever.
    """

    def __init__(self) -> None:
        self.count = 0
        attach = asyncio.base_events.Server._attach

        def close_first(server: asyncio.base_events.Server) -> None:
            if server._sockets is None:
                self.count += 1
                transport = sys._getframe(1).f_locals["self"]  # whose making fails by this
                transport._sock.close()
                transport._sock = None
            attach(server)

        asyncio.base_events.Server._attach = close_first


class Lines(logging.Formatter):
    """What aiohttp and asyncio log, a line each, as the library's own."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        line = {
            "level": record.levelname.lower(),
            "event": f"{record.name}: {record.getMessage()}",
            "kind": "" if error is None else f"{type(error).__module__}.{type(error).__name__}",
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps(line)


async def serve(app: web.Application, port: int, book: Book, *hubs: Hub) -> None:
    """Serve until SIGTERM, and write down what is left then."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    late = LateConnections()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    watched = web.AppRunner(control(app[STREAMS], *hubs), access_log=None)
    await watched.setup()
    await web.TCPSite(watched, "127.0.0.1", 0).start()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    await asyncio.sleep(0)
    began = census(app[STREAMS], *hubs)
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    sys.stdout.write(f"{watched.addresses[0][1]}\n")
    sys.stdout.flush()
    await stop.wait()
    before = loop.time()
    await runner.cleanup()
    book.total("cleanup", loop.time() - before)
    book.total("left", await until_calm(app[STREAMS], began, AFTER_THE_END, *hubs))
    await watched.cleanup()
    book.total("late", late.count)


async def live(port: int, epoch: int, facts: Path, max_streams: int, per_user: int) -> None:
    feed = Feed(epoch)
    grow = asyncio.create_task(feed.grow())
    with facts.open("w") as file:
        book = Book(file)
        await serve(application(feed, book, max_streams, per_user), port, book)
    grow.cancel()


def run(name: str, life: Coroutine[None, None, None]) -> None:
    """Run a life of a server on the event loop of this name, and log a line for each entry."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )  # fmt: skip
    factory = uvloop.new_event_loop if name == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(life)
        gc.collect()  # what was lost complains now


def main() -> None:
    port, epoch, name, facts, max_streams, per_user = sys.argv[1:]
    run(name, live(int(port), int(epoch), Path(facts), int(max_streams), int(per_user)))


if __name__ == "__main__":
    main()
