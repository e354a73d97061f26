"""Run the example: ``python -m example_app [--port 8080]``."""

from __future__ import annotations

import argparse
import errno
import os
import sys

import structlog
from aiohttp import web

from . import logs
from .app import make_app

PORTS = range(1, 65536)
HOST = "127.0.0.1"  # for this machine only: anybody who may see the page sees what the machine does


def port_number(text: str) -> int:
    """Return the port that a text names, or raise ``ValueError``, which argparse explains to the user."""
    port = int(text)
    if port not in PORTS:
        raise ValueError(text)
    return port


port_number.__name__ = "port number"  # argparse says: invalid port number value: 'x'


def main() -> int:
    """Serve until Ctrl-C, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description="Watch this machine in a browser.")
    parser.add_argument(
        "--port", type=port_number, default=os.environ.get("PORT", "8080"), help="default: $PORT, or else 8080"
    )
    port: int = parser.parse_args().port
    logs.configure()
    log = structlog.get_logger("example_app")

    def announce(_: object) -> None:
        log.info("serving", url=f"http://{HOST}:{port}", stop="Ctrl-C")

    try:
        web.run_app(
            make_app(),
            host=HOST,
            port=port,
            backlog=4096,  # aiohttp's 128 would make a crowd that reconnects at once wait for seconds
            access_log=None,  # request_log writes it
            print=announce,  # called once the port is open
            shutdown_timeout=2.0,  # for requests in flight; streams end at once
        )
    except OSError as error:
        explanation = explain(error, port)
        if explanation is None:
            raise
        print(explanation, file=sys.stderr)
        return 1
    return 0


def explain(error: OSError, port: int) -> str | None:
    """Say what to do about a port that cannot be had, or ``None`` if that is not the matter."""
    if error.errno == errno.EADDRINUSE:
        another = port + 1 if port + 1 in PORTS else 8080
        return f"port {port} is taken; stop what uses it, or choose another: PORT={another} make demo"
    if error.errno == errno.EACCES:
        return f"port {port} is for the administrator; choose another: PORT=8080 make demo"
    return None


if __name__ == "__main__":
    sys.exit(main())
