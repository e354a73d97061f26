"""``negotiate``: the media type that is chosen, against a reference, and what the responses have."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from aiohttp_interceptors import ContextKey, RequestContext
from aiohttp_interceptors.ready import MEDIA_TYPE, choose_media_type, negotiate
from aiohttp_interceptors.ready._fields import split_outside_quotes
from tests.ready.site import KINDS


async def chosen(request: web.Request) -> web.Response:
    return web.Response(text=RequestContext.of(request)[MEDIA_TYPE])


RFC = "text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, text/plain;format=fixed;q=0.4, */*;q=0.5"


@pytest.mark.parametrize(
    ("accept", "offers", "choice"),
    [
        (None, "text/html application/json", "text/html"),
        ("", "text/html application/json", "text/html"),
        (", ,", "text/html application/json", "text/html"),
        ("nonsense", "text/html application/json", "text/html"),
        ("application/json", "text/html application/json", "application/json"),
        ("APPLICATION/JSON", "text/html application/json", "application/json"),
        ("text/html;q=0.5, application/json", "text/html application/json", "application/json"),
        ("text/*;q=0.5, */*;q=0.1", "application/json text/html", "text/html"),
        ("text/html;q=0, */*", "text/html application/json", "application/json"),
        ("*/*", "text/html application/json", "text/html"),
        ("image/png", "text/html application/json", None),
        ("text/html;q=0", "text/html", None),
        ("*/html", "text/html", "text/html"),  # invalid, so that nothing valid remains
        ("*/html, image/png", "text/html", None),
        ("text/html;q=2, image/png", "text/html", None),
        ("text/html;q=0.5;ext=1", "text/html", "text/html"),
        ('text/html;level="1"', "text/html text/html;level=1", "text/html;level=1"),
        ('text/html;x="a,b;q=0", application/json;q=0.1', "text/html application/json", "application/json"),
        ("text/html ; q=0.5 , application/json ; q=0.4", "text/html application/json", "text/html"),
        # RFC 9110, 12.5.1: the example of weights.
        (RFC, "text/plain;format=flowed image/jpeg text/html", "text/plain;format=flowed"),
        (RFC, "image/jpeg text/html", "image/jpeg"),
        (RFC, "text/plain;format=fixed text/html", "text/plain;format=fixed"),
        (RFC, "text/plain;format=fixed image/jpeg", "image/jpeg"),
        (RFC, "image/jpeg text/plain", "text/plain"),
    ],
)
def test_the_best_offer_is_chosen(accept, offers, choice):
    assert choose_media_type(accept, *offers.split()) == choice


TYPES, SUBTYPES, PARAMETERS = "ab", "xy", ((), (("p", "1"),), (("p", "2"),), (("p", "1"), ("r", "1")))
OFFERS = [(kind, subtype, parameters) for kind in TYPES for subtype in SUBTYPES for parameters in PARAMETERS]
RANGES = [*OFFERS, *[(kind, "*", ()) for kind in TYPES], ("*", "*", ())]
WEIGHTS = [Fraction(each, 1000) for each in (0, 1, 500, 999, 1000)]


def text_of(media, weight=None) -> str:
    kind, subtype, parameters = media
    return (
        f"{kind}/{subtype}" + "".join(f";{k}={v}" for k, v in parameters) + ("" if weight is None else f";q={weight}")
    )


def reference(ranges, offers):
    """Choose by the words of RFC 9110, 12.5.1: for each offer, go through the ranges from the most specific one on."""
    best, choice = Fraction(0), None
    for offer in offers:
        kind, subtype, parameters = offer
        precise = [each for each, _ in ranges if each[:2] == (kind, subtype) and set(each[2]) <= set(parameters)]
        precise.sort(key=lambda each: len(each[2]), reverse=True)
        steps = [*precise, (kind, "*", ()), ("*", "*", ())]
        weight = next((dict(ranges)[step] for step in steps if step in dict(ranges)), Fraction(0))
        if weight > best:
            best, choice = weight, offer
    return choice


@given(
    st.lists(st.tuples(st.sampled_from(RANGES), st.sampled_from(WEIGHTS)), min_size=1, unique_by=lambda each: each[0]),
    st.lists(st.sampled_from(OFFERS), min_size=1, unique=True),
)
@example([(("a", "*", ()), Fraction(1)), (("a", "x", ()), Fraction(0))], [("a", "x", ())])
def test_the_choice_is_that_of_the_reference(ranges, offers):
    accept = ", ".join(text_of(each, f"{float(weight):.3f}") for each, weight in ranges)
    expected = reference(ranges, offers)
    found = choose_media_type(accept, *map(text_of, offers))
    assert found == (None if expected is None else text_of(expected))


@given(st.text(st.sampled_from('ab/*;,q=0.1"\\ x'), max_size=30))
def test_any_header_has_an_answer(accept):
    assert choose_media_type(accept, "a/b", "b/a;x=1") in ("a/b", "b/a;x=1", None)


@pytest.mark.parametrize("size", [8190, 2**20])
@pytest.mark.parametrize("piece", ['"', '"\\', '\\"', "a", ",", ";", "a/b,", 'a/b;x="', 'a/b;x="\\",', "a/b;x=y;"])
def test_a_header_takes_time_in_proportion_to_its_size(piece, size):
    """128 lines of 8 KiB may arrive. Quadratic time was hours for them, and a second for one."""
    accept = (piece * size)[:size]
    started = time.thread_time()
    choose_media_type(accept, "text/html", "a/b")
    assert time.thread_time() - started < 0.5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        (",", ["", ""]),
        ('a, "b,c" , d', ["a", '"b,c"', "d"]),
        ('"a\\",b",c', ['"a\\",b"', "c"]),
        ('"a","b"', ['"a"', '"b"']),
        ('a"b,c', ['a"b', "c"]),
        ('"a\\", b', ['"a\\"', "b"]),
        ('x="1,2";y, z="3', ['x="1,2";y', 'z="3']),
    ],
)
def test_a_separator_in_a_quoted_string_separates_nothing(text, parts):
    """A quote that is not closed is a character like any other."""
    assert split_outside_quotes(text, ",") == parts


@given(st.text(st.sampled_from('a,"\\ '), max_size=12))
def test_splitting_agrees_with_the_grammar_if_all_quotes_are_closed(text):
    pieces = re.findall(r'"(?:[^"\\]|\\.)*"|.', text)
    if any(piece.startswith('"') and len(piece) == 1 for piece in pieces):
        return
    parts = [""]
    for piece in pieces:
        parts = [*parts, ""] if piece == "," else [*parts[:-1], parts[-1] + piece]
    assert split_outside_quotes(text, ",") == [part.strip(" \t") for part in parts]


async def test_a_header_of_more_than_8190_characters_accepts_nothing(site):
    server = await site(negotiate("text/html"), handler=chosen)
    for lines, status in (1, 200), (5, 406):
        accept = "".join(f"Accept: text/html;x={'y' * 2000}, */*\n" for _ in range(lines))
        answer = await server.exchange(f"GET / HTTP/1.1\nHost: x\nConnection: close\n{accept}\n")
        assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("accept", ["application/json", "text/html, application/json;q=0.9"])
async def test_the_handler_reads_the_choice(site, fetch, accept):
    server = await site(negotiate("application/json", "text/html"), handler=chosen)
    status, headers, text = await fetch(server, headers={"Accept": accept})
    assert (status, text, headers["Vary"]) == (200, accept.partition(",")[0], "Accept")


async def test_lines_of_the_header_are_joined(site):
    server = await site(negotiate("application/json", "text/html"), handler=chosen)
    answer = await server.exchange(
        "GET / HTTP/1.1\nHost: x\nAccept: application/json;q=0.1\nAccept: text/html\nConnection: close\n\n"
    )
    assert answer.endswith(b"text/html")


@pytest.mark.parametrize("kind", KINDS)
async def test_without_an_acceptable_offer_the_answer_is_406(site, fetch, kind):
    server = await site(negotiate("text/event-stream", "text/html"), handler=KINDS[kind]())
    status, headers, text = await fetch(server, headers={"Accept": "image/png"})
    assert (status, text) == (406, "This is available as text/event-stream, text/html.\n")
    assert headers["Vary"] == "Accept"
    _, headers, _ = await fetch(server, headers={"Accept": "text/event-stream"})
    assert "Accept" in headers.getall("Vary")


async def test_the_key_can_be_another_one(site, fetch):
    language = ContextKey[str]("kind")

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=RequestContext.of(request)[language])

    assert (await fetch(await site(negotiate("text/html", key=language), handler=handler)))[2] == "text/html"


@pytest.mark.parametrize(
    ("offers", "error"),
    [
        ([], TypeError),
        ([1], TypeError),
        (["html"], ValueError),
        (["text/*"], ValueError),
        (["*/*"], ValueError),
        (["text/html;q=0.5"], ValueError),
        (['text/html;a="b"'], ValueError),
        (["text/html, text/plain"], ValueError),
    ],
)
def test_wrong_offers_are_refused(offers, error):
    with pytest.raises(error, match="media type"):
        negotiate(*offers)


def test_a_wrong_key_is_refused():
    with pytest.raises(TypeError, match=r"key is a ContextKey, .*, not 'x'"):
        negotiate("text/html", key="x")
