"""The recipe of a JSON API: request IDs, problems, a rate limit, and events in the transaction of the data."""

from __future__ import annotations

import asyncio
import json
import sqlite3

from aiohttp_interceptors.testing import open_stream
from tests.waiting import until


async def order(session, recipe, article="tea", count=1):
    async with session.post(f"{recipe.url}/orders", json={"article": article, "count": count}) as response:
        return response.status, await response.json(), response.headers


async def test_an_order_is_stored_and_published(session, run):
    recipe = run("orders")
    async with open_stream(session, f"{recipe.url}/orders/events") as stream:
        status, body, headers = await order(session, recipe, count=2)
        assert (status, body) == (201, {"id": 1, "article": "tea", "count": 2})
        assert headers["X-Request-ID"]
        event = await stream.next()
        assert (event.name, json.loads(event.data)) == ("order", body)
    async with session.get(recipe.url + headers["Location"]) as response:
        assert await response.json() == body


async def test_an_order_that_is_refused_leaves_nothing(session, run):
    recipe = run("orders")
    async with open_stream(session, f"{recipe.url}/orders/events") as stream:
        status, problem, _ = await order(session, recipe, "cake", 3)
        assert (status, problem["title"]) == (409, "Out of stock")
        await order(session, recipe, "cake", 2)
        assert json.loads((await stream.next()).data) == {"id": 1, "article": "cake", "count": 2}


async def test_errors_are_problems(session, run):
    recipe = run("orders")
    for body, status in (({}, 422), ({"article": "tea", "count": "x"}, 422)):
        async with session.post(f"{recipe.url}/orders", json=body) as response:
            assert (response.status, response.content_type) == (status, "application/problem+json")
    async with session.get(f"{recipe.url}/orders/7") as response:
        assert (response.status, response.content_type) == (404, "application/problem+json")


async def test_orders_at_the_same_time_do_not_sell_more_than_there_is(session, run):
    recipe = run("orders")
    statuses = [status for status, *_ in await asyncio.gather(*(order(session, recipe) for _ in range(10)))]
    assert sorted(statuses) == [201] * 5 + [409] * 5


async def test_a_client_that_is_too_fast_is_a_429(session, run):
    recipe = run("orders", replace={"rate_limit(10, 1, burst=20,": "rate_limit(1, 60, burst=2,"})
    assert [(await order(session, recipe))[0] for _ in range(3)] == [201, 201, 429]


async def test_what_a_dead_process_left_in_the_outbox_is_published_once(session, run):
    """The process dies between its two transactions: the data with the outbox, and the event."""
    recipe = run("orders", replace={"await hub.publish(topic": "await asyncio.Event().wait(); await hub.publish(topic"})
    assert [(await order(session, recipe))[0] for _ in range(3)] == [201] * 3
    recipe.kill()
    program = recipe.folder / "orders.py"
    # Published and not yet deleted when it dies, then started again.
    program.write_text(program.read_text().replace("await asyncio.Event().wait(); ", ""))
    whole = program.read_text()
    program.write_text(
        whole.replace(
            "            async with lock:\n                with",
            "            await filled.wait()\n            async with lock:\n                with",
        )
    )
    recipe.restart()
    async with open_stream(session, f"{recipe.url}/orders/events?last_event_id=none") as stream:
        assert (await stream.next()).name == "gap"
    recipe.kill()
    program.write_text(whole)
    recipe.restart()

    def left():
        with sqlite3.connect(recipe.folder / "orders.sqlite3") as database:
            return database.execute("SELECT count(*) FROM outbox").fetchone()[0]

    await until(lambda: left() == 0)
    with sqlite3.connect(recipe.folder / "orders-events.sqlite3") as log:
        assert log.execute("SELECT count(*) FROM entry WHERE topic = 'orders'").fetchone()[0] == 3
