"""``Context``: a mapping, its execution ID, copies, and the arguments of its methods."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import pytest

from aiohttp_interceptors.chain import Context, ContextKey, execute
from aiohttp_interceptors.facts import StageRan
from aiohttp_interceptors.interceptor import Interceptor

USER: ContextKey[str] = ContextKey("user")
VARIABLE: ContextVar[int] = ContextVar("VARIABLE", default=0)


class TestValues:
    def test_a_context_is_a_mutable_mapping(self) -> None:
        context = Context({"a": 1})
        context["b"] = 2
        context.update(c=3)
        del context["a"]
        assert isinstance(context, MutableMapping)
        assert dict(context) == {"b": 2, "c": 3}
        assert len(context) == 2
        assert list(context) == ["b", "c"]
        assert context.setdefault("d", 4) == 4
        assert context.pop("d") == 4
        assert "d" not in context

    def test_a_context_is_true_also_without_values(self) -> None:
        assert Context()
        assert len(Context()) == 0

    def test_keys_may_be_context_keys_or_strings(self) -> None:
        context = Context()
        context[USER] = "alice"
        context["user"] = 42
        assert context[USER] == "alice"
        assert context["user"] == 42
        assert context.get(USER) == "alice"

    def test_get_takes_a_default(self) -> None:
        assert Context().get(USER) is None
        assert Context().get(USER, "anonymous") == "anonymous"
        assert Context().get("user", 0) == 0

    def test_two_keys_with_the_same_name_are_different(self) -> None:
        context = Context()
        context[USER] = "alice"
        assert ContextKey("user") not in context

    @pytest.mark.parametrize("key", [USER, "user"])
    def test_an_absent_key_is_a_key_error_with_the_key(self, key: Any) -> None:
        with pytest.raises(KeyError) as caught:
            Context()[key]
        assert caught.value.args == (key,)
        with pytest.raises(KeyError):
            del Context()[key]

    def test_the_repr_of_a_key_has_its_name(self) -> None:
        assert repr(USER) == "<ContextKey 'user'>"

    @pytest.mark.parametrize("name", [None, 42, b"user"])
    def test_the_name_of_a_key_is_a_str(self, name: Any) -> None:
        with pytest.raises(TypeError, match=f"a ContextKey's name is a str, not {name!r}"):
            ContextKey(name)

    @pytest.mark.parametrize("key", [42, None, ("a",)])
    def test_other_keys_are_a_type_error(self, key: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context()[key] = "value"
        assert str(caught.value) == f"a context's key is a ContextKey or a str, not {key!r}"
        with pytest.raises(TypeError, match="a context's key is a ContextKey or a str"):
            Context({key: "value"})

    def test_initial_values_are_a_mapping_and_are_copied(self) -> None:
        values: Mapping[str, object] = {"user": "alice"}
        context = Context(values)
        context["user"] = "bob"
        assert values == {"user": "alice"}
        with pytest.raises(TypeError, match=r"a context's values are a mapping, not \['user'\]"):
            Context(["user"])  # type: ignore[arg-type]

    def test_the_repr_has_execution_id_and_values(self) -> None:
        assert repr(Context({"user": "alice"}, execution_id="run 1")) == "<Context run 1 {'user': 'alice'}>"

    async def test_the_values_hold_nothing_of_the_chain(self) -> None:
        seen: list[dict[object, object]] = []

        def enter(context: Context) -> None:
            context.terminate_when(lambda context: False)
            context.enqueue(Interceptor("b", enter=lambda context: seen.append(dict(context))))
            context.bind(VARIABLE, 1)
            context.add_observer(lambda fact: None)
            context.with_error(KeyError())

        def handle(context: Context, exception: Exception) -> None:
            seen.append(dict(context))

        context = await execute(Context({"a": 1}), Interceptor("a", enter=enter, error=handle))
        assert [*seen, dict(context)] == [{"a": 1}, {"a": 1}]

    def test_a_snapshot_copies_dictionaries_and_shares_other_values(self) -> None:
        shared: list[int] = []
        context = Context({"user": {"name": {"first": "Al"}}, "list": shared})
        snapshot = context.snapshot()
        context["user"]["name"]["first"] = "Bo"  # type: ignore[index]
        assert snapshot == {"user": {"name": {"first": "Al"}}, "list": []}
        assert snapshot["list"] is shared


class TestExecutionId:
    def test_each_context_has_its_own_execution_id(self) -> None:
        ids = {Context().execution_id for _ in range(100)}
        assert len(ids) == 100
        assert all(isinstance(made, int) and 0 <= made < 2**53 for made in ids)  # a number that JSON keeps

    def test_a_given_execution_id_is_kept(self) -> None:
        assert Context(execution_id="request 7").execution_id == "request 7"
        assert Context(execution_id="").execution_id == ""
        assert Context(execution_id=0).execution_id == 0

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_process_has_other_execution_ids(self) -> None:
        ours = {Context().execution_id for _ in range(10)}
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, repr([Context().execution_id for _ in range(10)]).encode())
            finally:
                os._exit(0)  # the child must not continue pytest
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            theirs = set(ast.literal_eval(pipe.read()))
        ours |= {Context().execution_id for _ in range(1000)}
        assert len(theirs) == 10
        assert not ours & theirs


class TestCopy:
    def test_a_copy_has_the_same_values_and_execution_id(self) -> None:
        context = Context({"user": "alice"}, execution_id="run 1")
        copy = context.copy()
        copy["user"] = "bob"
        assert context["user"] == "alice"
        assert copy.execution_id == "run 1"
        assert type(copy) is Context

    def test_a_copy_has_the_same_class(self) -> None:
        class Mine(Context):
            pass

        assert type(Mine().copy()) is Mine

    async def test_a_copy_is_in_no_execution(self) -> None:
        queues: list[tuple[object, ...]] = []

        def enter(context: Context) -> None:
            queues.extend([context.queue, context.copy().queue])

        await execute(None, Interceptor("a", enter=enter), Interceptor("b", enter=lambda context: None))
        assert [len(queue) for queue in queues] == [1, 0]

    async def test_a_copy_has_observers_error_and_suppressed(self) -> None:
        first, second, copies, facts = KeyError(1), KeyError(2), [], []

        def replace(context: Context, exception: Exception) -> None:
            raise second

        def fail(context: Context) -> None:
            raise first

        context = Context()
        context.add_observer(facts.append)
        await execute(
            context,
            Interceptor("a", error=lambda context, _: copies.append(context.copy())),
            Interceptor("b", enter=fail, error=replace),
        )
        (copy,) = copies
        assert [failure.exception for failure in copy.suppressed] == [first]
        assert copy.error.exception is second
        await execute(copy, Interceptor("c", enter=lambda context: None))
        assert [fact.interceptor for fact in facts] == ["a", "c"]


class TestMethods:
    @pytest.mark.parametrize("method", ["enqueue", "inject"])
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (None, "None is not an interceptor"),
            (lambda context: None, "<lambda> at .* is not an interceptor; use Interceptor"),
            ({"name": "a"}, r"\{'name': 'a'\} is not an interceptor"),
            ({Interceptor("a", enter=lambda context: None)}, r"\{<Interceptor 'a': enter>\} is not an interceptor"),
            ("name", "'name' is not an interceptor"),
            (b"name", "b'name' is not an interceptor"),
            (Context(), "<Context .*> is not an interceptor"),
            (Interceptor, "Interceptor'> is a class; pass an instance of it"),
            ([None], "None is not an interceptor"),
        ],
    )
    def test_a_wrong_interceptor_is_a_type_error_and_nothing_is_queued(
        self, method: str, wrong: Any, message: str
    ) -> None:
        """One wrong item among good ones is enough."""
        context = Context()
        good = Interceptor("good", enter=lambda context: None)
        context.enqueue(good)
        for arguments in [(wrong,), (good, wrong), ([good, wrong],)]:
            with pytest.raises(TypeError, match=message):
                getattr(context, method)(*arguments)
        assert context.queue == (good,)

    @pytest.mark.parametrize("predicate", [None, True, "done"])
    def test_a_predicate_is_a_function(self, predicate: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().terminate_when(predicate)
        assert str(caught.value) == f"terminate_when takes a plain function of the context, not {predicate!r}"

    def test_a_predicate_cannot_be_an_async_function(self) -> None:
        async def predicate(context: Context) -> bool:
            return False

        with pytest.raises(TypeError, match="terminate_when takes a plain function of the context, not <function"):
            Context().terminate_when(predicate)

    @pytest.mark.parametrize("observer", [None, "observer"])
    def test_an_observer_is_a_function(self, observer: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().add_observer(observer)
        assert str(caught.value) == f"an observer is a plain function of one fact, not {observer!r}"

    def test_an_observer_cannot_be_an_async_function(self) -> None:
        async def observer(fact: StageRan) -> None: ...

        with pytest.raises(TypeError, match="an observer is a plain function of one fact, not <function"):
            Context().add_observer(observer)

    @pytest.mark.parametrize("variable", ["VARIABLE", None, 1])
    def test_bind_takes_a_context_variable(self, variable: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().bind(variable, 1)
        assert str(caught.value) == f"bind takes a contextvars.ContextVar, not {variable!r}"

    @pytest.mark.parametrize("exception", [None, "boom", ValueError, KeyboardInterrupt()])
    def test_with_error_takes_an_exception(self, exception: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().with_error(exception)
        assert str(caught.value) == f"with_error takes an exception, not {exception!r}"

    @pytest.mark.parametrize(
        "call", [lambda context: context.bind(VARIABLE, 1), lambda context: context.with_error(KeyError())]
    )
    @pytest.mark.parametrize("prepare", [lambda context: None, lambda context: context.enqueue()])
    async def test_bind_and_with_error_need_a_running_chain(
        self, call: Callable[[Context], object], prepare: Callable[[Context], object]
    ) -> None:
        context = Context(execution_id="run 1")
        prepare(context)
        with pytest.raises(
            RuntimeError, match=r"\(\) is for a stage of a running chain; <Context run 1 {}> is in none"
        ):
            call(context)
        await execute(context)
        with pytest.raises(RuntimeError, match="is for a stage of a running chain"):
            call(context)

    async def test_with_error_returns_the_context(self) -> None:
        returned: list[object] = []
        context = Context()
        await execute(
            context,
            Interceptor(
                "a",
                enter=lambda context: returned.append(context.with_error(KeyError())),
                error=lambda context, _: None,
            ),
        )
        assert returned[0] is context
        assert len(returned) == 1

    def test_a_new_context_has_no_queue_error_or_suppressed_failures(self) -> None:
        context = Context()
        assert (context.queue, context.error, context.suppressed) == ((), None, ())
