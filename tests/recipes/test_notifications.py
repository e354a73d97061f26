"""The recipes of notifications: with a cookie and with tickets, from another origin, until the logout on any node."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.async_api import expect

from aiohttp_interceptors.testing import open_stream
from tests.browser.accessibility import violations
from tests.servers.process import free_port

ORIGIN = {"Origin": "http://localhost:3000"}
RECIPES = ["notifications", "tickets"]


@pytest.fixture
def nodes(run, tmp_path):
    """Start two processes of a recipe that share their files."""

    def start(name):
        shared = {f'"{file}': f'"{tmp_path}/{file}' for file in ("sessions.sqlite3", "notifications.sqlite3")}
        return [run(name, folder=folder, replace=shared) for folder in ("one", "two")]

    return start


class CookieUser:
    """A user of ``notifications.py``, with the cookie of the session."""

    async def login(self, session, node, name):
        async with session.post(f"{node.url}/login", data={"user": name}, headers=ORIGIN) as response:
            assert response.status == 204
            cookie = response.headers["Set-Cookie"]
        assert {"HttpOnly", "Secure", "SameSite=Lax"} <= set(cookie.split("; "))
        self.headers = {**ORIGIN, "Cookie": cookie.partition(";")[0]}

    async def url(self, session, node):
        return f"{node.url}/notifications"


class TokenUser:
    """A user of ``tickets.py``, with a token."""

    async def login(self, session, node, name):
        async with session.post(f"{node.url}/login", data={"user": name}, headers=ORIGIN) as response:
            self.headers = {**ORIGIN, "Authorization": f"Bearer {(await response.json())['token']}"}

    async def url(self, session, node):
        async with session.post(f"{node.url}/ticket", headers=self.headers) as response:
            assert response.headers["Cache-Control"] == "no-store"
            return f"{node.url}/notifications?ticket={(await response.json())['ticket']}"


async def logged_in(session, node, name):
    user = CookieUser() if "notifications.py" in node.command()[-1] else TokenUser()
    await user.login(session, node, name)
    return user


async def notify(session, node, user, name, text):
    async with session.post(f"{node.url}/users/{name}", data=text, headers=user.headers) as response:
        assert response.status == 204


@pytest.mark.parametrize("name", RECIPES)
async def test_a_user_gets_the_notifications_from_all_nodes_until_the_logout_on_any(session, nodes, name, tmp_path):
    one, two = nodes(name)
    ann, bob = await logged_in(session, one, "ann"), await logged_in(session, two, "bob")
    url = await ann.url(session, one)
    async with open_stream(session, url, headers=ann.headers) as stream:
        assert stream.response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
        await notify(session, two, bob, "bob", "for bob")
        await notify(session, two, bob, "ann", "for ann")
        assert (await stream.next()).data == '{"text":"for ann"}'
        async with session.post(f"{two.url}/logout", headers=ann.headers) as response:
            assert response.status == 204
        assert [event.name for event in await stream.rest()] == ["logout"]
    secret = ann.headers.get("Cookie", ann.headers.get("Authorization")).replace("=", " ", 1).split()[1]
    log = b"".join(file.read_bytes() for file in tmp_path.glob("notifications.sqlite3*") if file.is_file())
    assert b"for ann" in log
    assert secret.encode() not in log
    async with session.get(url, headers=ann.headers) as response:
        assert response.status == 401
    async with open_stream(session, await bob.url(session, two), headers=bob.headers) as stream:
        assert stream.response.status == 200


@pytest.mark.parametrize("name", RECIPES)
async def test_strangers_get_nothing(session, run, name):
    node = run(name)
    async with session.get(f"{node.url}/notifications") as response:
        assert response.status == 401
    async with session.post(f"{node.url}/users/ann", data="x") as response:
        assert response.status == 401
    ann = await logged_in(session, node, "ann")
    async with session.get(
        await ann.url(session, node), headers={**ann.headers, "Origin": "http://evil.example"}
    ) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_page_of_another_origin_cannot_post_with_the_cookie(session, run):
    node = run("notifications")
    ann = await logged_in(session, node, "ann")
    headers = {**ann.headers, "Origin": "http://evil.example"}
    async with session.post(f"{node.url}/users/ann", data="x", headers=headers) as response:
        assert response.status == 403


async def test_a_login_in_a_browser_ends_the_session_and_the_streams_of_the_last_user(session, run):
    node = run("notifications")
    ann = await logged_in(session, node, "ann")
    async with open_stream(session, f"{node.url}/notifications", headers=ann.headers) as stream:
        async with session.post(f"{node.url}/login", data={"user": "bob"}, headers=ann.headers) as response:
            assert response.status == 204
        assert [event.name for event in await stream.rest()] == ["logout"]
    async with session.post(f"{node.url}/users/bob", data="x", headers=ann.headers) as response:
        assert response.status == 401


@pytest.fixture
def pages(tmp_path):
    """Serve the folder of a recipe from another port, as ``python -m http.server 3000`` does."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "recipe").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "recipe"))
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", RECIPES)
async def test_the_page_of_another_origin_shows_notifications_and_resumes(visit, run, pages, name, console_errors):
    recipe = run(name, replace={"http://localhost:3000": pages})
    page = await visit(f"{pages}/{name}.html")
    state, items = page.locator("#state"), page.locator("li")
    await page.get_by_label("User").fill("ann")
    await page.get_by_role("button", name="Sign in").click()
    await expect(state).to_have_text("signed in")
    notify = """([name, text]) => post("/users/" + name, text)"""
    await page.evaluate(notify, ["ann", "one"])
    await expect(items).to_have_text(["one"])
    recipe.kill()
    await expect(state).to_have_text("connecting")
    recipe.restart()
    await page.evaluate(notify, ["ann", "missed"])  # before the page reconnects
    await expect(items).to_have_text(["one", "missed"])
    await expect(state).to_have_text("signed in")
    await page.get_by_role("button", name="Sign out").click()
    await expect(state).to_have_text("signed out")
    assert await page.evaluate("""async () => (await post("/users/ann", "three")).ok""") is False
    console_errors[:] = [each for each in console_errors if "40" not in each and "ERR_" not in each]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", RECIPES)
async def test_the_page_has_no_violations_for_axe(visit, run, pages, name, console_errors):
    run(name, replace={"http://localhost:3000": pages})
    page = await visit(f"{pages}/{name}.html")
    assert await violations(page) == []
    await page.get_by_label("User").fill("ann")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#state")).to_have_text("signed in")
    await page.evaluate("""() => post("/users/ann", "one")""")
    await expect(page.locator("li")).to_have_text(["one"])
    assert await violations(page) == []
    await page.context.close()
    console_errors[:] = [each for each in console_errors if "401" not in each]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", RECIPES)
async def test_the_next_user_of_the_page_does_not_see_the_notifications_of_the_last(
    visit, run, pages, name, console_errors
):
    run(name, replace={"http://localhost:3000": pages})
    page = await visit(f"{pages}/{name}.html")
    state, items = page.locator("#state"), page.locator("li")

    async def sign_in(user):
        await page.get_by_label("User").fill(user)
        await page.get_by_role("button", name="Sign in").click()

    await sign_in("ann")
    await expect(state).to_have_text("signed in")
    await page.evaluate("""() => post("/users/ann", "for ann")""")
    await expect(items).to_have_text(["for ann"])
    await sign_in("bob")  # without signing out
    await expect(items).to_have_count(0)
    await expect(state).to_have_text("signed in")
    await page.evaluate("""() => post("/users/bob", "for bob")""")
    await expect(items).to_have_text(["for bob"])
    await page.get_by_role("button", name="Sign out").click()
    await expect(state).to_have_text("signed out")
    await expect(items).to_have_count(0)
    console_errors[:] = [each for each in console_errors if "401" not in each]
