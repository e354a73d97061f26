"""Tabs that are opened, closed, reloaded, frozen and cut off at random lose and repeat nothing."""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from aiohttp import web

from aiohttp_interceptors import topic_stream
from tests.browser.client_site import start
from tests.waiting import TIMEOUT, until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

STEPS = 25


class Tab:
    """A tab, and what it received before its reloads."""

    def __init__(self, page):
        self.page = page
        self.received = []

    async def reload(self):
        self.received += await self.page.evaluate("source.close(), seen")
        await self.page.reload()
        await self.page.wait_for_function("window.ready")
        await start(self.page, identity="user:7", resume=True)

    async def dispatch(self, event):
        await self.page.evaluate(f"document.dispatchEvent(new Event('{event}')), 0")

    async def all_received(self):
        return self.received + await self.page.evaluate("seen")


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "2"))))
async def test_tabs_lose_and_repeat_nothing(site, tabs, seed):
    rng = random.Random(seed)
    site.routes = [web.get("/news", topic_stream(site.hub, "news", retry=20))]
    await site.start()
    published = []

    async def publish():
        while True:
            for _ in range(rng.choice([1, 1, 5])):
                topic = rng.choice(["news", "news", "other"])
                await site.hub.publish(topic, str(len(published)))
                if topic == "news":
                    published.append(str(len(published)))
            await asyncio.sleep(rng.choice([0.001, 0.005, 0.02, 0.3]))

    publishing = asyncio.create_task(publish())
    open_tabs, frozen, log = [], set(), []
    try:
        for _ in range(STEPS):
            step = rng.choice(["open", "open", "close", "reload", "freeze", "thaw", "cut", "offline", "wait", "wait"])
            log.append(step)
            tab = rng.choice(open_tabs) if open_tabs else None
            running = [each for each in open_tabs if each not in frozen]
            if step == "open" and len(open_tabs) < 5:
                open_tabs.append(Tab(await tabs(site.url)))
                await start(open_tabs[-1].page, identity="user:7", resume=True)
            elif step == "close" and len(open_tabs) > 2:
                open_tabs.remove(tab)
                frozen.discard(tab)
                await tab.page.close()
            elif step == "reload" and running:
                await rng.choice(running).reload()
            elif step == "freeze" and len(running) > 1:
                frozen.add(running[0])
                await running[0].dispatch("freeze")
            elif step == "thaw" and frozen:
                await frozen.pop().dispatch("resume")
            elif step == "cut":
                for stream in site.streams:
                    stream.abort()
            elif step == "offline":
                await tabs.context.set_offline(True)
                for stream in site.streams:
                    stream.abort()
                await asyncio.sleep(0.05)
                await tabs.context.set_offline(False)
            await asyncio.sleep(rng.choice([0, 0.02, 0.3]))
        for tab in frozen:
            await tab.dispatch("resume")
        for tab in open_tabs:  # one that has no position yet starts with what comes
            await tab.page.wait_for_function("source.readyState === 1 && source.lastEventId", timeout=TIMEOUT * 1000)
    finally:
        publishing.cancel()
        await asyncio.wait([publishing])
    count = len(published)
    await site.hub.publish("news", str(count))
    for tab in open_tabs:
        await tab.page.wait_for_function(f"seen.at(-1) === '{count}'", timeout=TIMEOUT * 1000)
        got = [int(each) for each in await tab.all_received()]
        assert got == list(range(got[0], count + 1)), (seed, log)
    await until(lambda: len(site.streams) == 1)
