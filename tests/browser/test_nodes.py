"""Several servers of the example on one Valkey: the pages of a server that is killed reconnect to another."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import expect

from tests.browser.test_rooms import lines, opened, say
from tests.program import START_TIMEOUT, program
from tests.servers.engines import needs
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


def consecutive_free_ports(count: int) -> int:
    """Return the first of ``count`` consecutive free ports."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:  # one of them is in use
            continue
        return first


def parse_objects(text: str) -> Iterator[dict[str, object]]:
    """Parse JSON objects without separators: the processes share a pipe, and write their line ends separately."""
    while text := text.strip():
        found, end = json.JSONDecoder().raw_decode(text)
        yield found
        text = text[end:]


@asynccontextmanager
async def nodes():
    """Run two nodes, and stop them with SIGTERM: a killed parent would leave its children running."""
    async with program("--nodes", "2", "--port", str(consecutive_free_ports(3))) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                async with asyncio.timeout(START_TIMEOUT):
                    await process.wait()


async def until_serving(process, nodes: int) -> dict[str, list[dict[str, object]]]:
    """Read log lines until all nodes serve and their Hubs are up, and return the lines by event name."""
    logged: dict[str, list[dict[str, object]]] = {}
    async with asyncio.timeout(START_TIMEOUT):
        while len(logged.get("serving", ())) < nodes or len(logged.get("hub_up", ())) < nodes:
            text = await process.stdout.readline()
            assert text, f"it ended with {await process.wait()}: {await process.stderr.read()}"
            for line in parse_objects(text.decode()):
                logged.setdefault(line["event"], []).append(line)
    return logged


async def drain(process) -> None:
    while await process.stdout.readline():
        pass


async def test_a_line_reaches_all_servers_and_the_pages_of_a_killed_server_reconnect_to_another(visit, console_errors):
    needs("nginx", shutil.which("nginx") or shutil.which("/usr/sbin/nginx"))
    async with nodes() as process:
        logged = await until_serving(process, 2)
        reading = asyncio.create_task(drain(process))
        (front,) = logged["front"]
        assert [node["name"] for node in logged["node"]] == ["node-1", "node-2"]
        assert sorted(line["node"] for line in logged["serving"]) == ["node-1", "node-2"]
        assert front["leads_to"] == "node-1 or node-2"
        pids = {node["url"]: node["pid"] for node in logged["node"]}
        pages = [await opened(await visit(url)) for url in pids]
        through = await opened(await visit(front["url"]))
        await say(pages[0], "from the first")
        await say(pages[1], "from the second")
        for page in (*pages, through):
            await expect(lines(page)).to_have_text(["from the first", "from the second"])
            await expect(page.locator("#here")).to_have_text("3 here")
        servers = [await page.locator("#server").text_content() for page in (*pages, through)]
        assert servers[:2] == ["on server node-1", "on server node-2"]
        dead = servers.index(servers[2])
        os.kill(list(pids.values())[dead], signal.SIGKILL)
        await say(pages[1 - dead], "meanwhile")
        await expect(through.locator("#server")).to_have_text(servers[1 - dead])
        await say(through, "after")
        for page in (pages[1 - dead], through):
            await expect(lines(page)).to_have_text(["from the first", "from the second", "meanwhile", "after"])
            # The count of the dead server expires.
            await expect(page.locator("#here")).to_have_text("2 here", timeout=20_000)
        process.send_signal(signal.SIGTERM)
        for page in (*pages, through):
            await page.context.close()
        async with asyncio.timeout(START_TIMEOUT):
            await reading
            assert await process.wait() == 0
    console_errors[:] = [text for text in console_errors if not re.search("ERR_|502|503", text)]


async def test_a_run_of_a_killed_node_is_read_and_ended_on_another(visit, console_errors):
    async with nodes() as process:
        logged = await until_serving(process, 2)
        reading = asyncio.create_task(drain(process))
        (one, other) = [(node["url"].removesuffix("/rooms"), node["pid"]) for node in logged["node"]]
        page = await visit(f"{one[0]}/experiments")
        await page.get_by_role("button", name="Start a job").click()
        await expect(page.locator("#job-state")).to_have_text("running")
        page = await visit(page.url.replace(one[0], other[0]))
        await expect(page.locator("#job-count")).to_have_text(re.compile(r"^\d+ %$"))
        await expect(page.locator("#job-count")).not_to_have_text("0 %")
        os.kill(one[1], signal.SIGKILL)
        await expect(page.locator("#job-state")).to_have_text("failed: its server died")  # about 15 seconds later
        process.send_signal(signal.SIGTERM)
        await page.context.close()
        await reading
    console_errors[:] = [text for text in console_errors if not re.search("ERR_|502|503", text)]


async def test_a_line_that_could_not_be_stored_stays_in_the_form_and_is_stored_once_later(visit, console_errors):
    async with nodes() as process:
        logged = await until_serving(process, 2)
        reading = asyncio.create_task(drain(process))
        ada, grace = [await opened(await visit(node["url"])) for node in logged["node"]]
        await say(ada, "before")
        (valkey,) = logged["valkey"]
        os.kill(valkey["pid"], signal.SIGSTOP)
        await ada.get_by_label("Your line").fill("is anybody there?")
        await ada.keyboard.press("Enter")
        await expect(ada.get_by_role("alert")).to_contain_text("try again")
        await expect(ada.get_by_label("Your line")).to_have_value("is anybody there?")
        await expect(ada.locator("#room-state")).to_have_text("open")
        os.kill(valkey["pid"], signal.SIGCONT)
        for page in (ada, grace):
            await expect(page.locator("#room-state")).to_have_text("open")
        await say_again(ada)
        for page in (ada, grace):
            await expect(lines(page)).to_have_text(["before", "is anybody there?"])
        await say(grace, "yes")
        for page in (ada, grace):
            await expect(lines(page)).to_have_text(["before", "is anybody there?", "yes"])
        process.send_signal(signal.SIGTERM)
        for page in (ada, grace):
            await page.context.close()
        await reading
    console_errors[:] = [text for text in console_errors if not re.search("ERR_|502|503", text)]


async def say_again(page) -> None:
    """Press the button until the line is accepted."""
    async with asyncio.timeout(START_TIMEOUT):
        while await page.get_by_label("Your line").input_value():
            async with page.expect_response("**/say?*"):
                await page.get_by_role("button", name="Send").click()
