"""OpenAPI descriptions of streams, validated as OpenAPI 3.2, and against the events that the streams send."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, ClassVar, Generic, Literal, NewType, TypedDict, TypeVar, Union

import jsonschema
import msgspec
import openapi_spec_validator
import pydantic
import pytest
from aiohttp import web
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from aiohttp_interceptors import Event, default_encoder, event_stream, openapi


@dataclasses.dataclass
class Author:
    name: str


@dataclasses.dataclass
class Token:
    text: str
    author: Author


class Done(pydantic.BaseModel):
    __event_name__: ClassVar[str] = "done"
    tokens: int


class Usage(msgspec.Struct):
    seconds: float


class Plain(TypedDict):
    a: int


def document(fragment):
    """Return a whole OpenAPI document with one operation."""
    return {
        "openapi": "3.2.0",
        "info": {"title": "Streams", "version": "1"},
        "paths": {"/": {"get": {"responses": fragment["responses"]}}},
        "components": {"schemas": fragment["schemas"]},
    }


def branches_of(fragment):
    item = fragment["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
    return item.get("oneOf", [item])


def check_document(fragment) -> None:
    """Check that the fragment is valid OpenAPI 3.2, and its schemas valid JSON Schema, which the former leaves open."""
    openapi_spec_validator.validate(document(fragment))
    schemas = [*branches_of(fragment), *fragment["schemas"].values()]
    contents = [branch["properties"]["data"].get("contentSchema", {}) for branch in branches_of(fragment)]
    for schema in (*schemas, *contents):
        jsonschema.Draft202012Validator.check_schema(schema)


def check_event(event: Event, fragment) -> None:
    """Check that exactly one branch of the item schema describes an event, its data included."""
    fields = {"event": event.name, "data": event.data, "id": event.id}
    instance = {name: value for name, value in fields.items() if value is not None}
    matching = []
    for branch in branches_of(fragment):
        validator = jsonschema.Draft202012Validator({**branch, "components": {"schemas": fragment["schemas"]}})
        if not validator.is_valid(instance):
            continue
        content = branch["properties"]["data"].get("contentSchema")
        if content is not None:
            schema = {**content, "components": {"schemas": fragment["schemas"]}}
            jsonschema.validate(json.loads(event.data), schema, jsonschema.Draft202012Validator)
        matching.append(branch)
    assert len(matching) == 1, (event, matching)


@event_stream
async def answers(request) -> AsyncIterator[Token | Done | Usage]:
    yield Done(tokens=1)


def test_a_union_of_classes_is_a_union_of_events():
    fragment = openapi(answers)
    check_document(fragment)
    names = [branch["properties"]["event"]["const"] for branch in branches_of(fragment)]
    assert names == ["Token", "done", "Usage"]
    assert "Author" in fragment["schemas"]
    for value in (Token("a", Author("ada")), Done(tokens=2), Usage(1.5)):
        check_event(default_encoder(value), fragment)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Token, [Token("a", Author("ada"))]),
        (Done, [Done(tokens=1)]),
        (Usage, [Usage(1.0)]),
        (Plain, [Plain(a=1)]),
        (dict[str, int], [{"a": 1}]),
        (list[Author], [[Author("ada")]]),
        (int, [5]),
        (str, ["text"]),
        (Event, [Event("text", "name")]),
    ],
    ids=lambda kind: getattr(kind, "__name__", None),
)
def test_each_kind_of_value_is_described_as_it_is_sent(kind, values):
    def sync(request) -> Iterator[kind]:
        yield from values

    sync.__annotations__["return"] = Iterator[kind]
    fragment = openapi(event_stream(sync), description="Numbers.")
    check_document(fragment)
    assert fragment["responses"]["200"]["description"] == "Numbers."
    for value in values:
        check_event(default_encoder(value), fragment)


def described(annotation):
    """Return the description of a generator that yields what an annotation says."""

    async def generate(request):
        yield

    generate.__annotations__["return"] = annotation
    return openapi(event_stream(generate))


class Node(msgspec.Struct):
    children: list[Node] = []  # msgspec copies it


class Tree(pydantic.BaseModel):
    children: list[Tree] = []


class Sub(Done):
    extra: int = 0


class Shade(enum.StrEnum):
    RED = "red"


T = TypeVar("T")


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


@dataclasses.dataclass
class Generation(Generic[T]):
    item: T


@dataclasses.dataclass
class WithStruct:
    usage: Usage


Word = NewType("Word", str)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Token | str, [Token("a", Author("ada")), "text"]),
        (dict[str, int] | int, [{"a": 1}, 5]),
        (Done | Sub, [Done(tokens=1), Sub(tokens=1)]),
        (Union[Token, Union[Done, str]], [Token("a", Author("ada")), Done(tokens=1), "x"]),  # noqa: UP007
        (Annotated[Token, "doc"], [Token("a", Author("ada"))]),
        (Event | Token, [Event("x", "any"), Token("a", Author("ada"))]),
        (Node, [Node([Node()])]),
        (Tree, [Tree(children=[Tree()])]),
        (Page[int], [Page[int](items=[1])]),
        (Generation[int], [Generation(1)]),
        (Shade, [Shade.RED]),
        (Word, [Word("x")]),
        (Literal["a", "b"], ["a"]),
        (list[Usage], [[Usage(1.0)]]),
        (WithStruct, [WithStruct(Usage(1.0))]),
    ],
    ids=str,
)
def test_kinds_of_values_and_unions_of_them(kind, values):
    fragment = described(AsyncIterator[kind])
    check_document(fragment)
    for value in values:
        check_event(default_encoder(value), fragment)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type aliases are new in Python 3.12")
def test_type_aliases_are_what_they_stand_for():
    namespace = {"Token": Token, "Done": Done, "AsyncIterator": AsyncIterator}
    exec("type Item = Token | Done\ntype Items = AsyncIterator[Item]", namespace)
    item = namespace["Item"]
    for annotation in AsyncIterator[item], namespace["Items"]:
        names = [branch["properties"]["event"]["const"] for branch in branches_of(described(annotation))]
        assert names == ["Token", "done"]


def test_two_classes_of_one_name_are_refused():
    def module(field):
        author = dataclasses.make_dataclass("Writer", [(field, str)])
        return dataclasses.make_dataclass(f"Book{field}", [("writers", list[author])])

    with pytest.raises(ValueError, match="two classes are named 'Writer'"):
        described(AsyncIterator[module("a") | module("b")])


@pytest.mark.parametrize(("kind", "message"), [(Token | None, "None is not an event"), (object(), "no JSON schema")])
def test_what_cannot_be_sent_is_refused(kind, message):
    with pytest.raises(TypeError, match=message):
        described(AsyncIterator[kind])


def test_only_the_return_annotation_is_evaluated():
    """Other names may be imported for a type checker only."""
    namespace = {"AsyncIterator": AsyncIterator, "Done": Done}
    code = "async def generate(request: 'missing.Request') -> 'AsyncIterator[Done]':\n    yield"
    exec(code, namespace)
    assert len(branches_of(openapi(event_stream(namespace["generate"])))) == 1
    exec(code.replace("[Done]", "[Missing]"), namespace)
    with pytest.raises(TypeError, match="has a name that is not known in its module"):
        openapi(namespace["generate"])


def test_a_document_with_a_wrong_item_schema_is_invalid():
    """The validator of these tests knows itemSchema."""
    fragment = openapi(answers)
    fragment["responses"]["200"]["content"]["text/event-stream"]["itemSchema"] = 5
    with pytest.raises(OpenAPIValidationError):
        openapi_spec_validator.validate(document(fragment))


@pytest.mark.parametrize("annotation", [None, AsyncIterator, int], ids=repr)
def test_a_function_without_a_return_annotation_is_refused(annotation):
    async def untyped(request):
        yield "x"

    if annotation is not None:
        untyped.__annotations__["return"] = annotation
    with pytest.raises(TypeError, match=r"reads what .*untyped.* yields from its return annotation"):
        openapi(event_stream(untyped))


@pytest.mark.parametrize("missing", ["pydantic", "both"])
def test_msgspec_alone_makes_the_schemas_and_without_either_it_is_said(monkeypatch, missing):
    absent = {"pydantic"} if missing == "pydantic" else {"pydantic", "msgspec"}
    monkeypatch.setattr("aiohttp_interceptors.schema.find_spec", lambda name: None if name in absent else name)

    async def tokens(request) -> AsyncIterator[Token]:
        yield Token("a", Author("ada"))

    tokens.__annotations__["return"] = AsyncIterator[Token]
    if missing == "both":
        with pytest.raises(ImportError, match="needs pydantic or msgspec"):
            openapi(tokens)
        return
    fragment = openapi(tokens)
    check_document(fragment)
    check_event(default_encoder(Token("a", Author("ada"))), fragment)


@dataclasses.dataclass
class Answer:
    text: str


def test_a_handler_that_answers_with_json_has_the_schema_of_both():
    def join(values) -> Answer:
        return Answer("".join(values))

    @event_stream(as_json=join)
    async def chat(context) -> AsyncIterator[str]:
        yield "a"

    fragment = openapi(chat)
    content = fragment["responses"]["200"]["content"]
    assert list(content) == ["text/event-stream", "application/json"]
    validator = jsonschema.Draft202012Validator(content["application/json"]["schema"])
    assert validator.is_valid({"text": "a"})
    assert not validator.is_valid({"text": 1})


@pytest.mark.parametrize("annotation", [None, web.Response])
def test_an_answer_of_an_unknown_kind_may_be_any_json(annotation):
    def join(values):
        return values

    if annotation is not None:
        join.__annotations__["return"] = annotation

    @event_stream(as_json=join)
    async def chat(context) -> AsyncIterator[str]:
        yield "a"

    assert openapi(chat)["responses"]["200"]["content"]["application/json"] == {"schema": {}}


def test_an_annotation_with_an_unknown_name_is_refused_with_advice():
    async def chat(context) -> "AsyncIterator[Missing]":  # noqa: F821, UP037  # what is tested
        yield "a"

    with pytest.raises(TypeError, match="has a name that is not known in its module; define or import it there"):
        openapi(chat)
