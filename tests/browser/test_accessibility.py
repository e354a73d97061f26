"""The pages of the example application, as axe-core sees them."""

import re

import pytest
from playwright.async_api import expect

from tests.browser.accessibility import violations

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


async def click(page, name):
    await page.get_by_role("button", name=name, exact=True).click()


async def test_a_page_with_an_image_without_a_name_is_found(visit):
    page = await visit("data:text/html,<!doctype html><html lang=en><title>x</title><main><h1>x</h1><img src='data:,'>")
    assert [each.partition(" ")[0] for each in await violations(page)] == ["image-alt"] * 4


async def test_the_monitor(page):
    await expect(page.locator("#load-state")).to_have_text("open")
    await expect(page.locator("#cpu figure")).to_have_attribute("data-samples", re.compile(r"\d"))
    assert await violations(page) == []


async def test_the_monitor_when_its_numbers_are_old(page, server, console_errors):
    await expect(page.locator("#load-state")).to_have_text("open")
    await server.stop()
    await expect(page.locator("#load-stale")).not_to_be_empty()
    assert await violations(page) == []
    console_errors[:] = [text for text in console_errors if "ERR_CONNECTION_REFUSED" not in text]


async def test_a_room_when_it_is_empty_has_lines_and_after_the_sign_out(server, visit):
    page = await visit(f"{server.address}rooms?room=attic")
    await expect(page.locator("#room-state")).to_have_text("open")
    await expect(page.locator("#lines")).to_have_attribute("aria-live", "polite")
    assert await violations(page) == []
    await page.get_by_label("Your line").fill("hello")
    await click(page, "Send")
    await expect(page.locator("#lines span")).to_have_text(["hello"])
    assert await violations(page) == []
    await click(page, "Sign out all my pages")
    await expect(page.locator("#room-state")).to_contain_text("signed out")
    assert await violations(page) == []


async def test_a_room_that_cannot_be(server, visit, console_errors):
    page = await visit(f"{server.address}rooms?room=a.b")
    await expect(page.locator("#room")).to_contain_text("a.b")
    assert await violations(page) == []
    console_errors[:] = [text for text in console_errors if "400" not in text]


async def test_the_experiments_before_during_and_after(server, visit):
    page = await visit(f"{server.address}experiments")
    assert await violations(page) == []
    for name in ("Start a job", "Ask", "Start the stream"):
        await click(page, name)
    await expect(page.locator("#seed-events .received").first).to_be_visible()
    assert await violations(page) == []
    for state in ("job", "answer", "seed"):
        await expect(page.locator(f"#{state}-state")).to_have_text("finished")
    assert await violations(page) == []
