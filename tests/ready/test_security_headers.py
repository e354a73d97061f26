"""``security_headers``: what is sent by default, and that a handler's own headers stay."""

from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import RequestContext, before
from aiohttp_interceptors.ready import security_headers
from tests.ready.site import KINDS, application

NAMES = ("X-Content-Type-Options", "X-Frame-Options", "Content-Security-Policy", "Referrer-Policy")
ALL = (*NAMES, "Strict-Transport-Security")
DEFAULTS = dict(
    zip(NAMES, ["nosniff", "DENY", "frame-ancestors 'none'", "strict-origin-when-cross-origin"], strict=True)
)


def found(headers) -> dict[str, str]:
    """Return the security headers of a response, each of which it has once."""
    assert all(len(headers.getall(name, [])) <= 1 for name in ALL)
    return {name: headers[name] for name in ALL if name in headers}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_response_of_each_kind_has_them(site, fetch, kind):
    _, headers, _ = await fetch(await site(security_headers(), handler=KINDS[kind]()))
    assert found(headers) == DEFAULTS


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"frames": None}, {"X-Frame-Options": None, "Content-Security-Policy": None}),
        (
            {"frames": "sameorigin"},
            {"X-Frame-Options": "SAMEORIGIN", "Content-Security-Policy": "frame-ancestors 'self'"},
        ),
        ({"referrer_policy": None}, {"Referrer-Policy": None}),
        ({"referrer_policy": "no-referrer"}, {"Referrer-Policy": "no-referrer"}),
        (
            {"csp": "default-src 'self';"},
            {"Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'"},
        ),
        ({"csp": "frame-ancestors https://a.b"}, {"Content-Security-Policy": "frame-ancestors https://a.b"}),
        ({"hsts": 5}, {}),
        ({"hsts": 5, "is_secure": lambda context: True}, {"Strict-Transport-Security": "max-age=5"}),
        (
            {"hsts": 5, "hsts_subdomains": True, "is_secure": lambda context: True},
            {"Strict-Transport-Security": "max-age=5; includeSubDomains"},
        ),
    ],
)
async def test_the_arguments_choose_them(site, fetch, options, changes):
    _, headers, _ = await fetch(await site(security_headers(**options)))
    assert found(headers) == {name: value for name, value in {**DEFAULTS, **changes}.items() if value is not None}


OWN = {
    "X-Content-Type-Options": "own",
    "X-Frame-Options": "SAMEORIGIN",
    "Content-Security-Policy": "default-src a.b",
    "Referrer-Policy": "origin",
    "Strict-Transport-Security": "max-age=1",
}


async def own(request: web.Request) -> web.StreamResponse:
    return web.Response(headers=OWN)


async def own_prepared(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=OWN)
    await response.prepare(request)
    return response


async def own_raised(request: web.Request) -> web.StreamResponse:
    raise web.HTTPForbidden(headers=OWN)


@pytest.mark.parametrize("handler", [own, own_prepared, own_raised])
async def test_what_a_handler_has_set_stays(site, fetch, handler):
    secure = security_headers(hsts=5, is_secure=lambda context: True)
    _, headers, _ = await fetch(await site(secure, handler=handler))
    assert found(headers) == OWN


@pytest.mark.parametrize("kind", KINDS)
async def test_what_an_interceptor_has_staged_stays(serve, fetch, kind):
    @before
    def stage(context: RequestContext) -> None:
        context.response_headers.update(OWN)

    for interceptors in ([stage, security_headers()], [security_headers(), stage]):
        _, headers, _ = await fetch(await serve(application("route", interceptors, KINDS[kind]())))
        assert found(headers) == OWN


async def test_frame_ancestors_of_a_handler_replace_frame_options(site, fetch):
    async def handler(request: web.Request) -> web.Response:
        return web.Response(headers={"Content-Security-Policy": "default-src 'self'; Frame-Ancestors https://a.b"})

    _, headers, _ = await fetch(await site(security_headers(), handler=handler))
    assert "X-Frame-Options" not in headers
    assert headers["Content-Security-Policy"] == "default-src 'self'; Frame-Ancestors https://a.b"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frames": "DENY"}, ValueError, "frames is one of 'deny', 'sameorigin', or None, not 'DENY'"),
        ({"referrer_policy": "none"}, ValueError, "referrer_policy is one of 'no-referrer', .*, not 'none'"),
        ({"csp": 1}, TypeError, "csp is a str, not 1"),
        ({"csp": "a\nb"}, ValueError, "csp is printable ASCII, not"),
        ({"csp": " "}, ValueError, "csp is printable ASCII, not"),
        ({"hsts": 1.5}, TypeError, "hsts is a whole number, not 1.5"),
        ({"hsts": -1}, ValueError, "hsts is 0 or more, not -1"),
        ({"hsts_subdomains": "yes"}, TypeError, "hsts_subdomains is True or False, not 'yes'"),
        ({"is_secure": True}, TypeError, "is_secure is a function, not True"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        security_headers(**options)
