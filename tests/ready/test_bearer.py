"""``bearer`` and ``jwt_verifier``: which tokens pass, and the challenges of the others."""

from __future__ import annotations

import base64
import sys
import time

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519

from aiohttp_interceptors import ContextKey, RequestContext
from aiohttp_interceptors.ready import CLAIMS, InvalidToken, bearer, jwt_verifier
from tests.ready.site import KINDS

SECRET = "a secret of at least sixty-four bytes, as HS512 and RFC 7518 want it"
NESTED = f"{base64.urlsafe_b64encode(b'[' * 1500).decode()}.e30.x"  # PyJWT parses the header before the signature


def verify(token: str) -> dict:
    if token == "error":
        raise LookupError("the database is down")
    if not token.startswith("good"):
        raise InvalidToken('it is "bad", ü')
    return {"sub": token, "scope": "read write"}


async def verify_later(token: str) -> dict:
    return verify(token)


async def subject(request: web.Request) -> web.Response:
    return web.Response(text=str(RequestContext.of(request).get(CLAIMS, {}).get("sub")))


async def answer(site, fetch, authorization, *arguments, handler=subject, **options):
    server = await site(bearer(*(arguments or [verify]), **options), handler=handler)
    headers = {} if authorization is None else {"Authorization": authorization}
    status, found, text = await fetch(server, headers=headers)
    return status, found.get("WWW-Authenticate"), text


@pytest.mark.parametrize("verifier", [verify, verify_later])
@pytest.mark.parametrize("authorization", ["Bearer good", "bearer good", "BEARER  good"])
async def test_the_handler_reads_the_claims(site, fetch, verifier, authorization):
    assert await answer(site, fetch, authorization, verifier) == (200, None, "good")


@pytest.mark.parametrize("authorization", [None, "", "Basic Z29vZA==", "good"])
async def test_without_a_token_there_is_a_challenge_without_an_error(site, fetch, authorization):
    assert await answer(site, fetch, authorization) == (401, "Bearer", "A Bearer token is required.\n")
    assert (await answer(site, fetch, authorization, realm='a"b'))[1] == r'Bearer realm="a\"b"'


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "Bearer a b", 'Bearer "good"', "Bearer good,Bearer x"])
async def test_a_malformed_header_is_an_invalid_request(site, fetch, authorization):
    status, challenge, _ = await answer(site, fetch, authorization, optional=True)
    assert (status, challenge.startswith('Bearer error="invalid_request", ')) == (400, True)


async def test_two_headers_are_an_invalid_request(site):
    server = await site(bearer(verify))
    lines = "Authorization: Bearer good\n" * 2
    assert (await server.exchange(f"GET / HTTP/1.1\nHost: x\nConnection: close\n{lines}\n")).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("verifier", [verify, verify_later])
async def test_an_invalid_token_is_refused_with_a_description(site, fetch, verifier):
    status, challenge, text = await answer(site, fetch, "Bearer bad", verifier, realm="site", optional=True)
    assert (status, text) == (401, 'it is "bad", ü\n')
    assert challenge == 'Bearer realm="site", error="invalid_token", error_description="it is ?bad?, ?"'


@pytest.mark.parametrize("kind", KINDS)
async def test_no_handler_runs_without_a_token(site, fetch, kind):
    assert (await answer(site, fetch, None, handler=KINDS[kind]()))[0] == 401
    assert (await answer(site, fetch, "Bearer good", handler=KINDS[kind]()))[0] in (200, 302, 403)


async def test_another_error_is_one_of_the_server(site, fetch, raised):
    assert (await answer(site, fetch, "Bearer error"))[0] == 500
    assert (await answer(site, fetch, "Bearer good", lambda token: None))[0] == 500
    assert [type(error) for error in raised()] == [LookupError, TypeError]


async def test_without_a_token_a_request_can_pass(site, fetch):
    assert await answer(site, fetch, None, optional=True) == (200, None, "None")


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"scope": "read write admin"}, 200),
        ({"scp": ["write", "read"]}, 200),
        ({"scp": "write read"}, 200),
        ({"scope": "read", "scp": ["write"]}, 200),
        ({"scope": "read"}, 403),
        ({"scope": "readwrite"}, 403),
        ({"scope": 5, "scp": 5}, 403),
        ({"scope": ["read", "write"]}, 403),
        ({}, 403),
    ],
)
async def test_all_scopes_are_required(site, fetch, claims, status):
    found, challenge, _ = await answer(site, fetch, "Bearer x", lambda token: claims, scopes=["read", "write"])
    assert found == status
    assert challenge == (None if status == 200 else 'Bearer error="insufficient_scope", scope="read write"')


async def test_the_key_can_be_another_one(site, fetch):
    user = ContextKey[dict]("user")

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=RequestContext.of(request)[user]["sub"])

    assert (await answer(site, fetch, "Bearer good", key=user, handler=handler))[2] == "good"


# JWT.


def token(claims=None, secret=SECRET, algorithm="HS256", **headers) -> str:
    return jwt.encode({"sub": "ada", "exp": time.time() + 86400, **(claims or {})}, secret, algorithm, headers)


async def verdict(token: str, key=SECRET, algorithms=("HS256",), **options) -> str:
    try:
        return (await jwt_verifier(key, algorithms=algorithms, **options)(token))["sub"]
    except InvalidToken as error:
        return error.description


@pytest.mark.parametrize(
    ("sent", "options", "expected"),
    [
        (token(), {}, "ada"),
        (token({"exp": 1}), {}, "the token has expired"),
        (token({"exp": time.time() - 5}), {"leeway": 86400}, "ada"),
        (token({"nbf": time.time() + 86400}), {}, "the token is not valid yet"),
        (token({"exp": None}), {}, "the token has not all claims that are required"),
        (token({"aud": "a"}), {"audience": "a"}, "ada"),
        (token({"aud": ["a", "b"]}), {"audience": ["b", "c"]}, "ada"),
        (token({"aud": "a"}), {"audience": "b"}, "the token is for another audience"),
        (token({"aud": "a"}), {}, "the token is for another audience"),
        (token(), {"audience": "a"}, "the token has not all claims that are required"),
        (token({"iss": "a"}), {"issuer": "a"}, "ada"),
        (token({"iss": "b"}), {"issuer": "a"}, "the token is of another issuer"),
        (token(), {"issuer": "a"}, "the token has not all claims that are required"),
        (token(), {"require": ["exp", "jti"]}, "the token has not all claims that are required"),
        (token(secret=SECRET + "x"), {}, "the token is not valid"),
        (token(algorithm="HS384"), {}, "the token is not valid"),
        (token(None, None, "none"), {}, "the token is not valid"),
        ("nonsense", {}, "the token is not valid"),
        ("a.b.c", {}, "the token is not valid"),
        (NESTED, {}, "the token is not valid"),
    ],
)
async def test_a_jwt_is_verified(sent, options, expected):
    assert await verdict(sent, **options) == expected


async def test_a_public_key_is_never_a_secret():
    private = ed25519.Ed25519PrivateKey.generate()
    signed = token(None, private, "EdDSA")
    assert await verdict(signed, private.public_key(), ["EdDSA"]) == "ada"
    assert await verdict(token(), private.public_key(), ["EdDSA"]) == "the token is not valid"
    with pytest.raises(ValueError, match="algorithms mixes secrets with public keys, HS256, EdDSA"):
        jwt_verifier(SECRET, algorithms=["HS256", "EdDSA"])


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_key_can_depend_on_the_header(is_async):
    def key_of(header):
        if header.get("kid") != "1":
            raise InvalidToken("there is no such key")
        return SECRET

    async def key_later(header):
        return key_of(header)

    key = key_later if is_async else key_of
    assert await verdict(token(kid="1"), key) == "ada"
    assert await verdict(token(kid="2"), key) == "there is no such key"
    assert await verdict("nonsense", key) == "the token is not valid"


@pytest.mark.parametrize(
    "header", [b"[" * 5000, b'{"alg":' * 800, b"\xff", b"5", b"{}", b'{"alg": 10}', b'{"alg": []}']
)
@pytest.mark.parametrize("key", [SECRET, lambda header: SECRET], ids=["secret", "function"])
async def test_a_header_of_a_jwt_that_is_not_one_is_refused(header, key):
    """It is read before the signature is verified."""
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (header, b"{}", b"x"))
    with pytest.raises(InvalidToken):
        await jwt_verifier(key, algorithms=["HS256"])(token)


async def test_a_request_with_a_jwt_has_its_claims(site, fetch):
    verifier = jwt_verifier(SECRET, algorithms=["HS256"])
    assert (await answer(site, fetch, f"Bearer {token()}", verifier))[2] == "ada"
    assert (await answer(site, fetch, "Bearer a.b.c", verifier))[0] == 401


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"algorithms": "HS256"}, TypeError, "algorithms is a list such as .*, not 'HS256'"),
        ({"algorithms": []}, ValueError, "algorithms has no algorithm"),
        ({"algorithms": [1]}, TypeError, "algorithms is a list of str, not of 1"),
        ({"algorithms": ["None"]}, ValueError, "algorithms must not have 'none'"),
        ({"algorithms": ["HS1"]}, ValueError, "'HS1', which PyJWT does not know"),
        ({"key": ""}, ValueError, "must not be empty"),
        ({"key": None}, ValueError, "must not be empty"),
        ({"issuer": ["a"]}, TypeError, "issuer is a str or None"),
        ({"leeway": -1}, ValueError, "leeway is 0 seconds or more, not -1"),
        ({"require": "exp"}, TypeError, "require is a list of claims, not 'exp'"),
    ],
)
def test_wrong_arguments_of_the_verifier_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        jwt_verifier(**{"key": SECRET, "algorithms": ["HS256"], **options})


def test_without_pyjwt_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ImportError, match=r"pip install 'aiohttp-interceptors\[jwt\]'"):
        jwt_verifier(SECRET, algorithms=["HS256"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"verify": "x"}, TypeError, "verify is a function, not 'x'"),
        ({"scopes": "read"}, TypeError, "scopes is a list of str, not 'read'"),
        ({"scopes": [1]}, TypeError, "scopes is a list of str, not of 1"),
        ({"scopes": ["a b"]}, ValueError, "a scope is printable ASCII without spaces, .*, not 'a b'"),
        ({"realm": 1}, TypeError, "realm is a str, not 1"),
        ({"realm": "a\n"}, ValueError, "realm is printable ASCII"),
        ({"optional": 1}, TypeError, "optional is True or False, not 1"),
        ({"key": "user"}, TypeError, "key is a ContextKey, .*, not 'user'"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        bearer(**{"verify": verify, **options})
