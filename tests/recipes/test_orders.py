"""The recipe of a JSON API: request IDs, problems, a rate limit, and events in the transaction of the data."""

from __future__ import annotations

import asyncio
import json
import sqlite3

from aiohttp_interceptors import Hub
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.testing import open_stream
from tests.recipes.site import FOLDER
from tests.waiting import until, within


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
    wrong = [{}, *({"article": "tea", "count": count} for count in ("x", -1, 10**30))]
    for body, status in [*((each, 422) for each in wrong), ({"article": "\ud800"}, 400)]:
        async with session.post(f"{recipe.url}/orders", json=body) as response:
            assert (response.status, response.content_type) == (status, "application/problem+json")
    async with session.get(f"{recipe.url}/orders/7") as response:
        assert (response.status, response.content_type) == (404, "application/problem+json")


async def test_orders_at_the_same_time_do_not_sell_more_than_there_is(session, run):
    """Also if the handler waits for something in its transaction, as one that a reader extends may."""
    recipe = run(
        "orders", replace={"        raise OutOfStock\n": "        raise OutOfStock\n    await asyncio.sleep(0.01)\n"}
    )
    answers = await asyncio.gather(*(order(session, recipe) for _ in range(10)))
    assert sorted(status for status, *_ in answers) == [201] * 5 + [409] * 5
    for status, body, headers in answers:
        if status == 201:
            async with session.get(recipe.url + headers["Location"]) as response:
                assert await response.json() == body
    assert (await order(session, recipe))[0] == 409  # no rollback of one has undone what another has changed


async def test_a_client_that_is_too_fast_is_a_429(session, run):
    recipe = run("orders", replace={"rate_limit(10, 1, burst=20,": "rate_limit(1, 60, burst=2,"})
    assert [(await order(session, recipe))[0] for _ in range(3)] == [201, 201, 429]


async def test_the_outbox_is_published_when_a_program_has_unlocked_the_database(session, run):
    """It is locked when the relay deletes the first event, and until that was logged."""
    wait = "while not os.path.exists('locked'):\n            await asyncio.sleep(0.01)\n        async with lock:"
    recipe = run(
        "orders",
        replace={
            'connect("orders.sqlite3")': 'connect("orders.sqlite3", timeout=0.1)',
            "import asyncio\n": "import asyncio\nimport os\n",
            "async with lock:\n            with database:": f"{wait}\n            with database:",
        },
    )
    async with open_stream(session, f"{recipe.url}/orders/events") as stream:
        assert (await order(session, recipe))[0] == 201
        assert json.loads((await stream.next()).data)["id"] == 1
        other = sqlite3.connect(recipe.folder / "orders.sqlite3", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        (recipe.folder / "locked").touch()
        await until(lambda: "database is locked" in (recipe.folder / "log").read_text())
        other.execute("ROLLBACK")
        other.close()
        assert (await order(session, recipe))[0] == 201
        assert json.loads((await stream.next()).data)["id"] == 2


async def test_what_a_dead_process_left_in_the_outbox_is_published_once(session, run):
    """The process dies before it publishes the first event, and then again before it deletes it from the outbox."""
    recipe = run("orders", replace={"await hub.publish(topic": "await asyncio.Event().wait()  # hub.publish(topic"})
    assert [(await order(session, recipe))[0] for _ in range(3)] == [201] * 3
    recipe.kill()
    program, text = recipe.folder / "orders.py", (FOLDER / "orders.py").read_text().replace("8080", str(recipe.port))
    program.write_text(
        text.replace(
            'database.execute("DELETE', 'await asyncio.Event().wait()\n                database.execute("DELETE'
        )
    )
    recipe.restart()
    hub = Hub(SqliteBroker(recipe.folder / "orders-events.sqlite3"))
    async with hub.listen("orders", replay=10) as records:
        published = [json.loads((await within(anext(records))).event.data)["id"]]
        recipe.kill()
        program.write_text(text)
        recipe.restart()
        assert (await order(session, recipe, "cake"))[0] == 201
        published += [json.loads((await within(anext(records))).event.data)["id"] for _ in range(3)]
        assert published == [1, 2, 3, 4]
    await hub.close()
