"""The recipe of an MCP endpoint: what the specification of Streamable HTTP, revision 2025-11-25, asks for."""

from __future__ import annotations

import json

import pytest
from aiohttp import ClientPayloadError

from aiohttp_interceptors import Decoder
from aiohttp_interceptors.testing import open_stream
from tests.waiting import within

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


def call(number, to, **meta):
    params = {"name": "count", "arguments": {"to": to}, **({"_meta": meta} if meta else {})}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


class Client:
    """A client with a session."""

    def __init__(self, session, recipe):
        self.http = session
        self.url = f"{recipe.url}/mcp"
        self.headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}

    async def initialize(self):
        async with self.http.post(self.url, json=INITIALIZE, headers=self.headers) as response:
            self.headers = {**self.headers, "Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
            return await response.json()

    def post(self, message, **headers):
        return self.http.post(self.url, json=message, headers={**self.headers, **headers})

    def stream(self, last_event_id=None):
        return open_stream(self.http, self.url, headers=self.headers, last_event_id=last_event_id)


@pytest.fixture
async def client(session, run):
    client = Client(session, run("mcp_server", replace={"sleep(0.2)": "sleep(0.05)"}))
    assert (await client.initialize())["result"]["protocolVersion"] == "2025-11-25"
    return client


async def events_of(response):
    return Decoder().feed(await within(response.read()))


def messages(events):
    return [json.loads(event.data) for event in events if event.data]


async def test_requests_are_answered_with_json_and_notifications_with_202(client):
    async with client.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}) as response:
        assert [tool["name"] for tool in (await response.json())["result"]["tools"]] == ["count"]
    async with client.post({"jsonrpc": "2.0", "id": 2, "method": "nothing"}) as response:
        assert (await response.json())["error"]["code"] == -32601
    for message in {"method": "notifications/initialized"}, {"id": 5, "result": {}}:
        async with client.post({"jsonrpc": "2.0", **message}) as response:
            assert (response.status, await response.read()) == (202, b"")


async def test_a_call_is_answered_with_a_stream_of_progress_and_the_response(client):
    async with client.post(call(1, 2, progressToken="t")) as response:
        assert response.content_type == "text/event-stream"
        first, *events = await events_of(response)
    assert (first.data, bool(first.id)) == ("", True)  # from here on the client can resume
    *progress, answer = messages(events)
    assert [each["params"]["progress"] for each in progress] == [1, 2]
    assert answer["id"] == 1
    assert answer["result"]["content"][0]["text"] == "counted to 2"


async def test_a_client_resumes_the_stream_that_was_cut_and_no_other(client):
    async with client.post(call("a", 10, progressToken="a")) as cut, client.post(call("b", 10, progressToken="b")) as _:
        body = b"".join([await within(cut.content.readuntil(b"\n\n")) for _ in range(3)])
    last = body.decode().rpartition("id: ")[2].strip()
    async with client.stream(last) as stream:
        events = await stream.rest()
    *progress, answer = messages(events)
    assert [(each["params"]["progressToken"], each["params"]["progress"]) for each in progress] == [
        ("a", number) for number in range(3, 11)
    ]
    assert answer["id"] == "a"
    async with client.stream(events[-1].id) as stream:  # nothing is left of it
        assert await stream.rest() == []


async def test_a_client_that_was_cut_before_the_first_message_resumes(client):
    async with client.post(call(1, 3)) as cut:
        body = await within(cut.content.readuntil(b"\n\n"))
    async with client.stream(body.decode().rpartition("id: ")[2].strip()) as stream:
        assert [message["id"] for message in messages(await stream.rest())] == [1]


async def test_a_message_is_sent_on_one_connection_only(client):
    async with client.post(call(1, 60, progressToken="t")) as first:
        body = await within(first.content.readuntil(b"\n\n"))
        async with client.stream(body.decode().rpartition("id: ")[2].strip()) as second:
            seen = [await second.next()]
            with pytest.raises(ClientPayloadError):  # it is cut, since the stream has not ended
                await events_of(first)
            seen += await second.rest()
    *progress, answer = messages(seen)
    assert [each["params"]["progress"] for each in progress] == list(range(1, 61))
    assert answer["id"] == 1


async def test_a_call_is_cancelled_by_a_notification_and_not_by_a_disconnect(client):
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    async with client.post(call(1, 1000)) as response:
        await within(response.content.readuntil(b"\n\n"))
        async with client.post(cancel) as answer:
            assert answer.status == 202
        assert messages(await events_of(response)) == []


async def test_a_client_listens_until_the_session_ends(client):
    async with client.stream() as stream:
        assert stream.response.status == 200
        async with client.http.delete(client.url, headers=client.headers) as response:
            assert response.status == 204
        assert await stream.rest() == []
    async with client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}) as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Mcp-Session-Id": "unknown"}, 404),
        ({"Mcp-Session-Id": ""}, 400),
        ({"MCP-Protocol-Version": "1999-01-01"}, 400),
    ],
)
async def test_wrong_headers_are_refused(client, headers, status):
    async with client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, **headers) as response:
        assert response.status == status
    async with client.http.get(client.url, headers={**client.headers, **headers}) as response:
        assert response.status == status


@pytest.mark.parametrize("last", [">", "*_x-1", "0", "0" * 31 + "*_x-1"])
async def test_a_client_cannot_resume_what_is_not_a_stream_of_its_session(client, last):
    async with client.stream(last) as stream:
        assert stream.response.status == 400


async def test_the_stream_of_another_session_cannot_be_resumed(client):
    async with client.post(call(1, 1)) as response:
        first, *_ = await events_of(response)
    await client.initialize()
    async with client.stream(first.id) as stream, client.http.delete(client.url, headers=client.headers):
        assert await stream.rest() == []


async def test_wrong_messages_are_refused(client):
    wrong = [{"id": None}, {"id": [1]}, {"id": 1.5}, {"params": 5}, {"params": {"_meta": 5}}]
    wrong += [{"params": {"_meta": {"progressToken": token}}} for token in ([1], None, {})]
    for body in [], 5, *({"id": 1, "method": "ping", **each} for each in wrong):
        async with client.post(body) as response:
            assert response.status == 422
    async with client.post(call(7, 1)), client.post(call(7, 1)) as response:
        assert response.status == 400


async def test_an_unknown_tool_is_an_error_and_wrong_arguments_are_a_result_that_the_model_reads(
    client,
):
    async with client.post({**call(1, 1), "params": {"name": "nothing"}}) as response:
        assert (await response.json())["error"]["code"] == -32602
    for number, arguments in enumerate([None, [], {}, {"to": "x"}, {"to": 10**9}], 2):
        async with client.post({**call(number, 1), "params": {"name": "count", "arguments": arguments}}) as response:
            (answer,) = messages(await events_of(response))
            assert (answer["id"], answer["result"]["isError"]) == (number, True)


async def test_a_client_of_an_older_revision_gets_no_event_without_a_message(client):
    """Clients of 2025-06-18 parse the data of each event."""
    client.headers["MCP-Protocol-Version"] = "2025-06-18"
    async with client.post(call(1, 1)) as response:
        events = await events_of(response)
    assert [bool(event.data) for event in events] == [True]


async def test_a_session_id_is_in_no_topic_and_no_owner(session, run):
    secret = "from aiohttp_interceptors.brokers.sqlite import SqliteBroker\nhub = Hub(SqliteBroker('log.sqlite3'), "
    recipe = run("mcp_server", replace={"hub = Hub(": secret})
    client = Client(session, recipe)
    await client.initialize()
    async with client.post(call("secret-free", 1)) as response:
        assert len(messages(await events_of(response))) == 1
    async with client.http.delete(client.url, headers=client.headers) as response:
        assert response.status == 204
    log = b"".join(file.read_bytes() for file in recipe.folder.glob("log.sqlite3*") if file.is_file())
    assert b"secret-free" in log
    assert client.headers["Mcp-Session-Id"].encode() not in log


async def test_the_session_that_was_not_used_for_the_longest_time_makes_room(session, run):
    recipe = run("mcp_server", replace={"MAX_SESSIONS, MAX_COUNT = 10_000": "MAX_SESSIONS, MAX_COUNT = 2"})
    one, two, three = [Client(session, recipe) for _ in range(3)]
    await one.initialize()
    await two.initialize()
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    async with one.post(ping) as response:
        assert response.status == 200
    await three.initialize()
    for client, status in (one, 200), (three, 200), (two, 404):
        async with client.post(ping) as response:
            assert response.status == status


async def test_more_calls_than_the_process_takes_are_a_503(session, run):
    client = Client(session, run("mcp_server", replace={"max_runs=100": "max_runs=1"}))
    await client.initialize()
    async with client.post(call(1, 1000)), client.post(call(2, 1)) as response:
        assert response.status == 503


async def test_what_is_not_for_a_session_is_a_400(session, run):
    client = Client(session, run("mcp_server"))
    notification = {key: value for key, value in INITIALIZE.items() if key != "id"}
    async with client.post(notification) as response:
        assert (response.status, "Mcp-Session-Id" in response.headers) == (400, False)
    async with client.http.delete(client.url, headers=client.headers) as response:
        assert response.status == 400
