"""``request_id``: which IDs are accepted, and where they appear."""

from __future__ import annotations

import re

import pytest
from aiohttp import web

from aiohttp_interceptors import RequestContext, after, event_stream
from aiohttp_interceptors._logging import log
from aiohttp_interceptors.ready import REQUEST_ID, request_id
from tests.ready.site import KINDS
from tests.waiting import until


@pytest.mark.parametrize("kind", KINDS)
async def test_the_id_of_a_client_is_that_of_the_response(site, fetch, kind):
    server = await site(request_id(), handler=KINDS[kind]())
    _, headers, _ = await fetch(server, headers={"X-Request-ID": "abc-1.2~x"})
    assert headers.getall("X-Request-ID") == ["abc-1.2~x"]


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 129, "<script>", "é", "a\tb"])
async def test_without_a_valid_one_each_request_has_a_new_id(site, fetch, sent):
    server = await site(request_id())
    headers = {} if sent is None else {"X-Request-ID": sent}
    found = [(await fetch(server, headers=headers))[1]["X-Request-ID"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in found)
    assert found[0] != found[1]


async def test_ids_of_clients_can_be_ignored_and_made_by_a_function(site, fetch):
    server = await site(request_id(header="X-Trace", accept=None, make=lambda: "made"))
    _, headers, _ = await fetch(server, headers={"X-Trace": "sent"})
    assert headers["X-Trace"] == "made"


async def test_a_handler_reads_it_from_its_context(site, fetch):
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=RequestContext.of(request)[REQUEST_ID])

    server = await site(request_id(), handler=handler)
    assert (await fetch(server, headers={"X-Request-ID": "7"}))[2] == "7"


async def test_it_is_in_the_lines_that_handlers_and_producers_log_and_in_no_other_line(site, fetch, logged):
    @event_stream
    async def handler(request: web.Request):
        log.info("first")
        yield "one"
        log.info("second")

    @after
    def further_out(context: RequestContext) -> None:
        log.info("further out")

    server = await site(further_out, request_id(), handler=handler)
    await fetch(server, headers={"X-Request-ID": "7"})
    await until(lambda: "further out" in [line["event"] for line in logged])
    found = [(line["event"], line.get("request_id")) for line in logged if line["log_level"] == "info"]
    assert found == [("first", "7"), ("second", "7"), ("further out", None)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"header": "X Y"}, ValueError, "header is a token of letters, .*, not 'X Y'"),
        ({"header": 1}, TypeError, "header is a str, not 1"),
        ({"accept": 1}, TypeError, "accept is a regular expression, .*, not 1"),
        ({"accept": "("}, ValueError, r"accept is a regular expression, not '\('"),
        ({"max_length": 0}, ValueError, "max_length is 1 or more, not 0"),
        ({"make": "id"}, TypeError, "make is a function, not 'id'"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        request_id(**options)
