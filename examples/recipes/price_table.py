"""A page that follows a table of PostgreSQL, also when another program changes it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
from aiohttp import web

from aiohttp_interceptors import Event, Hub, RequestContext, setup, topic_stream
from aiohttp_interceptors.brokers.postgres import PostgresBroker

DSN = "postgresql://localhost/postgres"  # change: your database
PAGE = Path(__file__).with_suffix(".html")
TABLE = "CREATE TABLE IF NOT EXISTS price (symbol text PRIMARY KEY, amount numeric NOT NULL)"
UPSERT = "INSERT INTO price VALUES (%s, %s) ON CONFLICT (symbol) DO UPDATE SET amount = excluded.amount"
hub = Hub(PostgresBroker(DSN, migrate=True))


def price(symbol: str, amount: object) -> Event:
    return Event.json({"symbol": symbol, "amount": str(amount)}, name="price")


async def change(prices: dict[str, str]) -> None:
    """Change several prices, and tell of it, in one transaction: both happen, or neither."""
    async with await psycopg.AsyncConnection.connect(DSN) as connection:
        for symbol, amount in prices.items():
            await connection.execute(UPSERT, [symbol, amount])
            await hub.publish("prices", price(symbol, amount), key=symbol, connection=connection)


async def snapshot(context: RequestContext) -> list[Event]:
    async with await psycopg.AsyncConnection.connect(DSN) as connection:  # change: your pool
        rows = await connection.execute("SELECT symbol, amount FROM price ORDER BY symbol")
        return [price(symbol, amount) async for symbol, amount in rows]


async def schema(app: web.Application) -> AsyncIterator[None]:
    async with await psycopg.AsyncConnection.connect(DSN) as connection:
        await connection.execute(TABLE)
    yield


async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE)


async def main(arguments: list[str]) -> None:
    """Change prices, as a nightly import does: ``python price_table.py IBM=240 SAP=180``."""
    try:
        await change(dict(argument.split("=") for argument in arguments))
    finally:
        await hub.close()


app = web.Application()
setup(app, hub)
app.cleanup_ctx.append(schema)
app.router.add_get("/", page)
app.router.add_get("/prices", topic_stream(hub, "prices", snapshot=snapshot))
if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(main(sys.argv[1:]))
    else:
        web.run_app(app, host="127.0.0.1", port=8080)
