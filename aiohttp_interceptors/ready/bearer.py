"""``bearer``: authentication by a Bearer token, and ``jwt_verifier`` for tokens that are JWTs.

Sources: RFC 6750 (Bearer tokens), RFC 7519 (JWT), RFC 8725 (best current practices for JWTs).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

from aiohttp import hdrs, web

from .._checks import check_seconds
from ..chain import ContextKey
from ..interceptor import Interceptor
from ..web.context import RequestContext
from ._fields import check_flag, check_function, check_key, check_printable, quoted

__all__ = ["CLAIMS", "InvalidToken", "Verify", "bearer", "jwt_verifier"]


Claims: TypeAlias = Mapping[str, Any]
Verify: TypeAlias = Callable[[str], Claims | Awaitable[Claims]]
"""A plain or async function that returns the claims of a token, or raises ``InvalidToken``."""

CLAIMS = ContextKey[Claims]("claims")
"""What the token of the request says, such as its subject under ``"sub"``."""

_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, 3.3
_SYMMETRIC = "HS"


class InvalidToken(Exception):
    """A token is expired, revoked, malformed or otherwise not valid. A ``verify`` function raises it.

    Args:
        description: What is wrong, for the developer of the client.
    """

    def __init__(self, description: str = "the token is not valid") -> None:
        super().__init__(description)
        self.description: str = description


def bearer(
    verify: Verify,
    *,
    scopes: Iterable[str] = (),
    realm: str | None = None,
    optional: bool = False,
    key: ContextKey[Claims] = CLAIMS,
) -> Interceptor[RequestContext]:
    """Make an interceptor that requires a valid Bearer token, and puts what it says into ``context[CLAIMS]``.

    A request without a token is answered with 401, one with a malformed header with 400 ``invalid_request``, one with
    an invalid token with 401 ``invalid_token``, and one without a scope that is required with 403
    ``insufficient_scope``, each with ``WWW-Authenticate``. Source: RFC 6750, 3.

    The token is read from the ``Authorization`` header only. A browser's ``EventSource`` cannot send it: use ``fetch``
    there, or ``Tickets``.

    Args:
        verify: A plain or async function of the token that returns its claims, or raises ``InvalidToken``. What else it
            raises is an error of the server.
        scopes: The scopes that a token must have, in its claim ``scope`` (words) or ``scp`` (a list).
        realm: The realm in ``WWW-Authenticate``.
        optional: Whether requests without a token pass, without claims.
        key: The key of the claims.

    Returns:
        The interceptor.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A scope or the realm cannot be sent.
    """
    check_function("verify", verify)
    required = _checked_scopes(scopes)
    if realm is not None:
        check_printable("realm", realm)
    check_flag("optional", optional)
    check_key(key)
    challenge = {} if realm is None else {"realm": realm}

    async def enter(context: RequestContext) -> None:
        token = _token_of(context.request, challenge)
        if token is None:
            if optional:
                return
            raise web.HTTPUnauthorized(headers=_challenge(challenge), text="A Bearer token is required.\n")
        claims = await _verified(verify, token, challenge)
        if not _scopes_of(claims).issuperset(required):
            headers = _challenge(challenge, error="insufficient_scope", scope=" ".join(required))
            raise web.HTTPForbidden(headers=headers, text=f"The token needs the scopes {', '.join(required)}.\n")
        context[key] = claims

    return Interceptor("bearer", enter)


def _checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    if isinstance(scopes, str) or not isinstance(scopes, Iterable):
        raise TypeError(f"scopes is a list of str, not {scopes!r}")
    checked = tuple(scopes)
    for scope in checked:
        if not isinstance(scope, str):
            raise TypeError(f"scopes is a list of str, not of {scope!r}")
        if not _SCOPE.fullmatch(scope):
            raise ValueError(f"a scope is printable ASCII without spaces, quotes and backslashes, not {scope!r}")
    return checked


def _challenge(parameters: Mapping[str, str], **more: str) -> dict[str, str]:
    """Return the header of a refusal. Source: RFC 6750, 3."""
    shown = ", ".join(f"{name}={quoted(value)}" for name, value in {**parameters, **more}.items())
    return {hdrs.WWW_AUTHENTICATE: f"Bearer {shown}" if shown else "Bearer"}


def _token_of(request: web.Request, challenge: Mapping[str, str]) -> str | None:
    """Return the Bearer token, or ``None`` if there are no credentials, or those of another scheme.

    Raises the 400 response to a header that is malformed or repeated.
    """
    first, *others = request.headers.getall(hdrs.AUTHORIZATION, [""])
    scheme, _, token = first.partition(" ")
    if not others and scheme.lower() != "bearer":
        return None
    if not others and _TOKEN68.fullmatch(token.strip(" ")):
        return token.strip(" ")
    wrong = "Authorization is sent once, as Bearer, a space and the token"
    headers = _challenge(challenge, error="invalid_request", error_description=wrong)
    raise web.HTTPBadRequest(headers=headers, text=f"{wrong}.\n")


async def _verified(verify: Verify, token: str, challenge: Mapping[str, str]) -> Claims:
    """Return the claims of a token. Raises the 401 response to an invalid one."""
    try:
        claims = verify(token)
        if inspect.isawaitable(claims):
            claims = await claims
    except InvalidToken as error:
        headers = _challenge(challenge, error="invalid_token", error_description=_ascii(error.description))
        raise web.HTTPUnauthorized(headers=headers, text=f"{error.description}\n") from error
    if not isinstance(claims, Mapping):
        raise TypeError(f"verify returned {claims!r}; it returns a mapping of claims, or raises InvalidToken")
    return claims


def _scopes_of(claims: Claims) -> set[str]:
    words, listed = claims.get("scope", ""), claims.get("scp", ())
    scopes = set(words.split()) if isinstance(words, str) else set()
    if isinstance(listed, str):
        return scopes | set(listed.split())
    return scopes | ({each for each in listed if isinstance(each, str)} if isinstance(listed, list | tuple) else set())


def _ascii(text: str) -> str:
    """Return what may be in ``error_description`` (RFC 6750, 3)."""
    return "".join(letter if " " <= letter <= "~" and letter not in '"\\' else "?" for letter in text)


def jwt_verifier(
    key: object,
    *,
    algorithms: Iterable[str],
    audience: str | Iterable[str] | None = None,
    issuer: str | None = None,
    leeway: float = 0.0,
    require: Iterable[str] = ("exp",),
) -> Callable[[str], Awaitable[Claims]]:
    """Make a function for ``bearer`` that verifies JWTs with PyJWT, which is the extra ``aiohttp-interceptors[jwt]``.

    Signature, expiry, start (``nbf``), audience and issuer are checked. A token that names an audience is refused if
    ``audience`` is ``None``. Source: RFC 8725.

    Args:
        key: The secret, the public key, or a plain or async function of the token's header that returns it, for
            instance by ``kid``. The header is not verified yet. The function raises ``InvalidToken`` for a key that it
            does not know.
        algorithms: The algorithms that are accepted, such as ``["RS256"]``. Never ``none``, and not symmetric ones
            (``HS256``) beside others, since a public key would then be a secret.
        audience: The audience, or several of which the token must name one; ``None`` for tokens without one.
        issuer: The issuer that the token must name; ``None`` for any.
        leeway: Seconds by which the clocks may differ.
        require: The claims that a token must have. By default it must expire.

    Returns:
        The function.

    Raises:
        ImportError: PyJWT is not installed.
        TypeError: An argument has the wrong type.
        ValueError: There is no algorithm, one of them is unknown or ``none``, or symmetric ones are mixed with others.
    """
    try:
        import jwt  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ImportError("jwt_verifier() needs PyJWT: pip install 'aiohttp-interceptors[jwt]'") from error
    accepted = _checked_algorithms(algorithms, frozenset(jwt.algorithms.get_default_algorithms()))
    audiences = audience if audience is None or isinstance(audience, str) else [*audience]
    if issuer is not None and not isinstance(issuer, str):
        raise TypeError(f"issuer is a str or None, not {issuer!r}")
    check_seconds("leeway", leeway, "", minimum=0)
    if isinstance(require, str) or not isinstance(require, Iterable):
        raise TypeError(f"require is a list of claims, not {require!r}")
    if key is None or (isinstance(key, str | bytes) and not key):
        raise ValueError("key is a secret, a public key, or a function of the token's header, and must not be empty")
    options: Any = {"require": [*require]}
    key_of: Callable[[Mapping[str, object]], object] | None = (
        cast("Callable[[Mapping[str, object]], object]", key) if callable(key) else None
    )

    async def verify(token: str) -> Claims:
        try:
            found = key if key_of is None else key_of(jwt.get_unverified_header(token))
            if inspect.isawaitable(found):
                found = await found
            claims: Claims = jwt.decode(
                token,
                cast("Any", found),
                algorithms=accepted,
                audience=audiences,
                issuer=issuer,
                leeway=leeway,
                options=options,
            )
        except (jwt.InvalidTokenError, RecursionError) as error:  # older PyJWT: a header of nested JSON
            raise InvalidToken(_described(error)) from error
        return claims

    return verify


def _checked_algorithms(algorithms: Iterable[str], known: frozenset[str]) -> list[str]:
    if isinstance(algorithms, str) or not isinstance(algorithms, Iterable):
        raise TypeError(f"algorithms is a list such as ['RS256'], not {algorithms!r}")
    listed = [*algorithms]
    if not listed:
        raise ValueError("algorithms has no algorithm; list those that your tokens are signed with, such as ['RS256']")
    for algorithm in listed:
        if not isinstance(algorithm, str):
            raise TypeError(f"algorithms is a list of str, not of {algorithm!r}")
        if algorithm.lower() == "none":
            raise ValueError("algorithms must not have 'none': anybody can make such a token")
        if algorithm not in known:
            raise ValueError(
                f"algorithms has {algorithm!r}, which PyJWT does not know; it knows {', '.join(sorted(known))}; "
                "those with a public key need the package cryptography"
            )
    symmetric = [algorithm.startswith(_SYMMETRIC) for algorithm in listed]
    if any(symmetric) and not all(symmetric):
        raise ValueError(
            f"algorithms mixes secrets with public keys, {', '.join(listed)}: a public key would be accepted as a "
            "secret; use two verifiers"
        )
    return listed


def _described(error: Exception) -> str:
    """Return what is wrong with a token, without what it contains."""
    names = {
        "ExpiredSignatureError": "the token has expired",
        "ImmatureSignatureError": "the token is not valid yet",
        "InvalidAudienceError": "the token is for another audience",
        "InvalidIssuerError": "the token is of another issuer",
        "MissingRequiredClaimError": "the token has not all claims that are required",
    }
    return names.get(type(error).__name__, "the token is not valid")
