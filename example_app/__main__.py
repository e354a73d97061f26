"""Run the example: ``python -m example_app [--port 8080] [--history FILE | --redis URL | --nodes COUNT]``.

``--history`` keeps the rooms in a SQLite file, ``--redis`` in a Redis or Valkey, and ``--nodes`` starts several servers
on one Valkey.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

import structlog
from aiohttp import web

from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.hub.broker import Broker

from . import logs, nodes
from .app import make_app

PORTS = range(1, 65536)
HISTORY = Path(__file__).parent / "history.sqlite3"
HOST = "127.0.0.1"  # only this machine, since the page shows its load without authentication


def port_number(text: str) -> int:
    """Parse a port number. Raises ``ValueError``, which argparse reports."""
    port = int(text)
    if port not in PORTS:
        raise ValueError(text)
    return port


port_number.__name__ = "port number"  # argparse reports: invalid port number value: 'x'


def main() -> int:
    """Serve until Ctrl-C, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description="Watch this machine in a browser.")
    parser.add_argument(
        "--port", type=port_number, default=os.environ.get("PORT", "8080"), help="default: $PORT, or else 8080"
    )
    parser.add_argument(
        "--history",
        metavar="FILE",
        default=os.environ.get("HISTORY", str(HISTORY)),
        help="SQLite file that keeps the rooms across restarts; servers with the same file share them",
    )
    parser.add_argument("--redis", metavar="URL", help="keep the rooms in a Redis or Valkey instead of a file")
    parser.add_argument(
        "--nodes",
        type=int,
        default=1,
        choices=range(1, 10),
        metavar="COUNT",
        help="start several servers on one Valkey, which is started too",
    )
    arguments = parser.parse_args()
    port: int = arguments.port
    logs.configure()
    if arguments.nodes > 1:
        return nodes.run(arguments.nodes, port)
    log = structlog.get_logger("example_app")

    def announce(_: object) -> None:
        log.info("serving", url=f"http://{HOST}:{port}", what="a tour of aiohttp_interceptors", stop="Ctrl-C")

    try:
        web.run_app(
            make_app(broker_of(arguments.redis, arguments.history)),
            host=HOST,
            port=port,
            backlog=4096,  # with aiohttp's 128, many clients that reconnect together would wait for seconds
            access_log=None,  # request_log replaces it
            print=announce,  # called when the port is open
            shutdown_timeout=2.0,  # seconds for requests in flight; streams end immediately
        )
    except OSError as error:
        message = explain(error, port)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return 1
    return 0


def broker_of(url: str | None, file: str) -> Broker:
    """Return the broker that keeps the rooms."""
    if url is None:
        return SqliteBroker(file)
    from aiohttp_interceptors.brokers.redis import RedisBroker  # noqa: PLC0415  # needs redis-py, which is optional

    return RedisBroker(url)


def explain(error: OSError, port: int) -> str | None:
    """Return a message that says what to do about a port that cannot be opened, or None for other errors."""
    if error.errno == errno.EADDRINUSE:
        another = port + 1 if port + 1 in PORTS else 8080
        return f"port {port} is in use; stop the process that uses it, or choose another: PORT={another} make demo"
    if error.errno == errno.EACCES:
        return f"port {port} needs root; choose another: PORT=8080 make demo"
    return None


if __name__ == "__main__":
    sys.exit(main())
