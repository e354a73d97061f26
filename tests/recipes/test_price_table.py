"""The recipe of a table of PostgreSQL: events of a transaction, also of another program."""

from __future__ import annotations

import asyncio
import json
import subprocess

import psycopg
import pytest
from playwright.async_api import expect

from aiohttp_interceptors.testing import open_stream
from tests.servers.postgres import Postgres
from tests.waiting import within

DSN = "postgresql://localhost/postgres"


@pytest.fixture
def postgres(own, tmp_path):
    return own(Postgres(tmp_path / "postgres"))


async def change(recipe, *prices):
    """Run the recipe as an import does, and return its exit status."""
    command = [*recipe.command(), *prices]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=recipe.folder, env=recipe.environment, stderr=subprocess.PIPE
    )
    _, errors = await within(process.communicate())
    return process.returncode, errors.decode()


def values(events):
    return {(price := json.loads(event.data))["symbol"]: price["amount"] for event in events}


async def test_a_stream_follows_what_another_program_changes(session, run, postgres):
    recipe = run("price_table", replace={DSN: postgres.dsn})
    assert await change(recipe, "IBM=240", "SAP=180") == (0, "")
    async with open_stream(session, f"{recipe.url}/prices") as stream:
        assert values([await stream.next() for _ in range(2)]) == {"IBM": "240", "SAP": "180"}
        assert await change(recipe, "IBM=241", "MSFT=500") == (0, "")
        assert values([await stream.next() for _ in range(2)]) == {"IBM": "241", "MSFT": "500"}
        last = stream.last_event_id
    assert await change(recipe, "IBM=242") == (0, "")
    recipe.kill()
    recipe.restart()
    async with open_stream(session, f"{recipe.url}/prices", last_event_id=last) as stream:
        assert values([await stream.next()]) == {"IBM": "242"}


async def test_a_transaction_that_fails_changes_nothing_and_publishes_nothing(session, run, postgres):
    recipe = run("price_table", replace={DSN: postgres.dsn})
    async with open_stream(session, f"{recipe.url}/prices") as stream:
        status, errors = await change(recipe, "IBM=1", "SAP=much")
        assert status
        assert "invalid input syntax" in errors
        assert await change(recipe, "IBM=2") == (0, "")
        assert values([await stream.next()]) == {"IBM": "2"}
    with psycopg.connect(postgres.dsn) as connection:
        assert [row[0] for row in connection.execute("SELECT symbol FROM price")] == ["IBM"]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_shows_the_table(visit, run, postgres, console_errors):
    recipe = run("price_table", replace={DSN: postgres.dsn})
    page = await visit(recipe.url)
    rows = page.locator("tr")
    assert await change(recipe, "IBM=240", "SAP=180") == (0, "")
    await expect(rows).to_have_text(["IBM240", "SAP180"])
    recipe.stop()
    recipe.restart()
    assert await change(recipe, "IBM=241") == (0, "")
    await expect(rows).to_have_text(["IBM241", "SAP180"])
    console_errors[:] = [each for each in console_errors if "ERR_" not in each]
