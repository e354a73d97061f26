from __future__ import annotations

import ast
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


def test_the_names_that_users_import_are_there():
    assert STABLE <= set(aiohttp_interceptors.__all__) <= set(dir(aiohttp_interceptors))


@pytest.mark.parametrize("name", aiohttp_interceptors.__all__)
def test_every_public_name_can_be_imported(name):
    value = getattr(aiohttp_interceptors, name)
    assert isinstance(value, web.AppKey) or value.__module__.startswith("aiohttp_interceptors.")


def test_a_type_checker_sees_the_same_names_from_the_same_homes():
    tree = ast.parse(Path(aiohttp_interceptors.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in checked.body for alias in node.names}
    assert imported == aiohttp_interceptors._HOME


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'aiohttp_interceptors' has no attribute 'Hubb'"):
        aiohttp_interceptors.Hubb  # noqa: B018  # it is what is tested
