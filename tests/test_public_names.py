"""The public names: their tiers, their imports, and the sections of their docstrings."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import enum
import inspect
import itertools
import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from aiohttp import web

import aiohttp_interceptors

STABLE = {
    *("Interceptor", "Context", "ContextKey", "execute", "before", "after", "around", "on_error", "debug_observer"),
    *("RequestContext", "interceptor_middleware", "intercept", "as_handler", "setup"),
    *("Event", "EventChannel", "ChannelFull", "CloseReason", "start_event_stream", "event_stream"),
    *("EventStreamResponse", "Drain", "StopReconnecting", "EventTooLarge", "Stream", "StreamStatistics", "STREAMS"),
    *("SlidingQueue", "DroppingQueue", "ConflatingQueue", "dropped_comment", "dropped_event"),
    *("Hub", "start_topic_stream", "Snapshot", "Gap", "GapReason", "Record", "Subscriber", "HubStatistics"),
    *("StreamOpened", "StreamClosed", "StreamRefused", "EventsDropped", "HubUp", "HubDown", "HubResumed"),
    *("BrokerError", "BrokerDown", "BrokerRefused", "OutcomeUnknown"),
}
TIERS = ("Daily", "Hub", "Operating", "Advanced")
MODULES = [
    "aiohttp_interceptors",
    "aiohttp_interceptors.testing",
    "aiohttp_interceptors.ready",
    *(f"aiohttp_interceptors.observe.{name}" for name in ("prometheus", "opentelemetry", "inspector")),
    *(f"aiohttp_interceptors.brokers.{name}" for name in ("sqlite", "redis", "postgres", "nats", "memory")),
]


# Names.


def test_stable_names_are_public():
    assert STABLE <= set(aiohttp_interceptors.__all__) <= set(dir(aiohttp_interceptors))


@pytest.mark.parametrize("name", aiohttp_interceptors.__all__)
def test_each_public_name_can_be_imported(name):
    value = getattr(aiohttp_interceptors, name)
    assert isinstance(value, web.AppKey) or value.__module__.startswith("aiohttp_interceptors.")


def test_type_checkers_see_the_same_imports():
    tree = ast.parse(Path(aiohttp_interceptors.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in checked.body for alias in node.names}
    assert imported == aiohttp_interceptors._MODULE_OF


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'aiohttp_interceptors' has no attribute 'Hubb'"):
        aiohttp_interceptors.Hubb  # noqa: B018  # raises


def test_each_public_name_is_in_one_tier_of_the_docstring():
    paragraphs = inspect.getdoc(aiohttp_interceptors).split("\n\n")
    tiers = {match[1]: text for text in paragraphs if (match := re.match(r"\*\*(\w+)\.\*\* ", text))}
    assert tuple(tiers) == TIERS
    names = Counter(name for text in tiers.values() for name in re.findall(r"``(\w+)``", text))
    assert names == Counter(aiohttp_interceptors.__all__)


# Docstrings.


def public_values():
    """Yield the qualified names and the values of all public names."""
    seen = set()
    for module_name in MODULES:
        module = import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) not in seen and getattr(value, "__module__", "").startswith("aiohttp_interceptors"):
                seen.add(id(value))
                yield name, value


def is_inherited_from_another_package(cls, name):
    """Whether a method overrides one of another package, which documents it."""
    return any(
        name in vars(base) and not base.__module__.startswith("aiohttp_interceptors")
        for base in cls.__mro__
        if base is not object
    )


def own_methods(cls):
    """Yield the names and the functions of the public methods that this package defines."""
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("aiohttp_interceptors"):
            continue
        for name, member in vars(base).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if name.startswith("_") or not inspect.isfunction(function) or getattr(cls, name, None) is None:
                continue
            if not is_inherited_from_another_package(cls, name):
                yield name, inspect.getattr_static(cls, name)


def callables():
    """Yield the qualified name, the docstring and the names of the arguments of each public callable."""
    for name, value in public_values():
        if inspect.isfunction(value):
            yield name, inspect.getdoc(value), arguments_of(value)
        elif inspect.isclass(value):
            constructor = inspect.getattr_static(value, "__init__")
            is_record = dataclasses.is_dataclass(value) or issubclass(value, enum.Enum | tuple)
            if inspect.isfunction(constructor) and constructor.__module__.startswith("aiohttp_") and not is_record:
                owner = next(base for base in value.__mro__ if vars(base).get("__init__") is constructor)
                doc = inspect.getdoc(value if "Args:" in (value.__doc__ or "") else owner)
                yield name, doc, arguments_of(constructor, skip=1)
            for method_name, member in dict(own_methods(value)).items():
                is_bound = not isinstance(member, staticmethod)
                function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                doc = inspect.getdoc(getattr(value, method_name))
                yield f"{name}.{method_name}", doc, arguments_of(function, skip=int(is_bound))


def arguments_of(function, skip=0):
    return [name for name in list(inspect.signature(function).parameters)[skip:] if not name.startswith("_")]


def sections_of(doc):
    """Return the text before the first section of a Google-style docstring, and the text of each section."""
    parts = re.split(
        r"^(Args|Returns|Yields|Raises|Attributes|Example|Examples|Note):\n", doc or "", flags=re.MULTILINE
    )
    return parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))


CALLABLES = list(callables())
RECORDS = [
    (name, value)
    for name, value in public_values()
    if inspect.isclass(value) and (dataclasses.is_dataclass(value) or issubclass(value, tuple))
]


@pytest.mark.parametrize(("name", "doc", "arguments"), CALLABLES, ids=[name for name, *_ in CALLABLES])
def test_each_argument_is_described(name, doc, arguments):
    _, sections = sections_of(doc)
    missing = [
        argument
        for argument in arguments
        if not re.search(rf"^\s+\*{{0,2}}{argument}:", sections.get("Args", ""), re.MULTILINE)
    ]
    assert not missing, f"the docstring of {name} does not describe {', '.join(missing)} in Args:"


EXCEPTIONS = {
    name
    for namespace in (
        vars(builtins),
        {name: getattr(aiohttp_interceptors, name) for name in aiohttp_interceptors.__all__},
    )
    for name, value in namespace.items()
    if inspect.isclass(value) and issubclass(value, BaseException)
}


@pytest.mark.parametrize(("name", "doc"), [entry[:2] for entry in CALLABLES], ids=[name for name, *_ in CALLABLES])
def test_exceptions_are_described_in_raises(name, doc):
    text, sections = sections_of(doc)
    raised = {
        exception
        for sentence in re.split(r"(?<=\.)\s+", text)
        if sentence.startswith("Raises ")
        for exception in re.findall(r"``(\w+)``", sentence)
        if exception in EXCEPTIONS
    }
    missing = [exception for exception in sorted(raised) if exception not in sections.get("Raises", "")]
    assert not missing, f"the docstring of {name} mentions {', '.join(missing)} and not in Raises:"


@pytest.mark.parametrize(("name", "cls"), RECORDS, ids=[name for name, _ in RECORDS])
def test_each_field_is_described(name, cls):
    """A field has a string literal below it, or an entry in ``Attributes:`` or ``Args:``."""
    _, sections = sections_of(inspect.getdoc(cls))
    text = sections.get("Attributes", "") + sections.get("Args", "")
    described = set(re.findall(r"^\s+(\w+):", text, re.MULTILINE))
    for base in cls.__mro__:
        if base.__module__.startswith("aiohttp_interceptors"):
            described |= fields_with_docstrings(base)
    fields = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else cls._fields
    missing = [field for field in fields if field not in described and not field.startswith("_")]
    assert not missing, f"the fields {', '.join(missing)} of {name} are not described"


def fields_with_docstrings(cls):
    """Return the annotated names of a class that a string literal follows."""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text())
    body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return {
        node.target.id
        for node, following in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }
