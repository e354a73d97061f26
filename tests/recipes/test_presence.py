"""The recipe of presence: a list of the users whose page is open."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.accessibility import violations


async def enter(page, user):
    await page.get_by_label("Your name").fill(user)
    await page.get_by_role("button", name="Enter").click()


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_pages_show_who_is_here_and_a_reload_is_no_goodbye(visit, run, console_errors):
    recipe = run("presence")
    ann = await visit(recipe.url)
    await expect(ann.locator("#state")).to_have_text("Enter your name.")
    await enter(ann, "ann")
    await expect(ann.locator("li")).to_have_text(["ann"])
    bob = await visit(recipe.url)
    await enter(bob, "bob")
    for page in ann, bob:
        await expect(page.locator("li")).to_have_text(["ann", "bob"])
    await ann.evaluate("""() => {
        window.shown = [];
        const users = () => [...document.querySelectorAll("li")].map((item) => item.textContent).join(" ");
        const look = () => { if (window.shown.at(-1) !== users()) window.shown.push(users()); };
        new MutationObserver(look).observe(document.querySelector("ul"), { childList: true });
    }""")
    await bob.reload()
    await expect(bob.locator("li")).to_have_text(["ann", "bob"])
    await bob.context.close()
    await expect(ann.locator("li")).to_have_text(["ann"])
    assert await ann.evaluate("() => window.shown") == ["ann bob", "ann"]
    console_errors[:] = [each for each in console_errors if "401" not in each]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_a_page_has_the_whole_list_after_the_server_was_killed(visit, run, console_errors):
    recipe = run("presence")
    pages = {user: await visit(recipe.url) for user in ("ann", "bob")}
    for user, page in pages.items():
        await enter(page, user)
    recipe.kill()
    await expect(pages["ann"].locator("#state")).to_have_text("connecting")
    recipe.restart()
    for page in pages.values():
        await expect(page.locator("#state")).to_have_text("")
        await expect(page.locator("li")).to_have_text(["ann", "bob"])
    console_errors[:] = [each for each in console_errors if "401" not in each and "ERR_" not in each]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_has_no_violations_for_axe(visit, run, console_errors):
    page = await visit(run("presence").url)
    await expect(page.locator("#state")).to_have_text("Enter your name.")
    assert await violations(page) == []
    await enter(page, "ann")
    await expect(page.locator("li")).to_have_text(["ann"])
    assert await violations(page) == []
    console_errors[:] = [each for each in console_errors if "401" not in each]


async def test_the_list_is_for_users_with_a_name(session, run):
    recipe = run("presence")
    async with session.get(f"{recipe.url}/members") as response:
        assert response.status == 401
    async with session.get(f"{recipe.url}/members", headers={"Cookie": "user=ann"}) as response:
        assert await response.json() == []


async def test_the_cookie_is_for_this_site_and_not_for_scripts(session, run):
    recipe = run("presence")
    async with session.post(recipe.url, data={"user": "ann"}, allow_redirects=False) as response:
        assert {"HttpOnly", "Secure", "SameSite=Lax"} <= set(response.headers["Set-Cookie"].split("; "))
