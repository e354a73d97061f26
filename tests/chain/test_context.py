"""A context is a mapping with a few verbs; nothing of the chain shows in it."""

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

    def test_a_key_gives_a_typed_value_and_a_str_a_plain_one(self) -> None:
        context = Context()
        context[USER] = "alice"
        context["user"] = 42
        assert context[USER] == "alice"
        assert context["user"] == 42
        assert context.get(USER) == "alice"

    def test_get_has_a_default(self) -> None:
        assert Context().get(USER) is None
        assert Context().get(USER, "nobody") == "nobody"
        assert Context().get("user", 0) == 0

    def test_two_keys_of_one_name_are_two_keys(self) -> None:
        context = Context()
        context[USER] = "alice"
        assert ContextKey("user") not in context

    @pytest.mark.parametrize("key", [USER, "user"])
    def test_what_is_not_there_is_a_key_error_with_the_key(self, key: Any) -> None:
        with pytest.raises(KeyError) as caught:
            Context()[key]
        assert caught.value.args == (key,)
        with pytest.raises(KeyError):
            del Context()[key]

    def test_a_key_says_its_name(self) -> None:
        assert repr(USER) == "<ContextKey 'user'>"

    @pytest.mark.parametrize("name", [None, 42, b"user"])
    def test_a_keys_name_is_a_str(self, name: Any) -> None:
        with pytest.raises(TypeError, match=f"a ContextKey's name is a str, not {name!r}"):
            ContextKey(name)

    @pytest.mark.parametrize("key", [42, None, ("a",)])
    def test_any_other_key_is_refused(self, key: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context()[key] = "value"
        assert str(caught.value) == f"a context's key is a ContextKey or a str, not {key!r}"
        with pytest.raises(TypeError, match="a context's key is a ContextKey or a str"):
            Context({key: "value"})

    def test_values_are_a_mapping_and_are_copied(self) -> None:
        values: Mapping[str, object] = {"user": "alice"}
        context = Context(values)
        context["user"] = "bob"
        assert values == {"user": "alice"}
        with pytest.raises(TypeError, match=r"a context's values are a mapping, not \['user'\]"):
            Context(["user"])  # type: ignore[arg-type]

    def test_a_context_shows_its_id_and_its_values(self) -> None:
        assert repr(Context({"user": "alice"}, execution_id="run 1")) == "<Context run 1 {'user': 'alice'}>"

    async def test_nothing_of_the_chain_shows_in_it(self) -> None:
        """Behaviour 15: neither in a stage nor in what comes out."""
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
    def test_each_context_has_one_of_its_own(self) -> None:
        ids = {Context().execution_id for _ in range(100)}
        assert len(ids) == 100
        assert all(isinstance(made, int) and 0 <= made < 2**53 for made in ids)  # a number that JSON keeps

    def test_one_that_is_given_is_kept(self) -> None:
        assert Context(execution_id="request 7").execution_id == "request 7"
        assert Context(execution_id="").execution_id == ""
        assert Context(execution_id=0).execution_id == 0

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_worker_has_ids_of_its_own(self) -> None:
        ours = {Context().execution_id for _ in range(10)}
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, repr([Context().execution_id for _ in range(10)]).encode())
            finally:
                os._exit(0)  # whatever happens, there is no second pytest
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            theirs = set(ast.literal_eval(pipe.read()))
        ours |= {Context().execution_id for _ in range(1000)}
        assert len(theirs) == 10
        assert not ours & theirs


class TestCopy:
    def test_a_copy_has_the_same_values_and_id_and_shares_no_change(self) -> None:
        context = Context({"user": "alice"}, execution_id="run 1")
        twin = context.copy()
        twin["user"] = "bob"
        assert context["user"] == "alice"
        assert twin.execution_id == "run 1"
        assert type(twin) is Context

    def test_a_copy_is_of_its_own_class(self) -> None:
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
        (twin,) = copies
        assert [failure.exception for failure in twin.suppressed] == [first]
        assert twin.error.exception is second
        await execute(twin, Interceptor("c", enter=lambda context: None))
        assert [fact.interceptor for fact in facts] == ["a", "c"]


class TestVerbs:
    @pytest.mark.parametrize("verb", ["enqueue", "inject"])
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
    def test_what_is_not_an_interceptor_is_refused_and_nothing_is_queued(
        self, verb: str, wrong: Any, message: str
    ) -> None:
        """Behaviour 9: at the call, also one bad item among good ones."""
        context = Context()
        good = Interceptor("good", enter=lambda context: None)
        context.enqueue(good)
        for arguments in [(wrong,), (good, wrong), ([good, wrong],)]:
            with pytest.raises(TypeError, match=message):
                getattr(context, verb)(*arguments)
        assert context.queue == (good,)

    @pytest.mark.parametrize("predicate", [None, True, "done"])
    def test_a_predicate_is_a_function(self, predicate: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().terminate_when(predicate)
        assert str(caught.value) == f"terminate_when takes a plain function of the context, not {predicate!r}"

    def test_a_predicate_is_no_async_function_which_would_always_be_true(self) -> None:
        async def predicate(context: Context) -> bool:
            return False

        with pytest.raises(TypeError, match="terminate_when takes a plain function of the context, not <function"):
            Context().terminate_when(predicate)

    @pytest.mark.parametrize("observer", [None, "observer"])
    def test_an_observer_is_a_function(self, observer: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().add_observer(observer)
        assert str(caught.value) == f"an observer is a plain function of one fact, not {observer!r}"

    def test_an_observer_is_no_async_function_which_nobody_would_await(self) -> None:
        async def observer(fact: StageRan) -> None: ...

        with pytest.raises(TypeError, match="an observer is a plain function of one fact, not <function"):
            Context().add_observer(observer)

    @pytest.mark.parametrize("variable", ["VARIABLE", None, 1])
    def test_what_is_bound_is_a_context_variable(self, variable: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().bind(variable, 1)
        assert str(caught.value) == f"bind takes a contextvars.ContextVar, not {variable!r}"

    @pytest.mark.parametrize("exception", [None, "boom", ValueError, KeyboardInterrupt()])
    def test_what_is_attached_is_an_exception(self, exception: Any) -> None:
        with pytest.raises(TypeError) as caught:
            Context().with_error(exception)
        assert str(caught.value) == f"with_error takes an exception, not {exception!r}"

    @pytest.mark.parametrize(
        "verb", [lambda context: context.bind(VARIABLE, 1), lambda context: context.with_error(KeyError())]
    )
    @pytest.mark.parametrize("prepare", [lambda context: None, lambda context: context.enqueue()])
    async def test_bind_and_with_error_are_for_a_stage(
        self, verb: Callable[[Context], object], prepare: Callable[[Context], object]
    ) -> None:
        context = Context(execution_id="run 1")
        prepare(context)
        with pytest.raises(
            RuntimeError, match=r"\(\) is for a stage of a running chain; <Context run 1 {}> is in none"
        ):
            verb(context)
        await execute(context)
        with pytest.raises(RuntimeError, match="is for a stage of a running chain"):
            verb(context)

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

    def test_a_fresh_context_has_no_queue_no_error_and_nothing_suppressed(self) -> None:
        context = Context()
        assert (context.queue, context.error, context.suppressed) == ((), None, ())
