"""The command line: publish and tail, with a file of SQLite and with the application's own broker."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from pathlib import Path

import pytest

from aiohttp_interceptors import Hub
from aiohttp_interceptors.__main__ import main
from aiohttp_interceptors.brokers.sqlite import SqliteBroker
from tests.waiting import within

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in a thread, and return status, output and errors."""

    async def run_command(*arguments, cwd=None, data=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(data))
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr("sys.path", [*sys.path])  # a command adds the working folder
        capsys.readouterr()
        status = await within(asyncio.to_thread(main, arguments), 60)
        return status, *capsys.readouterr()

    return run_command


async def make_file(folder):
    """Return the path of a broker's file, as an application makes it."""
    file = folder / "events.sqlite3"
    hub = Hub(SqliteBroker(file))
    await hub.publish("setup", "x")
    await hub.close()
    return str(file)


async def test_what_one_command_publishes_another_prints(tmp_path, run):
    file = await make_file(tmp_path)
    status, out, err = await run("publish", file, "orders.eu", "x", "--name", "created", "--key", "7")
    assert (status, err) == (0, "")
    first = out.strip()
    status, out, _ = await run("publish", file, "orders.us", data="two\nlines\n")
    second = out.strip()
    status, out, err = await run("tail", file, "orders.>", "--replay", "2", "--limit", "2")
    assert (status, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"id": first, "topic": "orders.eu", "data": "x", "name": "created", "key": "7"},
        {"id": second, "topic": "orders.us", "data": "two\nlines"},
    ]
    status, out, _ = await run("tail", file, "orders.>", "--after", first, "--limit", "1")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [second]


async def test_tail_follows_until_it_is_interrupted(tmp_path):
    file = tmp_path / "events.sqlite3"
    hub = Hub(SqliteBroker(file))
    await hub.publish("a", "0")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "aiohttp_interceptors", "tail", str(file), "a", "--replay", "1"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    assert json.loads(await within(process.stdout.readline(), 60))["data"] == "0"
    await hub.publish("a", "1")
    assert json.loads(await within(process.stdout.readline(), 60))["data"] == "1"
    process.send_signal(2)
    assert await within(process.wait(), 60) == 130
    await hub.close()


async def test_an_unknown_id_is_printed_as_a_gap(tmp_path, run):
    file = await make_file(tmp_path)
    await run("publish", file, "a", "x")
    _, out, _ = await run("tail", file, "a", "--after", "foreign-1", "--limit", "2")
    gap, record = map(json.loads, out.splitlines())
    assert (gap["gap"], gap["after"], record["data"]) == ("foreign", "foreign-1", "x")


async def test_the_application_may_make_the_broker(tmp_path, run):
    (tmp_path / "my_events.py").write_text(
        "from aiohttp_interceptors.brokers.sqlite import SqliteBroker\n"
        "def broker():\n"
        "    return SqliteBroker('mine.sqlite3', max_records=2)\n"
    )
    for number in range(4):
        assert (await run("publish", "my_events:broker", "a", str(number), cwd=tmp_path))[0] == 0
    _, out, _ = await run("tail", "my_events:broker", "a", "--replay", "9", "--limit", "2", cwd=tmp_path)
    assert [json.loads(line)["data"] for line in out.splitlines()] == ["2", "3"]


async def test_a_file_is_not_trimmed(tmp_path, run):
    """How much is kept is the decision of the application, and not of a command."""
    file = tmp_path / "events.sqlite3"
    hub = Hub(SqliteBroker(file))
    for number in range(20):
        await hub.publish("a", str(number))
    await hub.close()
    await run("publish", str(file), "a", "x")
    _, out, _ = await run("tail", str(file), "a", "--replay", "100", "--limit", "21")
    assert len(out.splitlines()) == 21


async def test_tail_ends_quietly_when_its_reader_has_enough(tmp_path):
    file = await make_file(tmp_path)
    command = f"{sys.executable} -m aiohttp_interceptors tail {file} setup --replay 1 | head -1"
    process = await asyncio.create_subprocess_shell(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=-1, stderr=-1
    )
    hub = Hub(SqliteBroker(file))

    async def publish():
        while True:  # tail notices at its next line
            await hub.publish("setup", "more")
            await asyncio.sleep(0.05)

    publishing = asyncio.create_task(publish())
    out, err = await within(process.communicate(), 60)
    publishing.cancel()
    await hub.close()
    assert (len(out.splitlines()), err) == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["publish", "nats://x", "a", "x"], "name a function that makes it: module:function"),
        (["publish", "ftp://x", "a", "x"], "is not redis://"),
        (["publish", "redis://127.0.0.1:1", "a", "x", "--stream", "mine"], "BrokerDown"),
        (["publish", "postgresql://127.0.0.1:1/x", "a", "x", "--stream", "mine"], "BrokerDown"),
        (["publish", "events.sqlite3", "a..b", "x"], "a topic"),
        (["tail", "events.sqlite3", "a", "--replay", "-1"], "replay is"),
        (["publish", "event.sqlite3", "a", "x"], "there is no file 'event.sqlite3'"),
        (["tail", "missing:make", "a"], "'missing:make' cannot be imported: No module named 'missing'"),
        (["tail", "json:missing", "a"], "'json:missing' cannot be imported"),
        (["tail", "json:__name__", "a"], "'json:__name__' is 'json'; name a function that makes the broker"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
async def test_what_is_wrong_is_said_without_a_traceback(tmp_path, run, arguments, message):
    await make_file(tmp_path)
    status, out, err = await run(*arguments, cwd=tmp_path)
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
