"""``debug_observer`` logs what each stage changed."""

from __future__ import annotations

from typing import Any

import pytest

from aiohttp_interceptors.chain import Context, execute
from aiohttp_interceptors.debug import debug_observer
from aiohttp_interceptors.decorators import before
from aiohttp_interceptors.facts import StageRan
from aiohttp_interceptors.interceptor import Interceptor
from aiohttp_interceptors.testing import captured_logs

BEFORE: dict[str, Any] = {"gone": 1, "same": 2, "user": {"name": "alice", "password": "old", "roles": []}}
AFTER: dict[str, Any] = {"same": 2, "user": {"name": "bob", "password": "new", "roles": []}, "new": 3}


def changes(before: dict[Any, Any], after: dict[Any, Any], **options: Any) -> Any:
    """Return the changes that the observer logs."""
    with captured_logs() as logs:
        debug_observer(**options)(StageRan("run 1", "a", "enter", 0.5, before, after))
    return logs[0]["changes"]


def test_added_removed_and_changed_values_are_logged_by_path() -> None:
    with captured_logs() as logs:
        debug_observer()(StageRan("run 1", "a", "enter", 0.5, BEFORE, AFTER))
    assert logs == [
        {
            "event": "stage_ran",
            "log_level": "debug",
            "interceptor": "a",
            "stage": "enter",
            "execution_id": "run 1",
            "duration": 0.5,
            "changes": {
                "added": {("new",): 3},
                "removed": {("gone",): 1},
                "changed": {
                    ("user", "name"): {"from": "alice", "to": "bob"},
                    ("user", "password"): {"from": "old", "to": "new"},
                },
            },
        }
    ]


@pytest.mark.parametrize(
    "omit",
    [[("user", "password")], {("user", "password")}, lambda path: path[-1] == "password"],
    ids=["list", "set", "function"],
)
def test_values_at_omitted_paths_are_not_logged(omit: Any) -> None:
    """That they changed is logged."""
    assert changes(BEFORE, AFTER, omit=omit)["changed"] == {
        ("user", "name"): {"from": "alice", "to": "bob"},
        ("user", "password"): {"from": "...", "to": "..."},
    }
    assert changes({}, AFTER, omit=omit)["added"][("user", "password")] == "..."
    assert changes(BEFORE, {}, omit=omit)["removed"][("user", "password")] == "..."


def test_an_omitted_path_that_did_not_change_is_not_logged() -> None:
    assert changes(BEFORE, BEFORE | {"gone": 2}, omit=[("user",), ("same",)]) == {
        "changed": {("gone",): {"from": 1, "to": 2}}
    }


def test_an_omitted_dictionary_is_one_value() -> None:
    assert changes(BEFORE, AFTER, omit=[("user",)])["changed"] == {("user",): {"from": "...", "to": "..."}}


def test_none_is_a_value() -> None:
    assert changes({"a": None}, {"a": 1}) == {"changed": {("a",): {"from": None, "to": 1}}}
    assert changes({}, {"a": None}) == {"added": {("a",): None}}


def test_an_empty_dictionary_is_a_value() -> None:
    assert changes({}, {"user": {}}) == {"added": {("user",): {}}}
    assert changes({"user": {}}, {"user": {"name": "alice"}}) == {
        "added": {("user", "name"): "alice"},
        "removed": {("user",): {}},
    }


def test_equal_values_are_no_change() -> None:
    assert changes({"a": [1], "b": float("inf")}, {"a": [1], "b": float("inf")}) is None
    nan = float("nan")
    assert changes({"a": nan}, {"a": nan}) is None


def test_a_stage_that_changed_nothing_is_logged_without_changes() -> None:
    assert changes(BEFORE, BEFORE) is None


def test_with_changes_only_a_stage_without_changes_is_not_logged() -> None:
    observer = debug_observer(changes_only=True)
    with captured_logs() as logs:
        observer(StageRan("run 1", "a", "enter", 0.5, BEFORE, BEFORE))
        observer(StageRan("run 1", "b", "enter", 0.5, BEFORE, AFTER))
    assert [entry["interceptor"] for entry in logs] == ["b"]


async def test_in_a_chain_each_stage_has_its_own_changes() -> None:
    """Although the context is the same mutable object, with nested dictionaries."""

    def count(context: Context) -> None:
        context["count"] = {"n": context.get("count", {"n": 0})["n"] + 1}  # type: ignore[index]

    def count_in_place(context: Context) -> None:
        context["count"]["n"] += 1  # type: ignore[index]

    context = Context(execution_id="run 1")
    context.add_observer(debug_observer())
    with captured_logs() as logs:
        await execute(context, Interceptor("a", count, count_in_place), before(count_in_place))
    assert [(entry["interceptor"], entry["stage"], entry["changes"], entry["execution_id"]) for entry in logs] == [
        ("a", "enter", {"added": {("count", "n"): 1}}, "run 1"),
        ("count_in_place", "enter", {"changed": {("count", "n"): {"from": 1, "to": 2}}}, "run 1"),
        ("a", "leave", {"changed": {("count", "n"): {"from": 2, "to": 3}}}, "run 1"),
    ]


@pytest.mark.parametrize("omit", ["password", ["password"], [("user",), "password"], {"password": True}])
def test_omit_refuses_anything_but_paths(omit: Any) -> None:
    with pytest.raises(TypeError) as caught:
        debug_observer(omit=omit)
    assert str(caught.value) == f"omit takes paths, which are tuples of keys such as ('user', 'password'), not {omit!r}"
