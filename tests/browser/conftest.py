"""A real Chromium, and the example application on a real port, in the event loop of the tests.

The loop is one per module, because starting the browser takes longer than a test; application and page are new for
each test.
"""

import os
import shutil

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import async_playwright, expect

from example_app.app import make_app

expect.set_options(timeout=30_000)  # milliseconds

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Server:
    """The example application, faster than in life. It can be stopped, and started anew at the same address."""

    def __init__(self):
        self.runner = None
        self.port = 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"

    async def start(self):
        self.runner = web.AppRunner(make_app(sample_interval=0.05, seed_interval=0.02), access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        self.port = self.runner.addresses[0][1]

    async def stop(self):
        await self.runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def server():
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up("these tests drive a chromium, and there is none")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def complaints():
    """What the browser complained of in its console; whoever expects something clears it."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser, complaints):
    """Open an address as somebody with a browser of their own, which must have nothing to complain of at the end."""
    contexts = []

    def hear(line):
        # A test that looks at pixels again and again is advised to do it otherwise; the page itself never looks.
        if line.type in ("error", "warning") and "willReadFrequently" not in line.text:
            complaints.append(line.text)

    async def visit(address):
        contexts.append(await browser.new_context())
        page = await contexts[-1].new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(address)
        return page

    yield visit
    for context in contexts:
        await context.close()
    assert complaints == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(server, visit):
    """The machine's page, just opened."""
    return await visit(server.address)
