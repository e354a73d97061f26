"""Requests of every shape, for each header, parameter and method that the library reads, and what each must leave."""

from __future__ import annotations

import base64
import json
from collections import Counter
from urllib.parse import quote

import jwt
from hypothesis import strategies as st

from tests.hostile.client import send
from tests.hostile.site import BODY_ROUTES, LIBRARY, OTHER_ROUTES, SECRET, STREAM_ROUTES

MAX_GROWTH = 5  # of anything, for all examples: caches hold what was read last
KNOWN_ID = "known id"  # replaced by one of the Hub

METHODS = st.sampled_from(["GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"])

CONTROLS = bytes(range(32)) + b"\x7f"  # which aiohttp refuses in a header

any_octets = st.binary(max_size=12)
octets = any_octets.map(lambda raw: raw.translate(None, CONTROLS))


def pieces_of(*words: bytes) -> st.SearchStrategy[bytes]:
    """Return texts that are made of the words of a grammar, and of other bytes."""
    return st.lists(st.sampled_from(words) | octets, max_size=8).map(b"".join)


event_ids = st.one_of(
    st.just(KNOWN_ID.encode()),
    pieces_of(b"known id", b"-", b"0", b"9" * 19, b"9" * 20, b"-1", b" ", b"\t", b"%00", b"%0a", b"\xff", b","),
    st.from_regex(rb"\A[0-9a-f]{10}-[0-9]{1,20}\Z"),
    st.integers(1, 8000).map(lambda size: b"x" * size),
)


def encoded(value: object) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
jwt_headers = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {"alg": st.sampled_from(["HS256", "none", "RS256", ""]) | json_values},
        optional={"typ": json_values, "kid": json_values, "b64": json_values, "crit": json_values},
    ),
    octets,
    st.sampled_from([b"[" * 5000, b'{"a":' * 1500, b"1" * 5000]),
)
tokens = st.one_of(
    st.builds(lambda *parts: b".".join(map(encoded, parts)), jwt_headers, json_values | octets, octets),
    st.builds(
        lambda claims: jwt.encode(claims, SECRET, "HS256").encode(),
        st.dictionaries(st.sampled_from(["sub", "scope", "scp", "x"]), json_values, max_size=3).map(
            lambda claims: {**claims, "exp": 4_000_000_000, "sub": "7"}
        ),
    ),
    pieces_of(b".", b"=", b"eyJ", b"-", b"_", b'"'),
)
fields = st.one_of(
    st.tuples(st.just(b"Last-Event-ID"), event_ids),
    st.tuples(
        st.just(b"Accept"),
        pieces_of(*b'text/event-stream|text/*|*/*|application/json|;|,|q|=|0|1|.|nan|inf|1e9|"|\\|*| '.split(b"|"))
        | st.sampled_from([b'"\\' * 4000, b"a/b," * 2000, b"text/html;" * 800, b"text/event-stream"]),
    ),
    st.tuples(
        st.just(b"Accept-Encoding"),
        pieces_of(*b"gzip|x-gzip|identity|*|br|;|,|q|=|0|1|.|nan|inf|1e9|-| ".split(b"|"))
        | st.sampled_from([b"gzip", b"," * 8000, b"gzip;q=1" + b"=" * 8000]),
    ),
    st.tuples(
        st.just(b"Origin"),
        pieces_of(b"https://", b"example.com", b"null", b":", b"[", b"]", b"@", b"/", b"x", b"99999", b"%"),
    ),
    st.tuples(st.just(b"Sec-Fetch-Site"), st.sampled_from([b"same-origin", b"cross-site", b"none", b"\xff"])),
    st.tuples(
        st.just(b"Authorization"), st.builds(bytes.__add__, st.sampled_from([b"Bearer ", b"bearer", b""]), tokens)
    ),
    st.tuples(st.just(b"X-Request-ID"), octets | st.just(b"x" * 8000)),
    st.tuples(
        st.sampled_from([b"traceparent", b"tracestate", b"baggage"]),
        pieces_of(b"00-", b"0af7651916cd43dd8448eb211c80319c", b"-", b"b7ad6b7169203331", b"01", b"ff", b"=", b";"),
    ),
    st.tuples(
        st.just(b"Content-Type"),
        pieces_of(
            *b'application/json|+json|text/plain|multipart/form-data|;|charset=|utf-16|idna|hex|zlib|boundary=|"|/'.split(
                b"|"
            )
        ),
    ),
    st.tuples(
        st.sampled_from([b"Access-Control-Request-Method", b"Access-Control-Request-Headers"]),
        pieces_of(b"GET", b"x", b",", b"Last-Event-ID"),
    ),
    st.tuples(st.just(b"User"), octets | st.just(b"x" * 300)),
    st.tuples(st.just(b"Cookie"), pieces_of(b"a=", b"b", b";", b'"', b"\\", b"ticket-0123456789=", b"eyJ.", b"\xff")),
    st.tuples(st.just(b"Cache-Control"), st.just(b"no-cache")),
    st.tuples(st.just(b"User-Agent"), st.just(b"Mozilla/5.0") | octets),
)
oddities = st.one_of(
    # What is mostly answered by aiohttp itself.
    st.tuples(st.just(b"Content-Length"), st.sampled_from([b"0", b"5", b"-1", b"99999999999", b"x", b"0, 0"])),
    st.tuples(st.just(b"Transfer-Encoding"), st.sampled_from([b"chunked", b"gzip, chunked", b"x"])),
    st.tuples(st.just(b"Content-Encoding"), st.sampled_from([b"gzip", b"deflate", b"br", b"x"])),
    st.tuples(st.just(b"Connection"), st.sampled_from([b"close", b"keep-alive", b"upgrade"])),
    st.tuples(st.just(b"Upgrade"), st.sampled_from([b"websocket", b"h2c"])),
    st.tuples(st.just(b"Expect"), st.sampled_from([b"100-continue", b"x"])),
    st.tuples(st.just(b"Host"), octets),
    st.tuples(octets, any_octets),
)
queries = st.lists(
    st.tuples(
        st.sampled_from([b"topic", b"lastEventId", b"LASTEVENTID", b"last_event_id", b"ticket", b"%", b""]),
        event_ids
        | tokens
        | pieces_of(b"news", b".", b"*", b">", b"%20", b"%0a", b"%ff", b"%00", b"&", b"=", b"+", b"%ED%A0%80"),
    ),
    max_size=4,
).map(lambda pairs: b"&".join(b"%b=%b" % pair for pair in pairs))
names = pieces_of(
    b"news", b".", b"*", b">", b"%20", b"%0a", b"%2e", b"%ff", b"%00", b"%", b"..", b"\xc3\xa9", b"x" * 300
)


@st.composite
def requests(draw) -> bytes:
    """Return the bytes of a request whose head is complete. Its body may be, too."""
    method, path = draw(METHODS), draw(st.sampled_from(STREAM_ROUTES + BODY_ROUTES + OTHER_ROUTES + ("*", "http://x/")))
    target = path.encode().replace(b"{name}", draw(names)) + b"?" + draw(queries)
    target = quote(target, safe="/?&=:*%").encode() if draw(st.integers(0, 19)) else target.translate(None, b" ")
    lines = [b"%b %b HTTP/%b" % (method.encode(), target, draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"])))]
    sent = draw(st.lists(fields, max_size=6))
    if draw(st.integers(0, 3)):
        sent = dict(sent).items()  # aiohttp refuses most that are sent twice
    lines += [b"%b: %b" % field for field in sent]
    if not draw(st.integers(0, 7)):
        lines += [b"%b: %b" % field for field in draw(st.lists(oddities, min_size=1, max_size=2))]
    if draw(st.integers(0, 7)):
        lines.append(b"Host: x")
    else:
        lines.append(b"Host: " + draw(pieces_of(b"x", b":", b"[", b"99999", b"@", b"/")))
    content = draw(st.binary(max_size=40)) if draw(st.booleans()) else b""
    if content and draw(st.booleans()):
        lines.append(b"Content-Length: %d" % len(content))
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


async def survives(site, request: bytes, end: str = "close", cut: int = 0) -> None:
    """Send a request in two pieces. It is answered by no 500, and the next one is answered."""
    known = site.hub.history.id_of(1).encode()
    request = request.replace(KNOWN_ID.encode(), known).replace(b"known%20id", known)
    cut = cut % (len(request) + 1)
    site.lines.clear()
    reply = await send(site, [request[:cut], request[cut:]], end)
    assert reply.status != 500, (request[:2000], reply.head)
    assert site.errors() == [], request[:2000]
    for line in site.lines:
        assert line.logger != LIBRARY or "\n" not in line.message
    # With a reset, no port waits: thousands of connections would use up those of the machine.
    next_one = await send(site, [b"GET /media HTTP/1.1\r\nHost: x\r\n\r\n"], "reset")
    assert next_one.status == 200, (next_one, request[:2000])


def growth(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Return what the process holds more of than before, beside the log of the broker, which is in this process."""
    return {
        name: grown
        for name, grown in (after - before).items()
        if grown > MAX_GROWTH and name.partition(".")[0] not in ("MemoryLog", "_Stored", "_LabelValues")
    }
