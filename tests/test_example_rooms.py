"""The rooms of the example application without a browser: delivery, presence, resuming, and validation."""

import asyncio
import json
import time

import pytest
from aiohttp import ClientSession, CookieJar, FormData
from yarl import URL

from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.testing import open_stream
from example_app.app import LATEST, make_app
from example_app.rooms import HUB, MAX_NAME, MAX_TEXT, SERVER
from tests.waiting import until

INVALID_ROOMS = ["", "*", ">", "lobby.*", "a.b", ".", "a b", "a\n", "a/b", "ä", "²", "x" * 31, "a&room=b>"]


@pytest.fixture
async def client(aiohttp_client):
    return await aiohttp_client(make_app())


def address(path, room="lobby", **query):
    return str(URL(path).with_query({"room": room, **query}))


def room(client, name="lobby", /, *, last_event_id=None, **query):
    return open_stream(client, address("/events/room", name, **query), last_event_id=last_event_id)


async def say(client, text, *, room="lobby", name="Ada", **options):
    async with client.post(address("/say", room), data={"name": name, "text": text}, **options) as response:
        return response.status


async def texts(stream, count):
    """Read ``count`` lines, and return their texts. Events about presence are skipped."""
    found = []
    while len(found) < count:
        event = await stream.next()
        if event.name not in {"here", "server"}:
            assert event.name == "line"
            found.append(json.loads(event.data)["text"])
    return found


async def here(stream, count):
    """Read until a ``here`` event has this count."""
    while (event := await stream.next()).name != "here" or json.loads(event.data)["count"] != count:
        pass
    return event


# Lines.


async def test_a_line_reaches_all_pages_of_its_room_and_no_other(client):
    async with room(client, "tea") as one, room(client, "tea") as two, room(client, "coffee") as other:
        assert await say(client, "milk?", room="tea") == 204
        assert await say(client, "sugar?", room="coffee") == 204
        assert await texts(one, 1) == await texts(two, 1) == ["milk?"]
        assert await texts(other, 1) == ["sugar?"]


async def test_a_line_has_its_author_and_time(client):
    async with room(client) as stream:
        before = time.time()
        await say(client, "  hello <b>there</b>\n", name=" Ada ")
        await here(stream, 1)
        event = await stream.next()
    line = json.loads(event.data)
    assert (event.name, line["name"], line["text"]) == ("line", "Ada", "hello <b>there</b>")
    assert before <= line["time"] <= time.time()
    assert event.id == stream.last_event_id


async def test_a_new_page_receives_the_latest_lines_and_then_new_ones(client):
    for number in range(LATEST + 5):
        await say(client, f"{number}")
    await say(client, "elsewhere", room="tea")
    async with room(client) as stream:
        assert await texts(stream, LATEST) == [f"{number}" for number in range(5, LATEST + 5)]
        await say(client, "new")
        assert await texts(stream, 1) == ["new"]


async def test_the_default_room_is_the_lobby_and_names_are_case_insensitive(client):
    async with open_stream(client, "/events/room") as lobby, room(client, "TEA") as tea:
        await say(client, "one", room="Lobby")
        await say(client, "two", room="tea")
        assert await texts(lobby, 1) == ["one"]
        assert await texts(tea, 1) == ["two"]


async def test_a_page_is_told_its_server_and_what_keeps_its_lines(aiohttp_client, tmp_path):
    for broker, store in [(None, "memory"), (SqliteBroker(tmp_path / "history.sqlite3"), "SqliteBroker")]:
        async with room(await aiohttp_client(make_app(broker))) as stream:
            while (event := await stream.next()).name != "server":
                pass
            assert json.loads(event.data) == {"name": SERVER, "store": store}


# Presence.


async def test_the_pages_of_a_room_receive_their_number_when_it_changes(client):
    async with room(client, "tea") as one:
        await here(one, 1)
        async with room(client, "coffee") as other, room(client, "tea") as two:
            await here(one, 2)
            await here(two, 2)
            await here(other, 1)
        await here(one, 1)
        assert [
            event for event in (one.raw + other.raw).split(b"\n\n") if b"event: here" in event and b"id:" in event
        ] == []


async def test_the_number_of_pages_is_not_kept_in_the_history(client):
    await say(client, "first")
    for _ in range(LATEST + 5):
        async with room(client) as stream:
            await here(stream, 1)
        await until(lambda: client.app[HUB].subscribers("rooms.lobby") == 0)
    async with room(client) as stream:
        assert await texts(stream, 1) == ["first"]


# Resuming.


async def test_a_page_that_was_dropped_resumes_and_other_pages_are_not_affected(client):
    async with room(client, client="one") as one, room(client, client="two") as two:
        await say(client, "a")
        assert await texts(one, 1) == ["a"]
        async with client.post("/drop?client=one") as response:
            assert response.status == 204
        assert "line" not in [event.name for event in await one.rest()]
        for text in "bc":
            await say(client, text)
        async with room(client, client="one", last_event_id=one.last_event_id) as again:
            await say(client, "d")
            assert await texts(again, 3) == ["b", "c", "d"]
        assert await texts(two, 4) == ["a", "b", "c", "d"]


async def test_a_page_that_was_dropped_before_the_first_line_receives_it(client):
    async with room(client, client="one") as stream:
        await here(stream, 1)
    await say(client, "a")
    async with room(client, last_event_id=stream.last_event_id) as again:
        assert await texts(again, 1) == ["a"]


async def test_a_new_event_source_can_resume_with_an_id_in_the_query(client):
    async with room(client) as stream:
        await say(client, "a")
        await texts(stream, 1)
    await say(client, "b")
    async with open_stream(client, address("/events/room", last_event_id=stream.last_event_id)) as again:
        assert await texts(again, 1) == ["b"]


async def test_after_a_restart_there_is_a_gap_and_then_the_history_of_the_new_server(client, aiohttp_client):
    async with room(client) as stream:
        await say(client, "before")
        await texts(stream, 1)
    restarted = await aiohttp_client(make_app())
    await say(restarted, "after")
    async with room(restarted, last_event_id=stream.last_event_id) as again:
        gap = await again.next()
        assert gap.name == "gap"
        assert json.loads(gap.data)["reason"] == "foreign"
        assert await texts(again, 1) == ["after"]


# Validation.


@pytest.mark.parametrize("name", INVALID_ROOMS)
async def test_an_invalid_room_name_such_as_a_wildcard_is_refused(client, name):
    for path in ("/rooms", "/events/room"):
        async with client.get(address(path, name)) as response:
            assert response.status == 400, path
            assert "letters" in await response.text()
    assert await say(client, "hello", room=name) == 400
    assert client.app[HUB].statistics().published == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "hello"), (" ", "hello"), ("A" * (MAX_NAME + 1), "hello"),
        ("Ada", ""), ("Ada", " \n"), ("Ada", "x" * (MAX_TEXT + 1)),
    ],
)  # fmt: skip
async def test_a_line_with_an_empty_or_too_long_name_or_text_is_refused(client, name, text):
    assert await say(client, text, name=name) == 400
    assert client.app[HUB].statistics().published == 0


async def test_the_longest_allowed_line_is_accepted(client):
    async with room(client) as stream:
        assert await say(client, "é" * MAX_TEXT, name="é" * MAX_NAME) == 204
        assert await texts(stream, 1) == ["é" * MAX_TEXT]


async def test_a_file_instead_of_text_is_refused(client):
    form = FormData({"name": "Ada"})
    form.add_field("text", b"x" * (MAX_TEXT + 1), filename="text")
    async with client.post("/say", data=form) as response:
        assert response.status == 400


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("none", 403), ("same-origin", 204)]
)
async def test_cross_site_requests_are_refused(client, site, status):
    assert await say(client, "hello", headers={"Sec-Fetch-Site": site}) == status
    assert client.app[HUB].statistics().published == (status == 204)


# Operating.


async def test_a_logout_on_one_server_ends_the_pages_of_the_browser_on_the_other_within_a_second(tmp_path, serve):
    servers = [await serve(make_app(SqliteBroker(tmp_path / "rooms.sqlite3"))) for _ in range(2)]
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser, ClientSession() as stranger:
        async with browser.get(f"{servers[0].url}/rooms") as response:
            assert response.cookies["session"]["httponly"]
            secret = response.cookies["session"].value
        async with (
            open_stream(browser, f"{servers[1].url}/events/room") as page,
            open_stream(stranger, f"{servers[1].url}/events/room") as other,
        ):
            async with browser.post(f"{servers[0].url}/logout") as response:
                assert (response.status, response.cookies["session"].value) == (204, "")
            async with asyncio.timeout(1):
                assert (await page.rest())[-1].name == "logout"
            async with stranger.post(f"{servers[0].url}/say", data={"name": "Ada", "text": "still here"}):
                assert await texts(other, 1) == ["still here"]
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"session:" in stored, "the logout"
    assert secret.encode() not in stored


async def test_metrics_health_and_inspector_are_for_this_machine(client):
    async with room(client):
        for path, text in [
            ("/metrics", 'aiohttp_interceptors_streams_open{route="/events/room"} 1.0'),
            ("/live", ""),
            ("/ready", ""),
            ("/inspector/", "Inspector"),
        ]:
            async with client.get(path) as response:
                assert response.status == 200, path
                assert text in await response.text()
    for path in ("/metrics", "/inspector/", "/inspector/feed"):
        async with client.get(path, headers={"Host": "evil.example"}) as response:
            assert response.status == 403, path
