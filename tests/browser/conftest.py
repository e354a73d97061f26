"""Chromium, and the example application on a port, in the event loop of the tests.

Each module has one event loop and one browser, because starting the browser is slow. The application and the page are
new for each test.
"""

import os
import shutil

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import async_playwright, expect

from example_app.app import make_app
from tests.browser.client_site import Site
from tests.waiting import TIMEOUT

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
    """The example application with shorter intervals. It can be restarted on the same port."""

    def __init__(self):
        self.runner = None
        self.port = 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"

    async def start(self):
        app = make_app(sample_interval=0.05, seed_interval=0.02, run_interval=0.05)
        self.runner = web.AppRunner(app, access_log=None)
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
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("chromium is not installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def console_errors():
    """The errors and warnings in the browser's console. A test removes those that it expects."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser, console_errors):
    """Open a URL in a new browser context. Fails at the end if the console has errors that the test did not expect.

    Further arguments are those of ``browser.new_context``.
    """
    contexts = []

    def on_console(line):
        # Chromium warns about willReadFrequently when a test reads the pixels of a canvas several times.
        if line.type in ("error", "warning") and "willReadFrequently" not in line.text:
            console_errors.append(line.text)

    async def visit(address, **options):
        contexts.append(await browser.new_context(**options))
        page = await contexts[-1].new_page()
        page.on("console", on_console)
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        await page.goto(address)
        return page

    yield visit
    for context in contexts:
        await context.close()
    assert console_errors == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(server, visit):
    """The page of the machine."""
    return await visit(server.address)


@pytest_asyncio.fixture(loop_scope="module")
async def site():
    site = Site()
    yield site
    if site.runner is not None:
        await site.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def tabs(browser):
    """Open tabs of one browser context."""
    context = await browser.new_context()

    async def open_tab(url):
        page = await context.new_page()
        await page.goto(url)
        await page.wait_for_function("window.ready", timeout=TIMEOUT * 1000)
        return page

    open_tab.context = context
    yield open_tab
    await context.close()
