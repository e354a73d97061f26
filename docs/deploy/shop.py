"""An application for systemd, gunicorn and containers."""

import os
import socket

from aiohttp import web

from aiohttp_interceptors import Drain, Hub, live_handler, ready_handler, setup, topic_stream
from aiohttp_interceptors.brokers.sqlite import SqliteBroker

hub = Hub(SqliteBroker("/var/lib/shop/events.sqlite3"))
app = web.Application()
setup(app, hub, drain=Drain(spread=5, grace=5, timeout=1), max_streams=50_000)
app.add_routes(
    [
        web.get("/prices", topic_stream(hub, "prices", retry=2000)),
        web.get("/live", live_handler()),
        web.get("/ready", ready_handler(hub)),
    ]
)

if __name__ == "__main__":
    systemd = "LISTEN_FDS" in os.environ  # then shop.socket is file descriptor 3
    where = {"sock": socket.socket(fileno=3)} if systemd else {"port": 8080}
    web.run_app(app, **where, backlog=4096, shutdown_timeout=5)
