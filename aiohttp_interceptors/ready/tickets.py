"""``Tickets``: authentication of an ``EventSource``, which cannot send headers.

A page that is signed in fetches a ticket by POST, and opens ``new EventSource("/events?ticket=…")``. The ticket is
redeemed once. Since an ``EventSource`` reconnects to the same URL, redeeming it sets a cookie, with which that URL is
valid until the access ends. Ticket and cookie are JWTs (RFC 7519), which PyJWT signs with HS256.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import hdrs, web

from .._checks import check_seconds
from .._logging import log
from ..chain import ContextKey
from ..exceptions import BrokerError
from ..hub.hub import Hub
from ..hub.owners import Owners, check_owner
from ..hub.redemption import MAX_TOKEN_AGE, Redemptions
from ..hub.topics import check_pattern
from ..interceptor import Interceptor
from ..web.access import to_unix_time
from ..web.app import Streams
from ..web.context import RequestContext
from ._fields import check_flag, check_token

__all__ = ["TICKET", "MaskTickets", "Ticket", "Tickets"]


MIN_SECRET = 32  # bytes, as long as the result of SHA-256 (RFC 7518, 3.2)
MAX_TICKET = 2048  # characters: a URL has room for it in all browsers and proxies
# Of one path. aiohttp refuses a request whose header "Cookie" has more than 8,190 bytes; these have up to 4,000.
MAX_COOKIES = 10
ACCESS_LOGGERS = ("aiohttp.access", "gunicorn.access")
MASK = "***"
COOKIE_PREFIX = "ticket-"
_PATH = re.compile(r"/[!-:<-~]*")  # RFC 6265, 4.1.1
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]+\.[\w-]+\.[\w-]+")
_ALGORITHM = "HS256"
_Claims: TypeAlias = Mapping[str, Any]
_TICKET_USE = "aiohttp_interceptors/ticket"
_COOKIE_USE = "aiohttp_interceptors/ticket-cookie"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket allows."""

    owner: str
    """Whose stream it is, as for the ``owner`` option of streams."""
    topics: tuple[str, ...]
    """The topic names and wildcards that it is for."""
    expires_at: float
    """When the access ends, in seconds of the Unix epoch."""


TICKET = ContextKey[Ticket]("ticket")
"""The ticket of the request."""


class Tickets:
    """Issues tickets, and makes the interceptor that redeems them.

    It needs PyJWT, which is the extra ``aiohttp-interceptors[jwt]``. The tickets in the lines of the loggers
    ``aiohttp.access`` and ``gunicorn.access`` are masked, see ``MaskTickets``.

    Args:
        secret: The secret that signs, at least 32 bytes; or several, of which the first signs and all are accepted. To
            replace one, add the new one behind it on all nodes, then put the new one in front.
        hub: The Hub whose nodes may redeem the tickets; ``None`` if there is only this process. Without a broker, a
            ticket that was issued before this call is refused.
        lifetime: Seconds within which a ticket must be redeemed, 60 at most.
        max_age: Seconds after which the access ends, if it is not to end earlier. So long the process remembers which
            owners were disconnected.
        parameter: The query parameter with the ticket.
        secure: Whether the cookie is sent over HTTPS only. Browsers treat ``http://localhost`` as HTTPS, except Safari.

    Raises:
        ImportError: PyJWT is not installed.
        TypeError: An argument has the wrong type.
        ValueError: A secret is too short, or an argument is out of range.
    """

    def __init__(
        self,
        secret: str | bytes | Sequence[str | bytes],
        hub: Hub | None = None,
        *,
        lifetime: float = 30.0,
        max_age: float = 3600.0,
        parameter: str = "ticket",
        secure: bool = True,
    ) -> None:
        try:
            import jwt  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise ImportError("Tickets() needs PyJWT: pip install 'aiohttp-interceptors[jwt]'") from error
        self._jwt = jwt
        self._secrets = _checked_secrets(secret)
        if hub is not None and not isinstance(hub, Hub):
            raise TypeError(f"hub is a Hub or None, not {hub!r}")
        check_seconds("lifetime", lifetime, "")
        if lifetime > MAX_TOKEN_AGE:
            raise ValueError(
                f"lifetime is {MAX_TOKEN_AGE:g} seconds at most, since a broker does not know for longer which tickets "
                f"were redeemed, not {lifetime!r}"
            )
        check_seconds("max_age", max_age, "")
        check_token("parameter", parameter)
        check_flag("secure", secure)
        self._hub = hub
        self._redemptions = Redemptions()  # without a Hub
        self._lifetime = lifetime
        self._max_age = max_age
        self._parameter = parameter
        self._secure = secure
        # A broker's log has what was redeemed, and which owners were disconnected, before this process started.
        self._knows_since = time.time() if hub is None or hub._broker is None else 0.0
        if hub is not None:
            hub._owners.remember_for(max_age)
        _mask_access_log(parameter)
        self.redeem: Interceptor[RequestContext] = Interceptor("tickets", self._enter)
        """The interceptor that puts the ``Ticket`` of a request into ``context[TICKET]``, for routes of streams.

        A request without a valid ticket is answered with 401, and with 503 if the broker does not answer. HEAD
        does not redeem a ticket. Cancelling is safe.
        """

    def issue(
        self, owner: str, topics: str | Iterable[str] = (), *, expires_at: float | dt.datetime | None = None
    ) -> str:
        """Return a new ticket, for the response to an authenticated POST with ``Cache-Control: no-store``.

        Args:
            owner: Whose stream it will be, such as ``"user:7"``. ``Hub.disconnect`` with this owner also revokes the
                tickets and the cookies that were issued before.
            topics: The topic names and wildcards that the owner may subscribe to.
            expires_at: When the access ends, in seconds of the Unix epoch or as a ``datetime`` with a time zone, for
                instance the ``exp`` of the token of the request. ``None``: after ``max_age`` seconds.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is invalid, the access has ended already, or the ticket would be too long for a URL.
        """
        check_owner(owner)
        allowed = [check_pattern(topic) for topic in ([topics] if isinstance(topics, str) else topics)]
        now = time.time()
        end = to_unix_time(expires_at)
        end = now + self._max_age if end is None else min(end, now + self._max_age)
        if end <= now:
            raise ValueError(f"expires_at is in the future, not {expires_at!r}")
        claims = {"aud": _TICKET_USE, "jti": secrets.token_urlsafe(16), "sub": owner, "topics": allowed}
        at = now if self._hub is None else self._hub._owners.time_after_disconnect(owner)
        at = max(at, self._knows_since)  # the clock may have been set back
        ticket = self._sign({**claims, "at": at, "until": end, "exp": min(end, now + self._lifetime)})
        if len(ticket) > MAX_TICKET:
            raise ValueError(
                f"a ticket has {MAX_TICKET} characters at most, and this one for {len(allowed)} topics would have "
                f"{len(ticket)}; use wildcards, or a shorter owner"
            )
        return ticket

    def _sign(self, claims: Mapping[str, object]) -> str:
        return self._jwt.encode(dict(claims), self._secrets[0], algorithm=_ALGORITHM)

    def _read(self, token: str, use: str) -> _Claims | None:
        """Return the claims of a token that was signed with one of the secrets for this use, also if it is expired."""
        if len(token) > MAX_TICKET or not token.isascii():
            return None
        options: Any = {"require": ["exp"], "verify_exp": False, "verify_iat": False}
        for secret in self._secrets:
            try:
                return self._jwt.decode(token, secret, algorithms=[_ALGORITHM], audience=use, options=options)
            except (self._jwt.InvalidTokenError, RecursionError):  # older PyJWT: a header of nested JSON
                continue
        return None

    async def _enter(self, context: RequestContext) -> None:
        request = context.request
        claims = self._ticket_of(request)
        if self._hub is not None and not await self._hub._knows_disconnects():
            raise _unavailable()
        now = time.time()
        name, target = _cookie_name(claims, request), _target(claims, request)
        registries = self._registries(request)
        access = self._access_by_cookie(request, name, target, now)
        if access is not None and self._is_revoked(claims["sub"], access["at"], registries):
            access = None
        if claims["exp"] > now and not self._is_revoked(claims["sub"], claims["at"], registries):
            if request.method == hdrs.METH_HEAD:  # does not open a stream
                access = {**claims, "exp": claims["until"]}
            elif (access is None or access["jti"] != claims["jti"]) and await self._redeem(request, claims, access):
                access = {"aud": _COOKIE_USE, "for": target, "jti": claims["jti"], "at": claims["at"]}
                access["exp"] = claims["until"]
                for header in self._set_cookies(name, access, request):
                    context.response_headers.add(hdrs.SET_COOKIE, header)
        # Redeeming took time, in which the owner may have been disconnected.
        if access is None or self._is_revoked(claims["sub"], access["at"], registries):
            raise _unauthorized()
        context[TICKET] = Ticket(claims["sub"], tuple(claims["topics"]), access["exp"])

    def _ticket_of(self, request: web.Request) -> _Claims:
        """Return the claims of a request's ticket. Error trackers record local variables: no caller has the ticket."""
        given = request.query.getall(self._parameter, [])
        if len(given) > 1:
            raise web.HTTPBadRequest(text=f"{self._parameter} is given once.\n")
        claims = self._read(given[0], _TICKET_USE) if given else None
        if claims is None:
            raise _unauthorized()
        return claims

    async def _redeem(self, request: web.Request, claims: _Claims, access: _Claims | None) -> bool:
        """Redeem a ticket, and return whether it was not redeemed before. With access by cookie it never raises."""
        try:
            if self._hub is None:
                return await self._redemptions.redeem(claims["jti"])
            return await self._hub._redeem(claims["jti"])
        except BrokerError as error:
            log.warning("ticket_not_redeemed", path=request.path, error=str(error))
            if access is None:
                raise _unavailable() from error
            return False

    def _access_by_cookie(self, request: web.Request, name: str, target: str, now: float) -> _Claims | None:
        """Return the claims of the cookie that an earlier ticket for the same access and path set, if it is valid."""
        cookie = self._read(request.cookies.get(name, ""), _COOKIE_USE)
        return None if cookie is None or cookie["exp"] <= now or cookie["for"] != target else cookie

    def _is_revoked(self, owner: str, issued_at: float, registries: Iterable[Owners]) -> bool:
        """Return whether a ticket was issued before its owner was disconnected, or before this process knows that."""
        if issued_at < self._knows_since:
            return True
        return any(registry.was_disconnected_since(owner, issued_at) for registry in registries)

    def _registries(self, request: web.Request) -> list[Owners]:
        """Return where the disconnects of owners are known, for as long as access may last."""
        registries = [streams.owners for streams in Streams.all_of(request)]
        for registry in registries:
            registry.remember_for(self._max_age)
        return registries if self._hub is None else [*registries, self._hub._owners]

    def _set_cookies(self, name: str, access: _Claims, request: web.Request) -> list[str]:
        """Return headers that set a cookie, and delete the oldest ones of the same path beyond ``MAX_COOKIES``."""
        secure = "; Secure" if self._secure else ""
        attributes = f"Path={_cookie_path(request)}; HttpOnly; SameSite=Strict{secure}"
        seconds = max(int(access["exp"] - time.time()), 0)
        issued: dict[str, float] = {}
        for other, value in request.cookies.items():
            if other.startswith(_cookie_prefix(request)) and other != name:
                issued[other] = (self._read(value, _COOKIE_USE) or {"at": 0.0})["at"]
        excess = sorted(issued, key=issued.__getitem__)[: max(len(issued) + 1 - MAX_COOKIES, 0)]
        return [
            f"{name}={self._sign(access)}; Max-Age={seconds}; {attributes}",
            *[f"{other}=; Max-Age=0; {attributes}" for other in excess],
        ]


def _checked_secrets(secret: object) -> tuple[bytes, ...]:
    given = [secret] if isinstance(secret, str | bytes) else secret
    if not isinstance(given, Sequence):
        raise TypeError("secret is a str or bytes, or several")
    found: list[bytes] = []
    for each in given:
        if not isinstance(each, str | bytes):
            raise TypeError("secret is a str or bytes, or several")  # not shown, since it may be one
        found.append(each.encode() if isinstance(each, str) else each)
        if len(found[-1]) < MIN_SECRET:
            raise ValueError(
                f"a secret has {MIN_SECRET} bytes or more, such as secrets.token_urlsafe(32), not {len(found[-1])}"
            )
    if not found:
        raise ValueError("secret has no secret")
    return tuple(found)


def _target(claims: _Claims, request: web.Request) -> str:
    """Return a digest of what a cookie is for: the owner, the topics and the path."""
    parts = [claims["sub"], *claims["topics"], request.rel_url.raw_path]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _cookie_prefix(request: web.Request) -> str:
    """Return how the names of all cookies with the ``Path`` of this request's begin."""
    return COOKIE_PREFIX + hashlib.sha256(_cookie_path(request).encode()).hexdigest()[:8]


def _cookie_name(claims: _Claims, request: web.Request) -> str:
    """Return the name of the cookie: a reload replaces it, and another owner or other topics have another one."""
    return f"{_cookie_prefix(request)}{_target(claims, request)[:16]}"


def _cookie_path(request: web.Request) -> str:
    """Return the path of the request, or its longest part to a slash that can be the ``Path`` of a cookie."""
    path = request.rel_url.raw_path
    allowed = _PATH.match(path)
    if allowed is None:
        return "/"
    return path if allowed[0] == path else allowed[0].rpartition("/")[0] or "/"


def _unauthorized() -> web.HTTPUnauthorized:
    headers = {hdrs.CACHE_CONTROL: "no-store", hdrs.WWW_AUTHENTICATE: "Ticket"}
    return web.HTTPUnauthorized(headers=headers, text="A valid ticket is required, and each is redeemed once.\n")


def _unavailable() -> web.HTTPServiceUnavailable:
    headers = {hdrs.CACHE_CONTROL: "no-store", hdrs.RETRY_AFTER: "1"}
    return web.HTTPServiceUnavailable(headers=headers, text="The ticket cannot be redeemed at the moment.\n")


class MaskTickets(logging.Filter):
    """Masks the tickets in log lines, such as those of aiohttp's access log, and other JWTs.

    ``Tickets`` adds it to the loggers ``aiohttp.access`` and ``gunicorn.access``. Add it to other loggers or handlers
    that log URLs: ``logging.getLogger("access").addFilter(MaskTickets())``.

    Args:
        parameter: The query parameter with the ticket.

    Raises:
        TypeError: The parameter is not a ``str``.
        ValueError: The parameter is not a token.
    """

    def __init__(self, parameter: str = "ticket") -> None:
        super().__init__()
        check_token("parameter", parameter)
        self._parameter = parameter
        names = rf"{re.escape(parameter)}|{COOKIE_PREFIX}[0-9a-f]+"
        self._pattern = re.compile(
            rf"(?:(?<![\w-])|(?<=%3F)|(?<=%26))((?:{names})(?:=|%3D))[^&\s\"'#;,]+", re.IGNORECASE
        )

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the tickets in the message of a record, and in what was given with ``extra``.

        Args:
            record: The record, which is changed.

        Returns:
            ``True``, so that the record is logged.
        """
        try:
            record.msg, record.args = self._masked(record.getMessage()), None
        except Exception:  # noqa: BLE001  # logging reports it when the record is formatted
            return True
        for name, value in list(vars(record).items()):
            if name not in _OWN_ATTRIBUTES:
                setattr(record, name, self._mask_all(value))
        return True

    def _masked(self, text: str) -> str:
        return _JWT.sub(MASK, self._pattern.sub(rf"\1{MASK}", text))

    def _mask_all(self, value: object) -> object:
        if isinstance(value, str):
            return self._masked(value)
        if isinstance(value, dict):
            return {key: self._mask_all(each) for key, each in value.items()}
        if isinstance(value, tuple | list):
            return [self._mask_all(each) for each in value]
        return value


def _mask_access_log(parameter: str) -> None:
    """Mask the tickets in aiohttp's access log, also with gunicorn. Idempotent."""
    for name in ACCESS_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, MaskTickets) and each._parameter == parameter for each in logger.filters):
            logger.addFilter(MaskTickets(parameter))


_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({})))
