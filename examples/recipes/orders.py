"""A JSON API whose events are written in the transaction that changes the data (an outbox in SQLite)."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from json import dumps

from aiohttp import web

from aiohttp_interceptors import (
    BrokerError,
    ContextKey,
    Event,
    Hub,
    RequestContext,
    as_handler,
    before,
    interceptor_middleware,
    setup,
    topic_stream,
)
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.ready import (
    InvalidBody,
    Problem,
    json_body,
    problem_details,
    rate_limit,
    request_id,
    transaction,
)

MAX_COUNT = 1000


@dataclass
class Order:
    article: str
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise InvalidBody(f"expected 1 to {MAX_COUNT}", "$.count")


class OutOfStock(Exception):
    pass


ORDER, DATABASE = ContextKey[Order]("order"), ContextKey[sqlite3.Connection]("database")
SCHEMA = """
CREATE TABLE IF NOT EXISTS stock (article TEXT PRIMARY KEY, count INTEGER NOT NULL CHECK (count >= 0));
INSERT OR IGNORE INTO stock VALUES ('tea', 5), ('cake', 2);
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY AUTOINCREMENT, article TEXT NOT NULL, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, data TEXT NOT NULL);
"""
PROBLEMS: dict[type[Exception], int | Problem] = {
    LookupError: 404,
    OutOfStock: Problem(status=409, type="https://example.com/out-of-stock", title="Out of stock"),
}
database = sqlite3.connect("orders.sqlite3")  # change: your database
database.executescript(SCHEMA)
hub = Hub(SqliteBroker("orders-events.sqlite3"))
lock, filled = asyncio.Lock(), asyncio.Event()


@asynccontextmanager
async def begin(context: RequestContext) -> AsyncIterator[sqlite3.Connection]:
    async with lock:  # one transaction at a time, and the event loop does not wait for it
        with database:  # commits, or rolls back
            yield database
    filled.set()


@before
async def create(context: RequestContext) -> None:
    order, database = context[ORDER], context[DATABASE]
    changed = database.execute(
        "UPDATE stock SET count = count - ? WHERE article = ? AND count >= ?", [order.count, order.article, order.count]
    )
    if not changed.rowcount:
        raise OutOfStock
    number = database.execute(
        "INSERT INTO orders (article, count) VALUES (?, ?)", [order.article, order.count]
    ).lastrowid
    body = {"id": number, "article": order.article, "count": order.count}
    database.execute("INSERT INTO outbox (topic, data) VALUES ('orders', ?)", [dumps(body)])
    context.response = web.json_response(body, status=201, headers={"Location": f"/orders/{number}"})


async def show(request: web.Request) -> web.Response:
    async with lock:  # otherwise it would see what is not committed
        row = database.execute("SELECT * FROM orders WHERE id = ?", [request.match_info["id"]]).fetchone()
    if row is None:
        raise LookupError
    return web.json_response(dict(zip(("id", "article", "count"), row, strict=True)))


async def publish_outbox() -> bool:
    """Publish what is in the outbox, in its order, and delete it. Return whether there was something."""
    async with lock:
        rows = database.execute("SELECT id, topic, data FROM outbox ORDER BY id LIMIT 100").fetchall()
    for number, topic, data in rows:
        await hub.publish(topic, Event(data, "order"), idempotency_key=f"outbox-{number}")
        async with lock:
            with database:
                database.execute("DELETE FROM outbox WHERE id = ?", [number])
    return bool(rows)


async def relay() -> None:
    while True:
        try:
            if not await publish_outbox():
                await filled.wait()
                filled.clear()
        except (BrokerError, sqlite3.Error) as error:
            logging.getLogger("outbox").warning("The outbox is not published, and is tried again: %s", error)
            await asyncio.sleep(1)


async def relaying(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(relay())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    database.close()


app = web.Application()
setup(app, hub)
app.cleanup_ctx.append(relaying)
limit = rate_limit(10, 1, burst=20, key=lambda context: context.request.remote)  # change: the user
app.middlewares.append(interceptor_middleware(request_id(), problem_details(PROBLEMS, unexpected=True), limit))
app.router.add_post("/orders", as_handler(json_body(ORDER, Order), transaction(DATABASE, begin), create))
app.router.add_get(r"/orders/{id:\d+}", show)
app.router.add_get("/orders/events", topic_stream(hub, "orders"))
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080)
