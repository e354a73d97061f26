"""``problem_details``: which errors are answered, with what, and that nothing else is sent."""

from __future__ import annotations

import json

import pytest
from aiohttp import ClientPayloadError, web

from aiohttp_interceptors import before, event_stream
from aiohttp_interceptors.ready import Problem, problem_details
from tests.ready.site import application, plain

JSON = "application/problem+json"


class StockError(LookupError):
    """A class of an application, with something that no client should see."""


def raising(error):
    async def handler(request: web.Request) -> web.StreamResponse:
        raise error

    return handler


async def answer(site, fetch, error, *arguments, **options):
    server = await site(problem_details(*arguments, **options), handler=raising(error))
    status, headers, text = await fetch(server)
    return status, headers, json.loads(text) if headers["Content-Type"] == JSON else text


@pytest.mark.parametrize(
    ("make", "members"),
    [
        (web.HTTPNotFound, {"status": 404, "title": "Not Found"}),
        (
            lambda: web.HTTPNotFound(text="no such user"),
            {"status": 404, "title": "Not Found", "detail": "no such user"},
        ),
        (lambda: web.HTTPConflict(reason="Stale"), {"status": 409, "title": "Stale"}),
        (web.HTTPServiceUnavailable, {"status": 503, "title": "Service Unavailable"}),
    ],
)
async def test_an_http_exception_is_described(site, fetch, make, members):
    server = await site(problem_details(), handler=raising(make()))
    status, headers, text = await fetch(server)
    assert (status, headers["Content-Type"]) == (members["status"], JSON)
    assert json.loads(text) == {"type": "about:blank", **members}


async def test_it_keeps_its_headers_and_cookies(site, fetch):
    error = web.HTTPMethodNotAllowed("GET", ["POST"], headers={"X-Own": "1"})
    error.set_cookie("a", "b")
    _, headers, _ = await fetch(await site(problem_details(), handler=raising(error)))
    assert (headers["Allow"], headers["X-Own"]) == ("POST", "1")
    assert headers["Set-Cookie"].startswith("a=b")


@pytest.mark.parametrize(
    "make",
    [
        lambda: web.HTTPFound("/"),
        lambda: web.HTTPOk(text="fine"),
        lambda: web.HTTPBadRequest(text="{}", content_type="application/json"),
    ],
)
async def test_other_responses_stay(site, fetch, make):
    error = make()
    status, headers, text = await fetch(await site(problem_details(), handler=raising(error)))
    assert (status, text) == (error.status, error.text)
    assert headers["Content-Type"] != JSON


async def test_a_response_without_a_route_is_described_in_a_middleware(serve, fetch):
    status, _, text = await fetch(await serve(application("middleware", [problem_details()])), path="/none")
    assert (status, json.loads(text)["title"]) == (404, "Not Found")


@pytest.mark.parametrize("kind", [LookupError, StockError, Exception])
async def test_an_exception_is_looked_up_by_its_class_and_its_bases(site, fetch, kind):
    status, headers, body = await answer(site, fetch, StockError("secret"), {kind: 409})
    assert (status, headers["Content-Type"]) == (409, JSON)
    assert body == {"type": "about:blank", "status": 409, "title": "Conflict"}


async def test_the_nearest_class_counts(site, fetch):
    table = {Exception: 500, StockError: Problem(status=409), LookupError: 404}
    assert (await answer(site, fetch, StockError("secret"), table))[0] == 409


async def test_a_problem_has_all_members_and_headers(site, fetch):
    problem = Problem(
        status=403,
        title="Not enough credit",
        type="https://example.com/credit",
        detail="30 of 50 é",
        instance="/account/1",
        extensions={"balance": 30},
        headers={"Retry-After": "5"},
    )
    status, headers, body = await answer(site, fetch, StockError(), {StockError: problem})
    assert (status, headers["Retry-After"]) == (403, "5")
    assert body == {
        "type": "https://example.com/credit",
        "status": 403,
        "title": "Not enough credit",
        "detail": "30 of 50 é",
        "instance": "/account/1",
        "balance": 30,
    }


async def test_a_function_is_asked_first(site, fetch):
    def describe(context, error) -> Problem | int | None:
        return {"a": Problem(status=410), "b": 411}.get(str(error))

    for text, status in (("a", 410), ("b", 411), ("c", 409)):
        assert (await answer(site, fetch, StockError(text), {StockError: 409}, describe=describe))[0] == status


async def test_an_unexpected_exception_is_raised_again(site, fetch, raised):
    error = StockError("secret")
    status, _, text = await answer(site, fetch, error, {ValueError: 400})
    assert status == 500
    assert "secret" not in text
    assert raised() == [error]


async def test_an_unexpected_exception_can_be_answered_and_is_logged(site, fetch, raised, logged):
    error = StockError("secret")
    status, _, body = await answer(site, fetch, error, unexpected=True)
    assert (status, body) == (500, {"type": "about:blank", "status": 500, "title": "Internal Server Error"})
    assert raised() == []
    assert [line["exc_info"] for line in logged if line["event"] == "unexpected_exception"] == [error]


async def test_a_wrong_answer_of_the_function_is_an_error(site, fetch, raised):
    status, _, _ = await answer(site, fetch, StockError(), describe=lambda context, error: "409")
    assert status == 500
    assert [str(error) for error in raised()] == ["what describe returns is a status or a Problem, not '409'"]


async def test_a_stream_that_has_not_opened_is_answered(site, fetch):
    @event_stream
    async def handler(request: web.Request):
        raise StockError
        yield

    status, _, text = await fetch(await site(problem_details({StockError: 409}), handler=handler))
    assert (status, json.loads(text)["status"]) == (409, 409)


async def test_an_open_stream_is_cut_and_its_exception_is_raised_again(site, session, raised):
    error = StockError("secret")

    @event_stream
    async def handler(request: web.Request):
        yield "one"
        raise error

    server = await site(problem_details({StockError: 409}, unexpected=True), handler=handler)
    async with session.get(server.url) as response:
        with pytest.raises(ClientPayloadError):
            await response.read()
    assert raised() == [error]


async def test_refusals_of_other_interceptors_are_described(site, fetch):
    @before
    def refuse(context) -> None:
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="Who are you?\n")

    status, headers, text = await fetch(await site(problem_details(), refuse, handler=plain))
    assert (status, headers["WWW-Authenticate"], json.loads(text)["detail"]) == (401, "Bearer", "Who are you?")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"status": "404"}, TypeError, "status is a number such as 404, not '404'"),
        ({"status": True}, TypeError, "not True"),
        ({"status": 302}, ValueError, "status is that of an error, 400 to 599, not 302"),
        ({"status": 404, "type": None}, TypeError, "type is a str, not None"),
        ({"status": 404, "title": 1}, TypeError, "title is a str, not 1"),
        ({"status": 404, "extensions": []}, TypeError, r"extensions is a mapping, not \[\]"),
        ({"status": 404, "extensions": {"status": 1}}, ValueError, "the extension 'status' has the name of a member"),
    ],
)
def test_a_wrong_problem_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Problem(**options)


def test_a_status_without_a_name_has_no_title():
    assert json.loads(Problem(status=499).encode()) == {"type": "about:blank", "status": 499}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table": [KeyError]}, TypeError, "table is a mapping of exception types"),
        ({"table": {"KeyError": 404}}, TypeError, "table has subclasses of Exception as keys, not 'KeyError'"),
        ({"table": {KeyboardInterrupt: 500}}, TypeError, "subclasses of Exception"),
        ({"table": {web.HTTPNotFound: 404}}, TypeError, "is a response already"),
        ({"table": {KeyError: "404"}}, TypeError, r"table\[KeyError\] is a status or a Problem, not '404'"),
        ({"table": {KeyError: 200}}, ValueError, "status is that of an error"),
        ({"describe": 1}, TypeError, "describe is a function, not 1"),
        ({"unexpected": 1}, TypeError, "unexpected is True or False, not 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        problem_details(**arguments)
