"""The recipe of a table of PostgreSQL: events of a transaction, also of another program."""

from __future__ import annotations

import asyncio
import json
import subprocess

import psycopg
import pytest
from playwright.async_api import expect

from aiohttp_interceptors.testing import open_stream
from tests.browser.accessibility import violations
from tests.servers.postgres import Postgres
from tests.waiting import within

DSN = "postgresql://localhost/postgres"


@pytest.fixture
def postgres(own, tmp_path):
    return own(Postgres(tmp_path / "postgres"))


class ChangeFailed(Exception):
    pass


async def change(recipe, *prices):
    """Run the recipe as an import does. Raises ``ChangeFailed`` with what it prints if it fails."""
    command = [*recipe.command(), *prices]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=recipe.folder, env=recipe.environment, stderr=subprocess.PIPE
    )
    _, errors = await within(process.communicate())
    if process.returncode:
        raise ChangeFailed(errors.decode())


async def until_shown(stream, table, **expected):
    """Update a table by the events until it is as expected. What a snapshot has may follow it again as an event."""
    while table != expected:
        price = json.loads((await stream.next()).data)
        table[price["symbol"]] = price["amount"]


async def test_a_stream_follows_what_another_program_changes(session, run, postgres):
    recipe = run("price_table", replace={DSN: postgres.dsn})
    await change(recipe, "IBM=240", "SAP=180")
    async with open_stream(session, f"{recipe.url}/prices") as stream:
        table = {}
        await until_shown(stream, table, IBM="240", SAP="180")
        await change(recipe, "IBM=241", "MSFT=500")
        await until_shown(stream, table, IBM="241", SAP="180", MSFT="500")
        last = stream.last_event_id
    await change(recipe, "IBM=242")
    recipe.kill()
    recipe.restart()
    async with open_stream(session, f"{recipe.url}/prices", last_event_id=last) as stream:
        await until_shown(stream, {}, IBM="242")


async def test_a_transaction_that_fails_changes_nothing_and_publishes_nothing(session, run, postgres):
    recipe = run("price_table", replace={DSN: postgres.dsn})
    async with open_stream(session, f"{recipe.url}/prices") as stream:
        with pytest.raises(ChangeFailed, match="invalid input syntax"):
            await change(recipe, "IBM=1", "SAP=much")
        await change(recipe, "IBM=2")
        await until_shown(stream, {}, IBM="2")
    with psycopg.connect(postgres.dsn) as connection:
        assert [row[0] for row in connection.execute("SELECT symbol FROM price")] == ["IBM"]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_shows_the_table(visit, run, postgres, console_errors):
    recipe = run("price_table", replace={DSN: postgres.dsn})
    page = await visit(recipe.url)
    rows = page.locator("tr")
    await change(recipe, "IBM=240", "SAP=180")
    await expect(rows).to_have_text(["IBM240", "SAP180"])
    recipe.stop()
    recipe.restart()
    await change(recipe, "IBM=241")
    await expect(rows).to_have_text(["IBM241", "SAP180"])
    console_errors[:] = [each for each in console_errors if "ERR_" not in each]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_has_no_violations_for_axe(visit, run, postgres):
    recipe = run("price_table", replace={DSN: postgres.dsn})
    page = await visit(recipe.url)
    await change(recipe, "IBM=240", "SAP=180")
    await expect(page.locator("tr")).to_have_count(2)
    assert await violations(page) == []
