"""The example application without a browser: the streams of the machine, and the command line."""

import asyncio
import json
import os
import re
import signal
import socket
from types import SimpleNamespace

import psutil
import pytest
from aiohttp import ClientSession

from aiohttp_interceptors.testing import captured_logs, open_stream
from example_app.app import make_app
from example_app.machine import HISTORY, Machine
from example_app.pages import PAGES
from example_app.streams import MACHINE
from tests.program import START_TIMEOUT, outcome, program, serving
from tests.servers.process import free_port
from tests.waiting import until


@pytest.fixture
async def client(aiohttp_client):
    return await aiohttp_client(make_app(sample_interval=0.01, seed_interval=0.01))


async def numbers(stream, count):
    """Read ``count`` samples and return their numbers."""
    return [json.loads((await stream.next()).data)["number"] for _ in range(count)]


def logged(lines, event):
    return [line for line in lines if line["event"] == event]


# The load.


async def test_a_sample_contains_the_load_of_the_machine(client):
    async with open_stream(client, "/events/load") as stream:
        event = await stream.next()
        assert stream.response.headers["Content-Type"] == "text/event-stream"
    sample = json.loads(event.data)
    assert event.name == "load"
    assert event.id == f"{client.app[MACHINE].run_id}-{sample['number']}"
    assert event.retry == 1000
    assert len(sample["cores"]) == psutil.cpu_count()
    assert all(0 <= core <= 100 for core in sample["cores"])
    assert 0 < sample["memory_used"] < sample["memory_total"]
    for rate in ("received", "sent", "read", "written"):
        assert sample[rate] is None or sample[rate] >= 0


async def test_a_new_page_receives_the_history_and_then_new_samples(client):
    async with open_stream(client, "/events/load") as first:
        assert await numbers(first, 10) == list(range(1, 11))
    async with open_stream(client, "/events/load") as second:
        assert await numbers(second, 20) == list(range(1, 21))


async def test_the_history_is_one_minute_long(client):
    async with open_stream(client, "/events/load") as first:
        last = (await numbers(first, HISTORY + 20))[-1]
    async with open_stream(client, "/events/load") as second:
        oldest, *others = await numbers(second, HISTORY + 5)
    assert oldest > last - HISTORY
    assert others == list(range(oldest + 1, oldest + HISTORY + 5))


async def test_a_page_that_reconnects_receives_only_newer_samples(client):
    async with open_stream(client, "/events/load") as stream:
        await numbers(stream, 5)
        last_event_id = stream.last_event_id
    async with open_stream(client, "/events/load", last_event_id=last_event_id) as stream:
        assert await numbers(stream, 10) == list(range(6, 16))


@pytest.mark.parametrize(
    "last_event_id", ["another-5", "5", "", "-", "{run_id}-", "{run_id}-x", "{run_id}-" + "9" * 5000]
)
async def test_a_page_with_an_invalid_id_or_one_of_another_run_receives_the_history(client, last_event_id):
    last_event_id = last_event_id.format(run_id=client.app[MACHINE].run_id)
    async with open_stream(client, "/events/load", last_event_id=last_event_id) as stream:
        assert await numbers(stream, 3) == [1, 2, 3]


async def test_a_machine_without_counters_of_network_and_disk_sends_none(aiohttp_client, monkeypatch):
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    client = await aiohttp_client(make_app(sample_interval=0.01))
    async with open_stream(client, "/events/load") as stream:
        sample = json.loads((await stream.next()).data)
    assert [sample[rate] for rate in ("received", "sent", "read", "written")] == [None] * 4


async def test_a_rate_is_the_difference_per_second_and_never_negative(aiohttp_client, monkeypatch):
    counts = iter([SimpleNamespace(read_bytes=0, write_bytes=1000), SimpleNamespace(read_bytes=5000, write_bytes=0)])
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: next(counts, None))
    client = await aiohttp_client(make_app(sample_interval=0.1))
    async with open_stream(client, "/events/load") as stream:
        sample = json.loads((await stream.next()).data)
    assert 0 < sample["read"] <= 55_000
    assert sample["written"] == 0


async def test_a_sample_that_failed_is_logged_and_sampling_continues(aiohttp_client, monkeypatch):
    results = iter([None, OSError("no such device")])

    def disk():
        result = next(results, None)
        if result is not None:
            raise result

    monkeypatch.setattr(psutil, "disk_io_counters", disk)
    with captured_logs() as lines:
        client = await aiohttp_client(make_app(sample_interval=0.01))
        async with open_stream(client, "/events/load") as stream:
            assert await numbers(stream, 2) == [1, 2]
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["sample_failed"]


async def test_dropping_ends_only_the_stream_of_that_client(client):
    async with (
        open_stream(client, "/events/load?client=one") as one,
        open_stream(client, "/events/load?client=two") as two,
    ):
        await numbers(one, 1)
        await numbers(two, 1)
        assert (await client.post("/drop?client=one")).status == 204
        await one.rest()
        await numbers(two, 50)


@pytest.mark.parametrize("query", ["", "?client=", "?client=unknown"])
async def test_an_unknown_client_cannot_be_dropped(client, query):
    async with open_stream(client, "/events/load") as stream:
        await numbers(stream, 1)
        assert (await client.post(f"/drop{query}")).status == 404
        await numbers(stream, 5)


async def test_a_stream_that_ended_is_removed(client):
    async with open_stream(client, "/events/load?client=one") as stream:
        await numbers(stream, 1)
        assert list(client.app[PAGES]) == ["one"]
    await until(lambda: not client.app[PAGES])


async def test_an_id_contains_a_run_and_a_number():
    one, two = Machine(), Machine()
    assert one.run_id != two.run_id
    assert one.number_of(f"{one.run_id}-7") == 7
    assert two.number_of(f"{one.run_id}-7") == 0


# The seed.


async def test_the_seed_ends_after_twenty_events(client):
    async with open_stream(client, "/events/seed") as stream:
        events = await stream.rest()
    assert [(event.name, event.data, event.id) for event in events] == [("foo", "bar", str(n)) for n in range(1, 21)]


async def test_a_page_that_received_the_whole_seed_gets_a_204(client):
    async with open_stream(client, "/events/seed", last_event_id="20") as stream:
        assert stream.response.status == 204
        assert "Set-Cookie" not in stream.response.headers


async def test_a_page_that_received_part_of_the_seed_gets_the_other_events(client):
    async with open_stream(client, "/events/seed", last_event_id="17") as stream:
        assert [event.id for event in await stream.rest()] == ["18", "19", "20"]


@pytest.mark.parametrize("last_event_id", ["", "x", "-3", "1.5", "9" * 5000])
async def test_a_page_with_an_invalid_id_gets_the_whole_seed(client, last_event_id):
    async with open_stream(client, "/events/seed", last_event_id=last_event_id) as stream:
        assert (await stream.next()).id == "1"


# The interceptors.


async def test_the_late_cookie_is_dropped_and_logged(client):
    with captured_logs() as lines:
        async with open_stream(client, "/events/seed") as stream:
            await stream.rest()
            assert "Set-Cookie" not in stream.response.headers
            assert b"Set-Cookie" not in stream.raw
        await until(lambda: logged(lines, "request"))
    (request,) = logged(lines, "request")
    (dropped,) = logged(lines, "change_after_commit_dropped")
    assert (dropped["interceptor"], dropped["stage"]) == ("late_cookie", "leave")
    assert dropped["execution_id"] == request["execution_id"]


async def test_each_request_is_logged_once_with_its_duration(client):
    with captured_logs() as lines:
        assert (await client.get("/")).status == 200
        assert (await client.get("/nowhere")).status == 404
        async with open_stream(client, "/events/seed", last_event_id="17") as stream:
            await stream.rest()
        await until(lambda: len(logged(lines, "request")) == 3)
    requests = logged(lines, "request")
    assert [(line["method"], line["path"], line["status"]) for line in requests] == [
        ("GET", "/", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/events/seed", 200),
    ]
    assert requests[2]["seconds"] >= 0.03  # a stream is logged when it ends
    assert len({line["execution_id"] for line in requests}) == 3


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/rooms",
        "/rooms?room=*",
        "/experiments",
        "/static/page.js",
        "/source/README.md",
        "/events/load",
        "/events/room",
        "/nowhere",
    ],
)
async def test_every_response_has_the_content_security_policy(client, path):
    async with client.get(path) as response:
        assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
        response.close()


async def test_a_plain_response_has_server_timing_and_a_stream_does_not(client):
    assert re.fullmatch(r"app;dur=\d+\.\d", (await client.get("/")).headers["Server-Timing"])
    async with open_stream(client, "/events/load") as stream:
        assert "Server-Timing" not in stream.response.headers


@pytest.mark.parametrize(
    ("page", "script"),
    [("/", "/static/page.js"), ("/rooms", "/static/rooms.js"), ("/experiments", "/static/experiments.js")],
)
async def test_all_files_that_a_page_loads_exist(client, page, script):
    html = await (await client.get(page)).text()
    script = await (await client.get(script)).text()
    paths = re.findall(r'(?:src|href)="(/static/[^"]+)"', html) + [
        f"/static/{name}" for name in re.findall(r'from "\./(.+?)"', script)
    ]
    assert len(paths) > 5
    for path in paths:
        assert (await client.get(path)).status == 200, path
    assert not re.search(r"https?://", html + script)


# The command line.


@pytest.fixture
def used_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_a_port_in_use_is_reported_in_one_line_that_says_what_to_do(used_port):
    async with program("--port", str(used_port)) as process:
        status, _, err = await outcome(process)
    assert status == 1
    assert err == (
        f"port {used_port} is in use; stop the process that uses it, "
        f"or choose another: PORT={used_port + 1} make demo\n"
    )


async def test_the_port_can_be_set_in_the_environment(used_port):
    async with program(environment={"PORT": str(used_port)}) as process:
        status, _, err = await outcome(process)
    assert status == 1
    assert err.startswith(f"port {used_port} is in use; ")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
async def test_an_invalid_port_is_refused_with_the_value(port):
    async with program(f"--port={port}") as process:
        status, _, err = await outcome(process)
    assert status == 2
    assert f"invalid port number value: {port!r}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_server_soon_with_open_streams(number):
    port = free_port()
    async with program("--port", str(port)) as process, ClientSession() as session:
        url = (await serving(process))["url"]
        assert url == f"http://127.0.0.1:{port}"
        async with (
            open_stream(session, f"{url}/events/load") as load,
            open_stream(session, f"{url}/events/seed") as seed,
            open_stream(session, f"{url}/events/room") as room,
        ):
            await load.next()
            await seed.next()
            await room.next()
            started = asyncio.get_running_loop().time()
            process.send_signal(number)
            await load.rest()  # raises if the stream does not end cleanly
            await seed.rest()
            await room.rest()
            status, out, err = await outcome(process)
            seconds = asyncio.get_running_loop().time() - started
    assert (status, err) == (0, "")
    assert seconds < 10  # less than aiohttp's timeouts for open connections
    assert "Traceback" not in out
    closed = [line for line in map(json.loads, out.splitlines()) if line["event"] == "stream_closed"]
    assert sorted((line["path"], line["reason"]) for line in closed) == [
        ("/events/load", "shutdown"),
        ("/events/room", "shutdown"),
        ("/events/seed", "shutdown"),
    ]


async def test_log_lines_are_json_without_a_terminal():
    port = free_port()
    async with program("--port", str(port)) as process, ClientSession() as session:
        url = (await serving(process))["url"]
        async with session.get(f"{url}/") as response:
            assert response.status == 200
        process.send_signal(signal.SIGINT)
        _, out, _ = await outcome(process)
    lines = [json.loads(line) for line in out.splitlines()]
    (line,) = (line for line in lines if line["event"] != "hub_up")  # the Hub may be up before the end or not
    assert (line["event"], line["path"], line["status"], line["level"]) == ("request", "/", 200, "info")
    assert line["execution_id"]
    assert line["timestamp"].endswith("Z")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="Windows has no pseudo-terminals")
async def test_log_lines_are_coloured_on_a_terminal():
    port = free_port()
    terminal, end = os.openpty()
    try:
        async with program("--port", str(port), stdout=end) as process:
            loop, output = asyncio.get_running_loop(), b""
            async with asyncio.timeout(START_TIMEOUT):
                while f"http://127.0.0.1:{port}".encode() not in output:
                    output += await loop.run_in_executor(None, os.read, terminal, 1000)
            process.send_signal(signal.SIGINT)
            status, _, err = await outcome(process)
    finally:
        os.close(terminal)
        os.close(end)
    assert (status, err) == (0, "")
    assert b"\x1b[" in output
    assert not output.startswith(b"{")
