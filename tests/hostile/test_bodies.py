"""Bodies of every shape, for the routes that read JSON, and bodies that do not arrive."""

from __future__ import annotations

import gzip
import json
import resource
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.client import send
from tests.hostile.profile import fuzz
from tests.hostile.requests import growth, json_values, survives
from tests.hostile.site import BODY_ROUTES

ROUTES = (*BODY_ROUTES, "/answer", "/generated")
PUBLISHED = {"Event", "History", "OffsetIndex", "Record", "Tombstone", "TopicHistory", "TopicIndex"}
"""What holds the events of the route that publishes."""

texts = st.text(max_size=8) | st.sampled_from(["news", "a b", ">", "\ud800", "\0", "\n", "x" * 70_000])
publications = st.fixed_dictionaries(
    {"topic": st.just("news") | texts | json_values, "data": json_values | texts},
    optional={
        **dict.fromkeys(("name", "key", "idempotency_key"), st.just("known") | texts | json_values),
        **dict.fromkeys(("ephemeral", "tombstone", "final"), st.booleans() | json_values),
    },
) | st.fixed_dictionaries({"topic": st.just("a.b"), "data": json_values}, optional={"\ud800": json_values})
leaves = st.fixed_dictionaries({"price": json_values}, optional={"name": json_values, "\udfff": json_values})
trees = st.recursive(
    leaves | json_values,
    lambda inner: (
        st.fixed_dictionaries({"left": inner, "right": inner | st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"price": json_values, "children": st.lists(inner, max_size=3)})
    ),
    max_leaves=8,
)
documents = st.one_of(publications, trees, st.lists(leaves | json_values, max_size=3), json_values).map(json.dumps)


def deep(depth: int, opening: str, closing: str, inside: str) -> str:
    return opening * depth + inside + closing * depth


depths = st.integers(1, 3000)
nested = st.one_of(
    st.builds(deep, depths, st.just("["), st.just("]"), st.just("1")),
    st.builds(deep, depths, st.just('{"left":{"price":1},"right":'), st.just("}"), st.just('{"price":1}')),
    st.builds(deep, depths, st.just('{"price":1,"children":['), st.just("]}"), st.just("")),
    st.builds(deep, depths, st.just('{"topic":"a","data":['), st.just("]}"), st.just("")),
    st.builds(deep, depths, st.just('{"topic":"a","data":['), st.just(""), st.just("")),
    st.builds(lambda depth: '{"topic":"a","data":' + "[" * depth + "]" * depth + "}", depths),
    st.builds(lambda depth: '{"topic":"a","data":' + '{"a":' * depth + "1" + "}" * (depth + 1), depths),
)
contents = st.one_of(
    *[documents.map(str.encode)] * 4,
    documents.map(lambda text: text.encode("utf-16")),
    documents.map(lambda text: text.encode()[:-1]),
    nested.map(str.encode),
    st.binary(max_size=30),
    st.builds(lambda text: text.replace("1", "1" * 5000).encode(), documents),
    st.sampled_from([b"NaN", b"-Infinity", b"1e999", b'"\xed\xa0\x80"', b"{" + b'"a":1,' * 9000 + b'"a":1}', b""]),
    st.integers(1, 20_000).map(lambda count: json.dumps({str(n): n for n in range(count)}).encode()),
)
content_types = st.sampled_from(
    ["application/json"] * 12
    + ["application/problem+json", "text/plain", "application/json; charset=hex", "application/json; charset=idna"]
    + ["application/json; charset=no-such-thing", 'application/json; charset="', "multipart/form-data; boundary=x"]
)


@st.composite
def posts(draw) -> bytes:
    """Return the bytes of a POST request whose framing is right, or says more than is sent."""
    content = draw(contents)
    head = f"POST {draw(st.sampled_from(ROUTES))} HTTP/1.1\r\nHost: x\r\n"
    head += f"Content-Type: {draw(content_types)}\r\n"
    framing = draw(st.sampled_from(["length", "length", "length", "chunks", "gzip", "broken gzip", "too long"]))
    if framing == "chunks":
        head += "Transfer-Encoding: chunked\r\n"
        content = b"".join(b"1\r\n%c\r\n" % octet for octet in content[:50]) + b"0\r\n\r\n"
    elif framing == "gzip":
        content = gzip.compress(content)
    elif framing == "too long":
        content += b" " * 2_000_000
    if "gzip" in framing:
        head += "Content-Encoding: gzip\r\n"
    if framing != "chunks":
        missing = draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 5]))
        head += f"Content-Length: {len(content) + missing}\r\n"
    return head.encode() + b"\r\n" + content


def test_any_body_is_answered_and_leaves_nothing_but_what_was_published(runner, site):
    @fuzz(150)
    @given(post=posts())
    def check(post):
        runner.run(survives(site, post))

    for path in BODY_ROUTES:
        runner.run(survives(site, b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % path.encode()))
    before = runner.run(site.holdings())
    check()
    grown = growth(before, runner.run(site.holdings()))
    assert {name for name in grown if name.partition(".")[0] not in PUBLISHED} == set()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_grows_when_it_is_decompressed_is_a_413(runner, site, encoding):
    """30 MiB are sent as 30 KiB. Not more than the limit of 1 MiB and a piece are ever there."""
    packing = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    packed = b"".join([packing.compress(b" " * 2**20) for _ in range(30)]) + packing.flush()

    async def post(path: str) -> int:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Encoding: {encoding}\r\n"
        return (await send(site, [f"{head}Content-Length: {len(packed)}\r\n\r\n".encode() + packed])).status

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert {runner.run(post(path)) for path in (*BODY_ROUTES, "/fixed", "/answer")} == {413}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20 * 2**10  # KiB
