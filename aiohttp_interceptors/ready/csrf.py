"""``csrf``: refuses requests that pages of other origins make a browser send, with its cookies, to change something."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from .._checks import check_synchronous
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import check_function, check_origins

__all__ = ["csrf"]


SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SEC_FETCH_SITE = "Sec-Fetch-Site"


def csrf(
    *, origins: Iterable[str] = (), exempt: Callable[[RequestContext], bool] | None = None
) -> Interceptor[RequestContext]:
    """Make an interceptor that answers 403 to a request of another origin that could change something.

    It needs no token, no cookie and no session. In this order:

    * GET, HEAD and OPTIONS pass. A handler must not change anything for them.
    * A request whose ``Origin`` is in ``origins`` passes.
    * With ``Sec-Fetch-Site``, which all browsers send over HTTPS and to localhost since 2023, ``same-origin`` and
      ``none`` (typed by the user) pass. ``same-site`` and ``cross-site`` are refused.
    * Otherwise with ``Origin``, its host and port must be those of ``Host``.
    * A request with neither is not of a browser, and passes.

    Behind a proxy that changes ``Host``, list the site's own origin.

    Sources: Fetch Metadata Request Headers; the Fetch standard, 3.1 (Origin); RFC 9110, 9.2.1 (safe methods).

    Args:
        origins: Other origins whose pages may send such requests, such as ``"https://login.example.com"``.
        exempt: A plain function of the context that returns whether a request passes unchecked, for instance a
            webhook that is authenticated otherwise.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An origin is not written as browsers send it.
    """
    trusted = check_origins(origins)
    if exempt is not None:
        check_function("exempt", exempt)

    def enter(context: RequestContext) -> None:
        request = context.request
        if request.method in SAFE_METHODS or _is_own(request, trusted):
            return
        if exempt is None or not check_synchronous(exempt(context), f"exempt of csrf, {exempt!r},"):
            raise web.HTTPForbidden(text="This request comes from a page of another origin.\n")

    return Interceptor("csrf", enter)


def _is_own(request: web.Request, trusted: frozenset[str]) -> bool:
    """Return whether a request does not come from a page of another origin."""
    origins, sites = request.headers.getall(hdrs.ORIGIN, []), request.headers.getall(SEC_FETCH_SITE, [])
    if origins and trusted.issuperset(origins):
        return True
    if sites:
        return all(site in ("same-origin", "none") for site in sites)
    return all(_host_of(origin) == request.host.lower() for origin in origins)


def _host_of(origin: str) -> str | None:
    """Return host and port of an origin. The scheme is not compared, because a proxy may have ended TLS."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:  # no browser sends it
        return None
