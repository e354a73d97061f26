"""``security_headers``: response headers that restrict what browsers do with a response."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

from aiohttp import web

from .._checks import check_count, check_synchronous
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import check_flag, check_function, check_printable

__all__ = ["FrameOptions", "ReferrerPolicy", "security_headers"]


FrameOptions = Literal["deny", "sameorigin"]
ReferrerPolicy = Literal[
    "no-referrer",
    "no-referrer-when-downgrade",
    "origin",
    "origin-when-cross-origin",
    "same-origin",
    "strict-origin",
    "strict-origin-when-cross-origin",
    "unsafe-url",
]

CSP = "Content-Security-Policy"
FRAME_OPTIONS = "X-Frame-Options"
STRICT_TRANSPORT_SECURITY = "Strict-Transport-Security"  # the hdrs of aiohttp 3.12 lacks it
_FRAME_ANCESTORS = {"deny": "frame-ancestors 'none'", "sameorigin": "frame-ancestors 'self'"}
_HAS_FRAME_ANCESTORS = re.compile(r"(^|[;,])\s*frame-ancestors(\s|;|,|$)", re.IGNORECASE)


def _is_secure(context: RequestContext) -> bool:
    return context.request.secure


def security_headers(
    *,
    frames: FrameOptions | None = "deny",
    referrer_policy: ReferrerPolicy | None = "strict-origin-when-cross-origin",
    csp: str | None = None,
    hsts: int | None = None,
    hsts_subdomains: bool = False,
    is_secure: Callable[[RequestContext], bool] = _is_secure,
) -> Interceptor[RequestContext]:
    """Make an interceptor that sends security headers with each response, streams included.

    They are ``X-Content-Type-Options: nosniff`` and those of the arguments. A header that the handler or another
    interceptor has set stays as it is. If its ``Content-Security-Policy`` has ``frame-ancestors``, no
    ``X-Frame-Options`` is sent.

    Sources: the Fetch standard, 3.6 (nosniff); Content Security Policy Level 3; Referrer Policy; RFC 7034; RFC 6797.

    Args:
        frames: Who may show the response in a frame: ``"deny"`` for no page, ``"sameorigin"`` for pages of the same
            origin, ``None`` for all. It is sent as ``X-Frame-Options``, and as ``frame-ancestors`` of the content
            security policy unless ``csp`` has one.
        referrer_policy: What requests from the page say of its URL; ``None`` for the browser's default.
        csp: The content security policy, such as ``"default-src 'self'"``.
        hsts: Seconds for which browsers use HTTPS only; ``None`` for no such header. Only responses over HTTPS have it.
        hsts_subdomains: Whether ``hsts`` includes all subdomains.
        is_secure: A plain function of the context that returns whether the client uses HTTPS. The default is
            ``request.secure``, which is false behind a proxy that ends TLS.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``frames`` or ``referrer_policy`` has no such value, ``csp`` cannot be sent, or ``hsts`` is
            negative.
    """
    _check_choice("frames", frames, get_args(FrameOptions))
    _check_choice("referrer_policy", referrer_policy, get_args(ReferrerPolicy))
    if csp is not None:
        check_printable("csp", csp)
    if hsts is not None:
        check_count("hsts", hsts, 0)
    check_flag("hsts_subdomains", hsts_subdomains)
    check_function("is_secure", is_secure)
    policy = _policy(csp, frames)
    headers = {"X-Content-Type-Options": "nosniff"}
    if referrer_policy is not None:
        headers["Referrer-Policy"] = referrer_policy
    if policy is not None:
        headers[CSP] = policy
    transport = f"max-age={hsts}" + ("; includeSubDomains" if hsts_subdomains else "")

    def enter(context: RequestContext) -> None:
        def committed(response: web.StreamResponse) -> None:
            sent = response.headers
            for name, value in headers.items():
                sent.setdefault(name, value)
            if frames is not None and (sent[CSP] == policy or not _HAS_FRAME_ANCESTORS.search(sent[CSP])):
                sent.setdefault(FRAME_OPTIONS, frames.upper())
            if hsts is not None and check_synchronous(is_secure(context), f"is_secure, {is_secure!r},"):
                sent.setdefault(STRICT_TRANSPORT_SECURITY, transport)

        context.on_commit(committed)

    return Interceptor("security_headers", enter)


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, or None, not {value!r}")


def _policy(csp: str | None, frames: FrameOptions | None) -> str | None:
    """Return the content security policy, with ``frame-ancestors`` unless it has that already."""
    if frames is None or _HAS_FRAME_ANCESTORS.search(csp or ""):
        return csp
    return "; ".join(part for part in ((csp or "").rstrip("; "), _FRAME_ANCESTORS[frames]) if part)
