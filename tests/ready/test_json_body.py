"""``json_body``: what is accepted, in which shape, and how everything else is refused."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pydantic
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors import ContextKey, RequestContext, event_stream
from aiohttp_interceptors.ready import InvalidBody, json_body
from aiohttp_interceptors.ready.json_body import _converter
from tests.ready.site import application

HEADERS = {"Content-Type": "application/json"}


@dataclass
class Item:
    name: str
    price: float
    tags: list[str] = field(default_factory=list)


@dataclass
class Order:
    items: list[Item]
    customer: str | None = None
    kind: Literal["new", "used"] = "new"
    extra: dict[str, int] = field(default_factory=dict)
    any: Any = None

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("an order has items")


@dataclass
class Recursive:
    children: list[Recursive]


class Struct(msgspec.Struct):
    name: str
    price: float


class Model(pydantic.BaseModel):
    name: str
    price: float


@pydantic.dataclasses.dataclass
class PydanticDataclass:
    name: str
    price: float


def upper(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidBody("expected a string", "$.here")
    if value == "bad":
        raise ValueError("not this one")
    return value.upper()


BODY = ContextKey[object]("body")


async def echo(request: web.Request) -> web.Response:
    value = RequestContext.of(request)[BODY]
    return web.json_response({"type": type(value).__name__, "value": repr(value), "again": await request.json()})


@pytest.fixture
def post(site, fetch):
    """Post a body to a route that reads it, and return status, text and headers."""

    async def send(body, into=Item, headers=HEADERS, client_max_size=1024**2, **options):
        server = await site(json_body(BODY, into, **options), handler=echo, client_max_size=client_max_size)
        data = body if isinstance(body, bytes) else json.dumps(body)
        status, found, text = await fetch(server, "POST", data=data, headers=headers)
        return status, text, found

    return send


@pytest.mark.parametrize("into", [Item, Struct, Model, PydanticDataclass])
async def test_the_body_has_the_type_that_was_asked_for_and_can_be_read_again(post, into):
    body = {"name": "a", "price": 1.5}
    status, text, _ = await post(body, into)
    assert status == 200
    found = json.loads(text)
    assert (found["type"], found["again"]) == (into.__name__, body)
    assert "price=1.5" in found["value"]


async def test_a_function_makes_the_value(post):
    assert json.loads((await post("abc", upper))[1])["value"] == "'ABC'"
    assert await refusal(post, 5, upper) == (422, "$.here: expected a string\n")
    assert await refusal(post, "bad", upper) == (422, "$: not this one\n")


async def refusal(post, *arguments, **options) -> tuple[int, str]:
    status, text, _ = await post(*arguments, **options)
    return status, text


@pytest.mark.parametrize(
    ("into", "value", "wrong", "text"),
    [
        (int, 5, True, "$: expected an integer, not true or false\n"),
        (str, "a", 5, "$: expected a string, not an integer\n"),
        (dict, {"a": [1]}, [], "$: expected an object, not an array\n"),
        (list[int], [1, 2], [1, "a"], "$[1]: expected an integer, not a string\n"),
        (dict[str, bool], {"a": True}, {"a": 1}, "$.a: expected true or false, not an integer\n"),
        (list[list[float]], [[1.5]], [[None]], "$[0][0]: expected a number, not null\n"),
    ],
)
async def test_a_json_type_is_checked(post, into, value, wrong, text):
    assert json.loads((await post(value, into))[1])["value"] == repr(value)
    assert await refusal(post, wrong, into) == (422, text)


@pytest.mark.parametrize("into", [Struct, Model, PydanticDataclass])
async def test_a_wrong_shape_of_another_library_is_a_422_with_the_place(post, into):
    status, text = await refusal(post, {"name": "a", "price": "secret"}, into)
    assert status == 422
    assert text.startswith("$.price: ")
    assert "secret" not in text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([], "$: expected an object, not an array"),
        (None, "$: expected an object, not null"),
        ({}, "$.items: this member is missing"),
        ({"items": {}}, "$.items: expected an array, not an object"),
        ({"items": [{"name": "a", "price": 1}, 5]}, "$.items[1]: expected an object, not an integer"),
        ({"items": [{"name": "a", "price": True}]}, "$.items[0].price: expected a number, not true or false"),
        ({"items": [{"name": None, "price": 1}]}, "$.items[0].name: expected a string, not null"),
        ({"items": [{"name": "a", "price": 1, "x": 1}]}, "$.items[0].x: there is no such member"),
        ({"items": [{"name": "a", "price": 1, "tags": [1]}]}, "$.items[0].tags[0]: expected a string, not an integer"),
        ({"items": [{"price": "a"}]}, "$.items[0].name: this member is missing\n$.items[0].price: expected a number, "),
        ({"items": []}, "$: an order has items"),
        (
            {"items": [{"name": "a", "price": 1}], "customer": 5},
            "$.customer: expected a string or null, not an integer",
        ),
        ({"items": [{"name": "a", "price": 1}], "kind": "old"}, "$.kind: expected 'new' or 'used'"),
        ({"items": [{"name": "a", "price": 1}], "extra": {"n": 1.5}}, "$.extra.n: expected an integer, not a number"),
    ],
)
async def test_a_wrong_shape_of_a_dataclass_is_a_422_with_each_place(post, body, text):
    status, found = await refusal(post, body, Order)
    assert (status, found[: len(text)]) == (422, text)


async def test_nested_dataclasses_are_made(post):
    body = {"items": [{"name": "a", "price": 1, "tags": ["x"]}], "customer": "c", "kind": "used", "any": [1, {}]}
    status, text, _ = await post(body, Order)
    assert status == 200
    items = [Item("a", 1.0, ["x"])]
    assert json.loads(text)["value"] == repr(Order(items, "c", "used", {}, [1, {}]))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "The body is not JSON: Expecting value (line 1, column 1).\n"),
        (b'{"a": 1,\n "b" 2}', "The body is not JSON: Expecting ':' delimiter (line 2, column 6).\n"),
        (b'"\xff"', "The body is not UTF-8 (byte 1).\n"),
        (b"NaN", "The body is not JSON: NaN is not JSON.\n"),
        (b"[" * 100_000, "The body is nested too deeply.\n"),
        (b'["\\ud800"]', "The body is not JSON: half of a surrogate pair is not a character.\n"),
        (b'{"\\uDFFF": 1}', "The body is not JSON: half of a surrogate pair is not a character.\n"),
        (b'"\\udf75\\ud83c"', "The body is not JSON: half of a surrogate pair is not a character.\n"),
        (b'"\xed\xa0\x80"', "The body is not UTF-8 (byte 1).\n"),
        ('"a"'.encode("utf-16"), "The body is not UTF-8 (byte 0).\n"),
    ],
)
async def test_what_is_not_json_is_a_400_with_the_place(post, body, text):
    assert await refusal(post, body) == (400, text)


@pytest.mark.parametrize("depth", [10, 250, 300, 900, 5000])
async def test_a_body_that_is_nested_too_deeply_for_its_type_is_a_400(post, depth, raised):
    body = b'{"children":[' * depth + b"]}" * depth
    status, text = await refusal(post, body, Recursive)
    assert raised() == []
    assert status in ((200,) if depth == 10 else (400,) if depth == 5000 else (200, 400))
    assert status == 200 or text == "The body is nested too deeply.\n"


@pytest.mark.parametrize("into", [Item, dict[str, int], Model, Struct])
async def test_half_of_a_surrogate_pair_that_another_parser_accepts_in_a_member_is_a_422(post, into, raised):
    body = b'{"name": "a", "price": "\\ud800", "\\udfff": "x"}'
    status, text = await refusal(post, body, into, loads=json.loads)
    assert (status, raised()) == (422, []), text


@pytest.mark.parametrize("body", [b'"\\ud83c\\udf75"', '"🍵"'.encode()])
async def test_a_character_of_two_surrogates_is_one(post, body):
    status, text, _ = await post(body, str)
    assert (status, json.loads(text)["value"]) == (200, "'🍵'")


async def test_a_number_that_no_float_has_is_a_422(post):
    status, text = await refusal(post, {"name": "a", "price": 10**400})
    assert (status, text) == (422, "$.price: the number is too large\n")


@pytest.mark.parametrize("into", [Item, list[Item], Model])
async def test_of_very_many_mistakes_the_first_are_listed(post, into):
    mistakes = [{f"member{n}": 1} for n in range(500)] if into is not Item else {f"member{n}": 1 for n in range(5000)}
    status, text = await refusal(post, mistakes, into)
    assert status == 422
    assert text.count("\n") <= 101


@dataclass
class Plus:
    left: Plus | Minus | int
    right: Plus | Minus | int


@dataclass
class Minus:
    left: Plus | Minus | int
    right: Plus | Minus | int


@pytest.mark.parametrize("wrong", [True, False])
def test_nested_unions_take_time_in_proportion_to_the_body(wrong):
    """Each class was tried again in each class around it: a second for 20 levels, a year for 45."""
    value: object = "wrong" if wrong else 1
    for _ in range(60):
        value = {"left": value, "right": 1}
    started = time.thread_time()
    if wrong:
        with pytest.raises(InvalidBody):
            _converter(Plus)(value)
    else:
        assert type(_converter(Minus)(value)) is Minus
    assert time.thread_time() - started < 1


def test_equal_objects_in_several_places_are_made_for_each_of_them():
    made = _converter(Order)({"items": [{"name": "a", "price": 1}, {"name": "a", "price": 1}]})
    assert made.items[0] == made.items[1]
    assert made.items[0] is not made.items[1]


async def test_another_parser_can_be_used(post):
    status, text = await refusal(post, b"{", loads=msgspec.json.decode)
    assert (status, text) == (400, "The body is not JSON: Input data was truncated.\n")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
async def test_another_content_type_is_a_415(post, kind):
    headers = {"Content-Type": "text/plain" if kind is None else kind}
    status, text, found = await post({"name": "a", "price": 1}, headers=headers)
    assert (status, text, found["Accept"]) == (415, "Send the body as application/json.\n", "application/json")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
async def test_variants_of_the_content_type_are_accepted(post, kind):
    assert (await post({"name": "a", "price": 1}, headers={"Content-Type": kind}))[0] == 200


START = "POST / HTTP/1.1\nHost: x\nContent-Type: application/json\n"


async def head_of(server, request: str) -> bytes:
    """Send a request whose body does not end, and return the headers of the response."""
    raw = await server.connect(request)
    head = await raw.until(b"\r\n\r\n")
    await raw.close()
    return head


async def test_a_body_that_is_too_large_is_a_413(post, site):
    assert (await post(b'"%s"' % (b"x" * 100), upper, max_size=102))[0] == 200
    assert (await post(b'"%s"' % (b"x" * 101), upper, max_size=102))[0] == 413
    assert (await post(b'"%s"' % (b"x" * 101), upper, client_max_size=102))[0] == 413
    server = await site(json_body(BODY, upper, max_size=10), handler=echo)
    for rest in (
        f"Transfer-Encoding: chunked\n\n14\n{'x' * 20}\n",  # refused before its end
        "Content-Length: 1000000\n\n",  # refused before the body arrives
    ):
        assert (await head_of(server, f"{START}{rest}")).startswith(b"HTTP/1.1 413")


async def test_a_body_that_does_not_arrive_is_a_408(site):
    server = await site(json_body(BODY, upper, read_timeout=0.01), handler=echo)
    assert (await head_of(server, f"{START}Content-Length: 9\n\n12")).startswith(b"HTTP/1.1 408")


async def test_a_body_that_was_read_before_is_limited_too(serve, fetch):
    async def read(request: web.Request, handler) -> web.StreamResponse:
        await request.read()
        return await handler(request)

    app = application("route", [json_body(BODY, upper, max_size=5)], echo)
    app.middlewares.append(web.middleware(read))

    async def chunks(body: bytes):  # without Content-Length
        yield body

    server = await serve(app)
    assert (await fetch(server, "POST", data=chunks(b'"abc"'), headers=HEADERS))[0] == 200
    assert (await fetch(server, "POST", data=chunks(b'"abcd"'), headers=HEADERS))[0] == 413


async def test_a_get_request_is_refused(site, fetch):
    assert (await fetch(await site(json_body(BODY, upper), handler=echo)))[0] == 415


async def test_a_stream_is_made_of_it(site, fetch):
    @event_stream
    async def handler(context):
        yield context[BODY]
        yield await context.request.text()

    server = await site(json_body(BODY, upper), handler=handler)
    status, _, text = await fetch(server, "POST", data='"abc"', headers=HEADERS)
    assert (status, text) == (200, 'data: ABC\n\ndata: "abc"\n\n')
    assert (await fetch(server, "POST", data="5", headers=HEADERS))[0] == 422


async def test_an_error_of_a_function_that_says_nothing_of_the_body_is_one_of_the_server(site, fetch, raised):
    def broken(value: object) -> object:
        raise KeyError("x")

    for options in {"into": broken}, {"into": upper, "loads": broken}:
        server = await site(json_body(BODY, **options), handler=echo)
        assert (await fetch(server, "POST", data="1", headers=HEADERS))[0] == 500
    assert [type(error) for error in raised()] == [KeyError, KeyError]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)


@dataclass
class Leaf:
    a: int
    b: str | None = None


@dataclass
class Tree:
    a: list[Leaf | float] | None
    b: dict[str, bool]
    c: Leaf | None = None


@given(JSON | st.fixed_dictionaries({"a": JSON, "b": st.dictionaries(st.text(), st.booleans()), "c": JSON}))
def test_a_dataclass_accepts_what_pydantic_accepts_in_strict_mode(value):
    """The reference forbids additional members. It takes JSON, in which an integer is a number, too."""
    configured = pydantic.ConfigDict(strict=True, extra="forbid")
    leaf = pydantic.dataclasses.dataclass(config=configured)(dataclasses.make_dataclass("Leaf", _fields_of(Leaf)))
    fields = [("a", list[leaf | float] | None), ("b", dict[str, bool]), ("c", leaf | None, field(default=None))]
    tree = pydantic.dataclasses.dataclass(config=configured)(dataclasses.make_dataclass("Tree", fields))
    try:
        expected = dataclasses.asdict(pydantic.TypeAdapter(tree).validate_json(json.dumps(value)))
    except pydantic.ValidationError:
        with pytest.raises(ValueError):
            _converter(Tree)(value)
    else:
        assert dataclasses.asdict(_converter(Tree)(value)) == expected


def _fields_of(_):
    return [("a", int), ("b", str | None, field(default=None))]


@dataclass
class Unknown:
    at: complex


@dataclass
class NestedUnknown:
    many: list[Unknown]


@dataclass
class IntegerKeys:
    many: dict[int, str]


def test_a_dataclass_may_contain_itself():
    value = {"children": [{"children": []}]}
    assert _converter(Recursive)(value) == Recursive([Recursive([])])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("body", Item), {}, TypeError, "key is a ContextKey, .* not 'body'"),
        ((BODY, 5), {}, TypeError, "into is a function, not 5"),
        ((BODY, list[complex]), {}, TypeError, "into is a <class 'complex'>, which json_body cannot check"),
        ((BODY, list[Struct]), {}, TypeError, "into is a <class '.*Struct'>, which json_body cannot check"),
        ((BODY, Unknown), {}, TypeError, "Unknown.at is a <class 'complex'>, which json_body cannot check"),
        ((BODY, NestedUnknown), {}, TypeError, "Unknown.at is a"),
        ((BODY, IntegerKeys), {}, TypeError, "IntegerKeys.many is a"),
        ((BODY, Item), {"max_size": 0}, ValueError, "max_size is 1 or more, not 0"),
        ((BODY, Item), {"loads": "json"}, TypeError, "loads is a function, not 'json'"),
        ((BODY, Item), {"read_timeout": 0}, ValueError, "read_timeout is more than 0 seconds, not 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        json_body(*arguments, **options)
