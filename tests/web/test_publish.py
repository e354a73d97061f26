"""A handler that publishes what it is sent."""

from __future__ import annotations

import io

import pytest
from aiohttp import web

from aiohttp_interceptors import (
    BrokerDown,
    BrokerRefused,
    Hub,
    OutcomeUnknown,
    as_handler,
    before,
    publish_handler,
    setup,
    topic_stream,
)
from aiohttp_interceptors.brokers.memory import MemoryBroker, MemoryLog
from aiohttp_interceptors.testing import open_stream


def application(hub, *links):
    app = web.Application()
    app.router.add_post("/publish", as_handler(*links, publish_handler(hub)))
    app.router.add_get("/news", topic_stream(hub, ">"))
    setup(app, hub)
    return app


async def post(session, server, **options):
    async with session.post(f"{server.url}/publish", **options) as response:
        return response.status, await response.text()


async def test_an_event_goes_to_the_streams_of_its_topic(serve, session):
    hub = Hub()
    server = await serve(application(hub))
    async with open_stream(session, f"{server.url}/news") as stream:
        status, text = await post(
            session, server, json={"topic": "news", "data": "two\nlines", "name": "n", "key": "k"}
        )
        event = await stream.next()
        assert (event.data, event.name) == ("two\nlines", "n")
        assert (status, text) == (201, f'{{"id": "{event.id}"}}')
        await post(session, server, json={"topic": "news", "data": {"a": [1]}})
        assert (await stream.next()).data == '{"a":[1]}'
        status, text = await post(session, server, json={"topic": "news", "data": None, "ephemeral": True})
        assert (status, text) == (201, '{"id": null}')
        event = await stream.next()
        assert (event.data, event.id) == ("null", None)
    (record,) = (record for record in hub.history.read(0, [">"]).records if record.key)
    assert record.key == "k"


async def test_a_final_event_finishes_the_topic_and_what_follows_is_a_conflict(serve, session):
    hub = Hub()
    server = await serve(application(hub))
    assert (await post(session, server, json={"topic": "job", "data": "done", "final": True}))[0] == 201
    assert hub.history.is_finished("job")
    assert (await post(session, server, json={"topic": "job", "data": "late"}))[0] == 409
    assert (await post(session, server, json={"topic": "job", "data": "again", "final": True}))[0] == 409
    assert (await post(session, server, json={"topic": "other", "data": "x", "final": False}))[0] == 201


async def test_a_tombstone_removes_the_value_of_its_key(serve, session):
    hub = Hub(latest=10)
    server = await serve(application(hub))
    await post(session, server, json={"topic": "a", "data": "1", "key": "k"})
    assert hub.statistics().latest == 1
    assert (await post(session, server, json={"topic": "a", "data": "", "key": "k", "tombstone": True}))[0] == 201
    assert hub.statistics().latest == 0
    assert (await post(session, server, json={"topic": "a", "data": "", "tombstone": True}))[0] == 400


@pytest.mark.parametrize("flag", ["ephemeral", "tombstone"])
async def test_a_final_event_has_no_other_flag(serve, session, flag):
    server = await serve(application(Hub()))
    body = {"topic": "a", "data": "x", "key": "k", "final": True, flag: True}
    assert await post(session, server, json=body) == (400, f"A final event is not {flag}.\n")


async def test_a_retry_with_its_key_publishes_once(serve, session):
    hub = Hub()
    server = await serve(application(hub))
    body = {"topic": "a", "data": "x", "idempotency_key": "order 7"}
    assert await post(session, server, json=body) == await post(session, server, json=body)
    assert hub.statistics().records == 1


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ({"data": "{"}, 400, "not JSON"),
        ({"data": b"\xff"}, 400, "not JSON"),
        ({"data": b"[" * 100_000}, 400, "not JSON"),
        ({"data": b'{"topic": "a", "data": ' + b"[" * 900 + b"]" * 900 + b"}"}, (400, 413), ""),
        ({"data": b'{"topic": "a", "data": 1' + b"1" * 5000 + b"}"}, 400, "not JSON"),
        ({"data": b'{"topic": "a", "data": "\\ud800"}'}, 400, "UTF-8"),
        ({"data": b'{"topic": "\\ud800", "data": "x"}'}, 400, "topic"),
        ({"data": b'{"topic": "a", "data": 1e999}'}, 400, ""),
        ({"data": b"{", "headers": {"Content-Type": "application/json; charset=hex"}}, 400, "not JSON"),
        ({"data": b"{", "headers": {"Content-Type": "application/json; charset=nonsense"}}, 400, "not JSON"),
        ({"data": io.BytesIO(b" " * 2**21)}, 413, ""),
        ({"json": []}, 400, '"topic" and "data"'),
        ({"json": {"data": "x"}}, 400, '"topic" and "data"'),
        ({"json": {"topic": "a"}}, 400, '"topic" and "data"'),
        ({"json": {"topic": 5, "data": "x"}}, 400, "topic is a string"),
        ({"json": {"topic": None, "data": "x"}}, 400, "topic is a string"),
        ({"json": {"topic": "a.*", "data": "x"}}, 400, "wildcard"),
        ({"json": {"topic": "a", "data": "x", "name": "two\nlines"}}, 400, "name"),
        ({"json": {"topic": "a", "data": "x", "id": "5"}}, 400, "'id' is not known"),
        ({"json": {"topic": "a", "data": "x", "ephemeral": 1}}, 400, "ephemeral is true or false"),
        ({"json": {"topic": "a", "data": "x" * 2000}}, 413, "max_event_size"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_wrong_body_is_answered_with_what_is_wrong(serve, session, options, status, text):
    hub = Hub(max_event_size=1000)
    answered, said = await post(session, await serve(application(hub)), **options)
    assert answered in (status if isinstance(status, tuple) else (status,)), said
    assert text in said
    assert hub.statistics().published == (answered == 201)


@pytest.mark.parametrize("charset", ["", "; charset=latin-1", "; charset=nonsense"])
async def test_the_body_is_utf_8_whatever_its_content_type_says(serve, session, charset):
    """Source: RFC 8259, 8.1."""
    hub = Hub()
    headers = {"Content-Type": f"application/json{charset}"}
    body = '{"topic": "a", "data": "é"}'.encode()
    assert (await post(session, await serve(application(hub)), data=body, headers=headers))[0] == 201
    (record,) = hub.history.read(0, [">"]).records
    assert record.event.data == "é"


async def test_a_body_that_does_not_arrive_is_a_408(serve):
    app = web.Application()
    app.router.add_post("/publish", publish_handler(Hub(), read_timeout=0.01))
    server = await serve(app, lingering_time=0.1)  # seconds that aiohttp waits for the rest of the body
    answer = await server.exchange("POST /publish HTTP/1.1\nHost: x\nConnection: close\nContent-Length: 5\n\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(("timeout", "error"), [("1", TypeError), (0, ValueError), (-1, ValueError)])
def test_a_wrong_timeout_is_refused(timeout, error):
    with pytest.raises(error, match="read_timeout"):
        publish_handler(Hub(), read_timeout=timeout)


@pytest.mark.parametrize(
    ("error", "status"), [(BrokerDown("x"), 503), (OutcomeUnknown("x"), 504), (BrokerRefused("x"), 422)]
)
async def test_what_the_broker_says_is_a_status(serve, session, error, status):
    class Broken(MemoryBroker):
        async def publish(self, *args, **options):
            raise error

    answered, _ = await post(
        session, await serve(application(Hub(Broken(MemoryLog())))), json={"topic": "a", "data": "x"}
    )
    assert answered == status


async def test_an_interceptor_in_front_decides_who_may(serve, session):
    @before
    def authorize(context):
        if "Authorization" not in context.request.headers:
            raise web.HTTPUnauthorized

    hub = Hub()
    server = await serve(application(hub, authorize))
    assert (await post(session, server, json={"topic": "a", "data": "x"}))[0] == 401
    headers = {"Authorization": "x"}
    assert (await post(session, server, json={"topic": "a", "data": "x"}, headers=headers))[0] == 201


def test_it_needs_a_hub():
    with pytest.raises(TypeError, match="hub is a Hub, not None"):
        publish_handler(None)
