"""``cors``: the headers of the CORS protocol, for responses of each kind and for preflight requests."""

from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import interceptor_middleware, setup, uncaught_exception
from aiohttp_interceptors.ready import cors
from tests.ready.site import KINDS, STREAMS, application, plain

ORIGIN = "https://example.com"
ALLOW = "Access-Control-Allow-Origin"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "PUT",
    "Access-Control-Request-Headers": "last-event-id",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_response_of_each_kind_can_be_read_by_an_origin_that_is_listed(site, fetch, kind):
    server = await site(cors([ORIGIN], expose=["X-Total", "X-Page"]), handler=KINDS[kind]())
    _, headers, _ = await fetch(server, headers={"Origin": ORIGIN})
    assert headers.getall(ALLOW) == [ORIGIN]
    assert headers.getall("Access-Control-Expose-Headers") == ["X-Total, X-Page"]
    assert "Origin" in headers.getall("Vary")
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize("origin", [None, "https://example.com:8443", "http://example.com", "https://evil.com", "null"])
async def test_another_origin_gets_the_response_without_the_headers(site, fetch, origin):
    server = await site(cors([ORIGIN], expose=["X-Total"], credentials=True))
    status, headers, text = await fetch(server, headers={} if origin is None else {"Origin": origin})
    assert (status, text) == (200, "plain")
    assert not [name for name in headers if name.startswith("Access-Control")]
    assert headers["Vary"] == "Origin"


async def test_all_origins_need_no_vary(site, fetch):
    _, headers, _ = await fetch(await site(cors("*")), headers={"Origin": ORIGIN})
    assert headers[ALLOW] == "*"
    assert "Vary" not in headers


async def test_credentials_are_allowed_with_the_origin(site, fetch):
    _, headers, _ = await fetch(await site(cors([ORIGIN], credentials=True)), headers={"Origin": ORIGIN})
    assert (headers[ALLOW], headers["Access-Control-Allow-Credentials"]) == (ORIGIN, "true")


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@pytest.mark.parametrize("origin", ["é", "https://\udcff", "a\tb"])
async def test_a_function_is_not_asked_about_what_no_browser_sends(serve, method, origin, place):
    """It could not be sent back."""
    asked = []
    server = await serve(application(place, [cors(lambda context, origin: asked.append(origin) or True)]))
    raw = await server.connect("")
    head = f"{method} / HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: GET\r\n\r\n"
    raw.writer.write(head.encode(errors="surrogateescape"))
    answer = await raw.until(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 " if method == "OPTIONS" else b"HTTP/1.1 200 ")
    assert b"Access-Control" not in answer
    assert asked == []
    await raw.close()


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_decides_and_is_asked_about_null_too(site, fetch, is_async):
    asked = []

    def decide(context, origin: str) -> bool:
        asked.append((context.request.path, origin))
        return origin.endswith(".com")

    async def decide_later(context, origin: str) -> bool:
        return decide(context, origin)

    server = await site(cors(decide_later if is_async else decide))
    assert (await fetch(server, headers={"Origin": ORIGIN}))[1][ALLOW] == ORIGIN
    assert ALLOW not in (await fetch(server, headers={"Origin": "null"}))[1]
    assert asked == [("/", ORIGIN), ("/", "null")]


async def test_a_preflight_request_is_answered(site, fetch):
    server = await site(cors([ORIGIN], credentials=True, max_age=5))
    status, headers, text = await fetch(server, "OPTIONS", headers=PREFLIGHT)
    assert (status, text) == (204, "")
    assert {name: value for name, value in headers.items() if name.startswith("Access-Control")} == {
        ALLOW: ORIGIN,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "DELETE, GET, HEAD, PATCH, POST, PUT",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
        "Access-Control-Max-Age": "5",
    }


async def test_a_preflight_request_of_another_origin_is_refused(site, fetch):
    server = await site(cors([ORIGIN]))
    status, headers, _ = await fetch(server, "OPTIONS", headers={**PREFLIGHT, "Origin": "https://evil.com"})
    assert (status, ALLOW in headers) == (403, False)


async def test_in_a_middleware_a_preflight_request_needs_no_route(serve, fetch):
    app = web.Application(middlewares=[interceptor_middleware(cors([ORIGIN]))])
    app.router.add_put("/", plain)
    server = await serve(app)
    assert (await fetch(server, "OPTIONS", headers=PREFLIGHT))[0] == 204
    status, headers, _ = await fetch(server, "PUT", headers={"Origin": ORIGIN})
    assert (status, headers[ALLOW]) == (200, ORIGIN)


async def test_other_options_requests_reach_the_handler(site, fetch):
    server = await site(cors([ORIGIN]))
    assert (await fetch(server, "OPTIONS", headers={"Origin": ORIGIN}))[2] == "plain"
    assert (await fetch(server, "OPTIONS", headers={"Access-Control-Request-Method": "PUT"}))[2] == "plain"


async def test_methods_and_headers_are_those_given(site, fetch):
    server = await site(cors("*", methods=["QUERY"], headers=["X-A", "Last-Event-ID"]))
    _, headers, _ = await fetch(server, "OPTIONS", headers=PREFLIGHT)
    assert headers["Access-Control-Allow-Methods"] == "QUERY"
    assert headers["Access-Control-Allow-Headers"] == "X-A, Last-Event-ID"


async def test_an_error_that_is_answered_in_the_chain_can_be_read(serve, fetch):
    async def handler(request: web.Request) -> web.Response:
        raise LookupError

    server = await serve(application("middleware", [uncaught_exception(), cors([ORIGIN])], handler))
    status, headers, _ = await fetch(server, headers={"Origin": ORIGIN})
    assert (status, headers[ALLOW]) == (500, ORIGIN)
    status, headers, _ = await fetch(server, path="/none", headers={"Origin": ORIGIN})
    assert (status, headers[ALLOW]) == (404, ORIGIN)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"origins": "*", "credentials": True}, ValueError, "credentials are never for all origins"),
        ({"origins": ORIGIN}, TypeError, "origins is a list of origins .*, not 'https://example.com'"),
        ({"origins": []}, ValueError, "origins has no origin"),
        ({"origins": [1]}, TypeError, "origins has origins such as .*, not 1"),
        ({"origins": [f"{ORIGIN}/"]}, ValueError, "a scheme and a host in lower case"),
        ({"origins": [f"{ORIGIN}:443"]}, ValueError, "a port unless it is the default"),
        ({"origins": ["https://Example.com"]}, ValueError, "not 'https://Example.com'"),
        ({"origins": ["example.com"]}, ValueError, "not 'example.com'"),
        ({"origins": ["https://a@example.com"]}, ValueError, "not 'https://a@example.com'"),
        ({"origins": ["https://example.com:x"]}, ValueError, "not 'https://example.com:x'"),
        ({"origins": ["null"]}, ValueError, "not 'null'"),
        ({"origins": ["*"]}, ValueError, r"not '\*'"),
        ({"origins": "*", "methods": "GET"}, TypeError, "methods is a list of str, not 'GET'"),
        ({"origins": "*", "headers": ["a b"]}, ValueError, "each of headers is a token"),
        ({"origins": "*", "expose": [1]}, TypeError, "each of expose is a str, not 1"),
        ({"origins": "*", "credentials": 1}, TypeError, "credentials is True or False, not 1"),
        ({"origins": "*", "max_age": -1}, ValueError, "max_age is 0 or more, not -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cors(**arguments)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(("limits", "status"), [({"max_streams": 0}, 503), ({"max_streams_per_key": 0}, 429)])
async def test_the_refusal_of_a_stream_can_be_read_and_names_the_origin_in_vary(serve, fetch, kind, limits, status):
    app = web.Application(middlewares=[interceptor_middleware(cors([ORIGIN], credentials=True))])
    setup(app, **limits, key=None if "max_streams" in limits else lambda request: request.remote)
    app.router.add_get("/", KINDS[kind]())
    server = await serve(app)
    for origin, allowed in [(ORIGIN, ORIGIN), ("https://evil.com", None)]:
        answer, headers, _ = await fetch(server, headers={"Origin": origin})
        assert (answer, headers.get(ALLOW)) == (status, allowed)
        assert headers.getall("Vary") == ["Origin"]
        assert headers.get("Access-Control-Allow-Credentials") == (allowed and "true")
