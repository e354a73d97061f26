"""The applications in examples/ do what they are for, in at most twelve lines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from aiohttp_interceptors.testing import open_stream
from tests.servers.process import free_port

FOLDER = Path(__file__).parents[1] / "examples"


def load(name):
    """Return a new module of an example."""
    spec = spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_has_at_most_twelve_lines(file):
    assert sum(bool(line.strip()) for line in file.read_text().splitlines()) <= 12


async def test_tokens_stream_over_post_and_a_wrong_body_is_a_400(serve, session):
    url = f"{(await serve(load('tokens').app)).url}/chat"
    async with session.post(url, json={"prompt": "one two"}) as response:
        assert (response.status, await response.text()) == (200, "data: one\n\ndata: two\n\n")
    for body in ({"data": "{"}, {"json": {}}, {"json": []}, {"json": {"prompt": 5}}):
        async with session.post(url, **body) as response:
            assert (response.status, await response.text()) == (400, "send a JSON object with a prompt")


async def test_a_broadcast_reaches_everybody_and_newcomers_get_the_latest(serve, session):
    url = f"{(await serve(load('broadcast').app)).url}/chat"
    async with open_stream(session, url) as one, open_stream(session, url) as two:
        for number in range(12):
            async with session.post(url, data=str(number)):
                pass
        for stream in one, two:
            assert [(await stream.next()).data for _ in range(12)] == [str(number) for number in range(12)]
        async with open_stream(session, url) as newcomer:
            assert [(await newcomer.next()).data for _ in range(10)] == [str(number) for number in range(2, 12)]


async def test_an_answer_goes_on_without_its_reader_and_is_read_from_where_it_was(serve, session):
    server = await serve(load("answer").app)
    async with session.post(f"{server.url}/answers", data="one two three") as response:
        url = server.url + (await response.json())["url"]
    async with open_stream(session, url) as stream:
        events = [await stream.next() for _ in range(4)]
    assert [event.data for event in events] == ["one", "two", "three", '{"state":"finished"}']
    async with open_stream(session, url, headers={"Last-Event-ID": events[1].id}) as stream:
        assert [(await stream.next()).data for _ in range(2)] == ["three", '{"state":"finished"}']
    async with session.get(url, headers={"Last-Event-ID": events[3].id}) as response:
        assert response.status == 204


async def test_a_room_says_who_is_there_and_who_joins_and_leaves(serve, session):
    url = (await serve(load("room").app)).url
    async with open_stream(session, f"{url}/room?user=ann") as ann:
        assert json.loads((await ann.next()).data) == {"topic": "room", "present": ["ann"]}
        async with open_stream(session, f"{url}/room?user=bob") as bob:
            assert json.loads((await bob.next()).data) == {"topic": "room", "present": ["ann", "bob"]}
            assert json.loads((await ann.next()).data) == {"topic": "room", "joined": "bob"}
            async with session.get(f"{url}/members") as response:
                assert await response.json() == ["ann", "bob"]
        assert json.loads((await ann.next()).data) == {"topic": "room", "left": "bob"}


async def test_a_newcomer_gets_the_latest_price_of_each_symbol(serve, session):
    url = (await serve(load("prices").app)).url
    for symbol, price in ("a", "1"), ("b", "2"), ("a", "3"):
        async with session.put(f"{url}/prices/{symbol}", data=price):
            pass
    async with open_stream(session, f"{url}/prices") as stream:
        assert [json.loads((await stream.next()).data) for _ in range(2)] == [{"b": "2"}, {"a": "3"}]
        async with session.put(f"{url}/prices/b", data="4"):
            pass
        assert json.loads((await stream.next()).data) == {"b": "4"}


async def test_a_client_resumes_after_a_restart(serve, session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = await serve(load("resume").app)
    async with open_stream(session, f"{server.url}/news") as stream:
        async with session.post(f"{server.url}/news", data="0"):
            pass
        last = (await stream.next()).id
    async with session.post(f"{server.url}/news", data="missed"):
        pass
    await server.stop()
    server = await serve(load("resume").app)
    async with open_stream(session, f"{server.url}/news", last_event_id=last) as stream:
        assert (await stream.next()).data == "missed"


async def test_a_user_gets_only_his_notifications(serve, session):
    server = await serve(load("notifications").app)
    async with session.get(f"{server.url}/mine") as response:
        assert response.status == 401
    async with session.get(f"{server.url}/mine", headers={"X-User": "a.>"}) as response:
        assert response.status == 401
    ada, bob = {"X-User": "ada"}, {"X-User": "bob"}
    async with open_stream(session, f"{server.url}/mine", headers=ada) as stream:
        for user in ("bob", "ada"):
            body = {"topic": f"user.{user}", "data": f"for {user}"}
            async with session.post(f"{server.url}/notify", json=body, headers=bob) as response:
                assert response.status == 201
        assert (await stream.next()).data == "for ada"


async def test_typed_events_are_described(serve, session):
    example = load("typed")
    async with open_stream(session, f"{(await serve(example.app)).url}/answer") as stream:
        events = [(event.name, event.data) async for event in stream]
    assert events == [("Token", '{"text":"Hello"}'), ("Done", '{"tokens":1}')]
    validate(
        {
            "openapi": "3.2.0",
            "info": {"title": "Answers", "version": "1"},
            "paths": {"/answer": {"get": {"responses": example.description["responses"]}}},
            "components": {"schemas": example.description["schemas"]},
        }
    )


def test_the_test_of_an_endless_stream_passes():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_mode=auto",
        "test_clock.py",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{FOLDER.parent}{os.pathsep}{FOLDER}"}
    done = subprocess.run(
        [*command, "--rootdir", str(FOLDER), "-c", os.devnull],
        cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


async def test_the_command_of_the_examples_page_serves_one(session):
    port = free_port()
    code = f"from clock import app, web; web.run_app(app, port={port})"
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-c", code, cwd=FOLDER, env=environment, stdout=subprocess.PIPE
    )
    try:
        while b"Running on" not in (line := await server.stdout.readline()):
            assert line
        async with open_stream(session, f"http://127.0.0.1:{port}/clock") as stream:
            assert (await stream.next()).data
    finally:
        server.terminate()
        await server.communicate()
