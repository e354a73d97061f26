"""An application process of the fail-over test: a Hub on a broker. It runs until SIGTERM.

    python -m tests.soak.failover_server PORT BROKER

``BROKER`` is a JSON object with the arguments of ``broker_of``. Log lines are written to standard error as JSON. The
process exits when its standard input is closed, so that it does not outlive its parent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Callable

import structlog
from aiohttp import web

from aiohttp_interceptors import Hub, as_handler, setup, start_topic_stream
from aiohttp_interceptors.brokers import redis
from aiohttp_interceptors.brokers.nats import NatsBroker
from aiohttp_interceptors.brokers.postgres import PostgresBroker
from aiohttp_interceptors.brokers.redis import RedisBroker
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.exceptions import BrokerDown, BrokerError, OutcomeUnknown
from tests.soak.failover_ledger import text

HISTORY = 20_000  # records of each topic: none is evicted, so that no such gap hides a loss
HEARTBEAT = 1.0  # seconds
RETRY = 200  # milliseconds


def sqlite(path: str):
    return SqliteBroker(path)


def sentinel(sentinels: list[tuple[str, int]], service: str):
    return RedisBroker(redis.sentinel([(host, port) for host, port in sentinels], service))


def cluster(nodes: list[tuple[str, int]], stream: str):
    return RedisBroker(redis.cluster_node([(host, port) for host, port in nodes], stream=stream), stream=stream)


def postgres(dsn: str, table: str):
    return PostgresBroker(dsn, table=table)


def nats(urls: list[str], stream: str, replicas: int):
    return NatsBroker(urls, stream=stream, replicas=replicas)


BROKERS: dict[str, Callable[..., object]] = {
    "sqlite": sqlite, "sentinel": sentinel, "cluster": cluster, "postgres": postgres, "nats": nats,
}  # fmt: skip


def broker_of(kind: str, **options: object):
    """Create a broker, configured as the documentation says."""
    return BROKERS[kind](**options)


def application(hub: Hub) -> web.Application:
    """Create the application: events, publishing, and readiness."""

    async def publish(request: web.Request) -> web.Response:
        number = int(request.query["number"])
        try:
            event_id = await hub.publish(request.query["topic"], text(number), idempotency_key=str(number))
        except BrokerError as error:
            status = 503 if isinstance(error, BrokerDown) else 504 if isinstance(error, OutcomeUnknown) else 500
            return web.json_response({"error": type(error).__name__, "text": str(error)}, status=status)
        return web.json_response({"id": event_id})

    async def ready(request: web.Request) -> web.Response:
        return web.Response(status=200 if hub.ready else 503)

    app = web.Application()
    setup(app, hub)
    app.router.add_post("/publish", publish)
    app.router.add_get("/ready", ready)
    app.router.add_get("/events", as_handler(start_topic_stream(hub, "t.*", heartbeat=HEARTBEAT, retry=RETRY)))
    return app


def exit_with_standard_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(3)


def main() -> None:
    port, broker = sys.argv[1:]
    threading.Thread(target=exit_with_standard_input, daemon=True).start()
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(),
                    structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )  # fmt: skip

    async def create() -> web.Application:
        return application(Hub(broker_of(**json.loads(broker)), history=HISTORY, history_bytes=None))

    web.run_app(create(), host="127.0.0.1", port=int(port), access_log=None, print=None, loop=asyncio.new_event_loop())


if __name__ == "__main__":
    main()
