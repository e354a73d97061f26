"""The ES module ``event-stream.js``, which reads event streams in a page, and the handler that serves it.

The module needs no build step: the file is what browsers load, and what a bundler takes from this folder. The
declarations for TypeScript are beside it, in ``event-stream.d.ts``.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import cache
from importlib import resources
from typing import NamedTuple

from aiohttp import ETag, hdrs, web

__all__ = ["add_client", "client_url"]


_ACCEPTS_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)


class _Module(NamedTuple):
    """The content of the module, and what identifies it."""

    source: bytes
    compressed: bytes
    version: str


@cache
def _load() -> _Module:
    """Read the module when an application serves it."""
    source = resources.files(__package__).joinpath("event-stream.js").read_bytes()
    return _Module(source, gzip.compress(source, mtime=0), hashlib.sha256(source).hexdigest()[:16])


def client_url(resource: web.AbstractResource) -> str:
    """Return the URL of the module with the version of its content, which browsers may cache for ever."""
    return str(resource.url_for().with_query(v=_load().version))


def add_client(app: web.Application, path: str | None) -> web.AbstractResource | None:
    """Add the route that serves the module, and return its resource; ``None`` if there is to be no such route.

    Args:
        app: The application, which has not started.
        path: The path of the route, within the application.

    Raises:
        TypeError: The path is not a ``str``.
        ValueError: The path does not start with a slash, does not end with ``.js``, or has parameters.
    """
    if path is None:
        return None
    example = "client is the path of a route, such as '/event-stream.js'"
    if not isinstance(path, str):
        raise TypeError(f"{example}, not {path!r}")
    if not path.startswith("/") or not path.endswith(".js") or "{" in path or "?" in path:
        raise ValueError(f"{example}, not {path!r}")
    _load()
    resource = app.router.add_resource(path)
    resource.add_route(hdrs.METH_GET, _serve)
    resource.add_route(hdrs.METH_HEAD, _serve)
    return resource


async def _serve(request: web.Request) -> web.StreamResponse:
    """Respond with the module, or with 304 to a browser that has it."""
    compressed = _ACCEPTS_GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, "")) is not None
    module = _load()
    tag = f"{module.version}-gzip" if compressed else module.version
    is_permanent = request.query.get("v") == module.version
    headers = {
        hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable" if is_permanent else "no-cache",
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
        # The code is public, and a page of another origin may import it.
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "X-Content-Type-Options": "nosniff",
    }
    if any(each.value in ("*", tag) for each in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        if compressed:
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        body = module.compressed if compressed else module.source
        response = web.Response(body=body, headers=headers, content_type="text/javascript", charset="utf-8")
    response.etag = ETag(tag)
    return response
