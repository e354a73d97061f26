"""The runs of the example application without a browser: a job, an answer, and the files that the pages link to."""

import asyncio
import json
import re

import pytest
from yarl import URL

from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from aiohttp_interceptors.testing import open_stream
from example_app.app import make_app
from example_app.rooms import HUB
from example_app.runs import MAX_RUNS, STEPS, TOKENS
from tests.waiting import until

TEXT = "".join(TOKENS)
UNKNOWN = "0" * 32


@pytest.fixture
async def client(aiohttp_client):
    return await aiohttp_client(make_app(run_interval=0.01))


@pytest.fixture
async def slow_client(aiohttp_client):
    """An application whose runs do not end by themselves during a test."""
    return await aiohttp_client(make_app(run_interval=60))


async def start(client, kind, **query):
    async with client.post(f"/runs/{kind}", params=query) as response:
        assert response.status == 200
        run = await response.json()
        return run["topic"], run["start"]


async def texts(stream):
    """Read an answer to its end, and return its text and the state of its end."""
    text = ""
    for event in await stream.rest():
        data = json.loads(event.data)
        if event.name == "end":
            return text, data
        text += data["text"]
    raise AssertionError("no end")


async def test_a_page_that_comes_back_to_a_job_begins_with_the_latest_progress(client):
    topic, _ = await start(client, "jobs")
    async with open_stream(client, f"/events/{topic}") as stream:
        while json.loads((await stream.next()).data)["step"] < 10:
            pass
    async with open_stream(client, f"/events/{topic}") as stream:
        *events, end = await stream.rest()
    steps = [json.loads(event.data)["step"] for event in events]
    assert steps[0] >= 10
    assert steps == list(range(steps[0], STEPS + 1))
    assert (end.name, json.loads(end.data)) == ("end", {"state": "finished"})


async def test_a_page_that_comes_back_after_the_end_of_a_job_gets_its_last_progress_and_the_end(client):
    topic, _ = await start(client, "jobs")
    async with open_stream(client, f"/events/{topic}") as stream:
        await stream.rest()
    async with open_stream(client, f"/events/{topic}") as stream:
        progress, end = await stream.rest()
    assert json.loads(progress.data) == {"step": STEPS, "of": STEPS}
    assert json.loads(end.data) == {"state": "finished"}


async def test_an_answer_is_read_from_its_start_by_each_page_and_resumes(client):
    topic, begin = await start(client, "answers")
    async with open_stream(client, f"/events/{topic}?last_event_id={begin}") as stream:
        read = "".join([json.loads((await stream.next()).data)["text"] for _ in range(10)])
        last_event_id = stream.last_event_id
    async with open_stream(client, f"/events/{topic}?last_event_id={begin}", last_event_id=last_event_id) as stream:
        rest, end = await texts(stream)
    assert (read + rest, end) == (TEXT, {"state": "finished"})
    async with open_stream(client, f"/events/{topic}?last_event_id={begin}") as stream:
        assert await texts(stream) == (TEXT, {"state": "finished"})


async def test_an_answer_that_was_cancelled_continues_with_the_text_that_is_known(client):
    topic, begin = await start(client, "answers")
    async with open_stream(client, f"/events/{topic}?last_event_id={begin}") as stream:
        await stream.next()
        assert (await client.post(f"/runs/{topic}/cancel")).status == 204
        text, end = await texts(stream)
    assert end == {"state": "cancelled"}
    number = len(re.findall(r"\S+", text))
    assert number < len(TOKENS)
    topic, begin = await start(client, "answers", after=number)
    async with open_stream(client, f"/events/{topic}?last_event_id={begin}") as stream:
        assert json.loads((await stream.next()).data) == {"text": text, "number": number, "of": len(TOKENS)}
        assert (await texts(stream))[0] == TEXT.removeprefix(text)


async def test_another_server_reads_and_cancels_a_run(aiohttp_client, tmp_path):
    file = tmp_path / "history.sqlite3"
    one, other = [await aiohttp_client(make_app(SqliteBroker(file), run_interval=60)) for _ in range(2)]
    await until(lambda: one.app[HUB].ready and other.app[HUB].ready)
    topic, begin = await start(one, "answers")
    await until(lambda: other.app[HUB].find_run(topic) is not None)
    async with open_stream(other, f"/events/{topic}?last_event_id={begin}") as stream:
        assert (await stream.next()).name == "begin"
        assert (await other.post(f"/runs/{topic}/cancel")).status == 204
        assert json.loads((await stream.next()).data) == {"state": "cancelled"}


@pytest.mark.parametrize("kind", ["jobs", "answers"])
async def test_a_run_that_does_not_exist_is_refused(client, kind):
    for method, path in [("GET", f"/events/{kind}.{UNKNOWN}"), ("POST", f"/runs/{kind}.{UNKNOWN}/cancel")]:
        async with client.request(method, path) as response:
            assert response.status == 404
            assert "no such run" in await response.text()


@pytest.mark.parametrize("topic", ["jobs.*", "jobs.>", ">", "rooms.lobby", "jobs.x", f"jobs.{UNKNOWN}.a", "answers"])
async def test_only_the_topics_of_runs_can_be_read(client, topic):
    async with client.get(f"/events/{topic}") as response:
        assert response.status == 404
        response.close()


@pytest.mark.parametrize("after", ["-1", "x", "", "9" * 5000, str(len(TOKENS) + 1), "²", "1.5"])
async def test_an_invalid_number_of_tokens_is_refused(client, after):
    async with client.post("/runs/answers", params={"after": after}) as response:
        assert response.status == 400
        assert f"0 to {len(TOKENS)}" in await response.text()


@pytest.mark.parametrize("path", ["/runs/jobs", "/runs/answers", f"/runs/jobs.{UNKNOWN}/cancel"])
async def test_a_cross_site_request_starts_and_ends_nothing(slow_client, path):
    async with slow_client.post(path, headers={"Sec-Fetch-Site": "cross-site"}) as response:
        assert response.status == 403


async def test_one_run_too_many_is_refused_until_another_has_ended(slow_client):
    topic, _ = (await asyncio.gather(*(start(slow_client, "jobs") for _ in range(MAX_RUNS))))[0]
    async with slow_client.post("/runs/jobs") as response:
        assert response.status == 503
        assert "try again" in await response.text()
    assert (await slow_client.post(f"/runs/{topic}/cancel")).status == 204
    await slow_client.app[HUB].find_run(topic).wait()
    await start(slow_client, "jobs")


# The files that the pages link to.


@pytest.mark.parametrize("page", ["/", "/rooms", "/experiments", "/rooms?room=*"])
async def test_all_links_of_the_pages_lead_somewhere(client, page):
    async with client.get(page) as response:
        links = set(re.findall(r'href="(/[^"]*)"', await response.text()))
    assert {"/", "/rooms", "/experiments", "/inspector/"} <= links
    for link in links - {"/events/load", "/events/room", "/events/seed"}:  # streams
        async with client.get(link) as response:
            assert response.status == 200, link
            if link.startswith("/source/"):
                assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
                assert len(await response.text()) > 100


@pytest.mark.parametrize(
    "path", ["../pyproject.toml", "docs/../pyproject.toml", "docs/%2e%2e/pyproject.toml", "pyproject.toml",
             "example_app/history.sqlite3", "example_app/none.py", "docs", "", "/etc/passwd", "docs%2fhub.md%00.md"]
)  # fmt: skip
async def test_no_other_file_is_served_as_source(client, path):
    async with client.get(URL(f"/source/{path}", encoded=True)) as response:
        assert response.status == 404
