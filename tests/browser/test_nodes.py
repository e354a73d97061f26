"""Several servers of the example on one Valkey: one is killed, and its page goes on at another."""

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
from tests.program import PATIENCE, program
from tests.servers.engines import needs
from tests.servers.process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


def free_row(count: int) -> int:
    """Return the first of so many free ports that follow each other."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:  # one of them is somebody's
            continue
        return first


def objects(text: str) -> Iterator[dict[str, object]]:
    """Read what may be two lines in one: several processes write to one pipe, and a line's end comes by itself."""
    while text := text.strip():
        found, end = json.JSONDecoder().raw_decode(text)
        yield found
        text = text[end:]


@asynccontextmanager
async def nodes():
    """Run two nodes, and end them in order: whoever kills the one that has started them leaves them behind."""
    async with program("--nodes", "2", "--port", str(free_row(3))) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                async with asyncio.timeout(PATIENCE):
                    await process.wait()


async def told(process, nodes: int) -> dict[str, list[dict[str, object]]]:
    """Read the program's lines until all nodes serve and are up, and return them by what they say."""
    said: dict[str, list[dict[str, object]]] = {}
    async with asyncio.timeout(PATIENCE):
        while len(said.get("serving", ())) < nodes or len(said.get("hub_up", ())) < nodes:
            read = await process.stdout.readline()
            assert read, f"it ended with {await process.wait()}: {await process.stderr.read()}"
            for line in objects(read.decode()):
                said.setdefault(line["event"], []).append(line)
    return said


async def drain(process) -> None:
    while await process.stdout.readline():
        pass


async def test_a_line_crosses_servers_and_a_page_whose_server_is_killed_goes_on_at_the_other(visit, complaints):
    needs("nginx", shutil.which("nginx") or shutil.which("/usr/sbin/nginx"))
    async with nodes() as process:
        said = await told(process, 2)
        reading = asyncio.create_task(drain(process))
        (front,) = said["front"]
        pids = {node["url"]: node["pid"] for node in said["node"]}
        pages = [await opened(await visit(url)) for url in pids]
        through = await opened(await visit(front["url"]))
        await say(pages[0], "from the first")
        await say(pages[1], "from the second")
        for page in (*pages, through):
            await expect(lines(page)).to_have_text(["from the first", "from the second"])
            await expect(page.locator("#here")).to_have_text("3 here")
        servers = [await page.locator("#server").text_content() for page in (*pages, through)]
        dead = servers.index(servers[2])
        os.kill(list(pids.values())[dead], signal.SIGKILL)
        await say(pages[1 - dead], "meanwhile")
        await expect(through.locator("#server")).to_have_text(servers[1 - dead])
        await say(through, "after")
        for page in (pages[1 - dead], through):
            await expect(lines(page)).to_have_text(["from the first", "from the second", "meanwhile", "after"])
            await expect(page.locator("#here")).to_have_text("2 here", timeout=20_000)  # a dead one is silent
        process.send_signal(signal.SIGTERM)
        for page in (*pages, through):
            await page.context.close()
        async with asyncio.timeout(PATIENCE):
            await reading
            assert await process.wait() == 0
    complaints[:] = [text for text in complaints if not re.search("ERR_|502|503", text)]


async def test_a_line_that_the_valkey_does_not_take_stays_on_the_page_and_is_there_once_later(visit, complaints):
    async with nodes() as process:
        said = await told(process, 2)
        reading = asyncio.create_task(drain(process))
        ada, grace = [await opened(await visit(node["url"])) for node in said["node"]]
        await say(ada, "before")
        (valkey,) = said["valkey"]
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
    complaints[:] = [text for text in complaints if not re.search("ERR_|502|503", text)]


async def say_again(page) -> None:
    """Press the button until the line is taken."""
    async with asyncio.timeout(PATIENCE):
        while await page.get_by_label("Your line").input_value():
            async with page.expect_response("**/say?*"):
                await page.get_by_role("button", name="Send").click()
