"""The loop. The docstring of ``execute`` is the specification of the chain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from inspect import isawaitable
from types import CoroutineType
from typing import Any, TypeVar, cast

from ..observe.logs import log
from .context import Context
from .execution import Execution
from .failure import Failure
from .interceptor import InterceptorLike, interceptors_of
from .sugar import throw

__all__ = ["drive", "execute"]

C = TypeVar("C", bound=Context)


async def execute(context: C | None = None, /, *interceptors: InterceptorLike[C]) -> C:
    """Run a context through a chain of interceptors and return the context that comes out.

    *The way in.* Interceptors run in order, those that were enqueued before and then those given here: each one's
    ``enter(context)``, if it has one. A stage that is not ``async`` is called without a task switch. A stage returns
    ``None``, and the same context goes on, or a context, and that one goes on; anything else is a ``TypeError`` that
    names interceptor, stage and value. In ``enter`` the context can ``enqueue`` (append), ``inject`` (put in front),
    ``terminate``, and ``terminate_when(predicate)``, whose predicates are asked after each ``enter`` that ran.

    *The way out.* When the queue is empty, ``leave(context)`` runs in reverse for all that were entered, also for
    those that have no ``enter``. The queue cannot change any more: trying raises ``QueueClosed``.

    *Errors.* An ``Exception`` in any stage ends the way in. From the interceptor that raised, itself included when it
    raised in ``enter`` or ``leave``, ``error(context, exception)`` is offered outward. Returning handles it, and the
    interceptors further out leave as usual. Raising the same exception declines. Raising another one replaces it,
    and the old one goes to the front of ``context.suppressed``. ``context.error`` tells interceptor, stage, exception
    and execution id for as long as nobody has handled it. If nobody does, ``execute`` raises the exception itself,
    with a note that names interceptor and stage.

    *Cancellation.* ``CancelledError``, ``KeyboardInterrupt`` and ``SystemExit`` are offered to no ``error`` stage, and
    no ``leave`` runs. They are raised at the ``yield`` of each open ``@around``, in reverse, and bindings are taken
    back. If one of these generators raises an ``Exception`` in its place, that is its failure; if one swallows it, the
    chain leaves from there. Otherwise the exception goes on.

    *Bindings* of ``context.bind`` are seen by the stages after the one that bound, and are taken back when the chain
    unwinds past it. *Observers* are told of each stage that returned.

    Two executions share nothing but their interceptors. An ``execute`` inside a stage, on the same context too, has a
    queue of its own, asks the outer predicates as well, and leaves the outer execution as it was. Executing one
    context twice at the same time is a ``RuntimeError``, raised when a stage returns while another execution has its
    context: nothing more is entered. An execution that a handler left running, in a task it did not wait for, gets that
    error when it comes to its next stage. Without a context, a new one is made. A stage may return
    another context, a copy say: then that one comes out, and the context given here has the same state afterwards.
    """
    current = cast("C", Context()) if context is None else context
    if not isinstance(current, Context):
        raise TypeError(f"execute takes a context first, not {current!r}")
    execution = current._execution
    if execution is None or execution.cursor is not None:
        execution = Execution(current)
    if execution.lent:
        execution.refuse_overlap()
    execution.completed_before, execution.completed_anew = current._completion(), False
    execution.append(interceptors_of(interceptors))
    if execution.is_copy:
        execution.begin()
    return cast("C", await drive(execution))


async def drive(  # noqa: C901, PLR0912, PLR0915  # split up, it costs each request several coroutines more
    execution: Execution, handler: Any = None, conclude: Callable[[Any], Any] | None = None
) -> Any:
    """Run an execution and return its context, or what ``conclude`` makes of it.

    The handler, if any, is called once the queue is empty and nothing has terminated the chain.

    One function and not five, and nothing allocated per stage: this runs for each stage of each request.
    """
    context: Any = execution.context
    began_with = context
    outer = context._execution
    if outer is not None and outer is not execution:
        execution.begin_inside(outer)
    else:
        outer = None
        context._begin()
    context._execution = execution
    execution.cursor = iter(execution.chain.enters)
    try:
        if context._observers:
            execution.observe()
        while True:
            try:
                while execution.stage == "enter":
                    for enter in execution.cursor:
                        result = enter(context)
                        if result is not None:
                            if type(result) is CoroutineType:  # not in _adopted: in here a stream waits
                                result = await result
                                if context._execution is not execution:
                                    execution.refuse_overlap()
                                if result is not None:
                                    context = execution.adopt(result)
                            else:
                                context = await _adopted(execution, result)
                            if context._completion() is not None:
                                execution.alert = True  # what it waited for may have answered without attaching
                        if execution.alert and execution.attend():
                            break  # the queue is another one now
                    else:
                        if handler is not None and not execution.terminated:
                            execution.handler = handler
                            result = await context._invoke(handler)
                            context = execution.context
                            if context._execution is not execution and not execution.regain():
                                execution.refuse_overlap()
                            context._receive(result)
                        if execution.alert:
                            execution.handler_returned()
                        else:  # the same, where nothing is bound: one call less for each request
                            execution.handler = None
                            execution.stage, execution.cursor = "leave", iter(execution.chain.leaves)
                for leave in execution.cursor:
                    result = leave(context)
                    if result is not None:
                        context = await _adopted(execution, result)
                    if execution.alert:
                        execution.attend()
                break
            except BaseException as raised:  # noqa: BLE001  # what it means is decided there
                context = await _recover(execution, raised)
    finally:
        if outer is None and context is began_with and not execution.bindings and context._execution is execution:
            context._release()
        else:
            execution.finish(began_with)
    if execution.failure is not None:
        raise _noted(execution)
    return context if conclude is None else conclude(context)


async def _recover(execution: Execution, raised: BaseException) -> Context:
    """Have what was raised handled further out, if it can be; the loop then leaves what is left."""
    while True:
        try:
            if execution.context._execution is not execution and not execution.regain():
                await _abandon(execution, raised)
            elif not isinstance(raised, Exception):
                await _interrupt(execution, raised)
            else:
                execution.take(raised)
                if execution.failure is not None:
                    await _offer(execution)
        except BaseException as another:
            if execution.left_behind or (another is raised and not isinstance(another, Exception)):
                raise
            raised = another  # it takes the same way
        else:
            return execution.context


async def _interrupt(execution: Execution, interruption: BaseException) -> None:
    """Raise an interruption at the ``yield`` of what ``@around`` opened, inner ones first, until one swallows it.

    Raises what a generator makes of it, or else the interruption itself.
    """
    for position, (generator, known) in execution.open_brackets():
        interceptor = execution.chain.steps[position - 1]
        if isinstance(interruption, GeneratorExit):  # the chain itself is being closed, and cannot wait for anything
            await _close(generator, interceptor.name, execution.context, interruption)
            continue
        execution.leave_at(position)
        execution.resume(known)
        try:
            await throw(generator, interceptor.name, interruption)
        except BaseException as another:
            if another is not interruption:
                raise
        else:
            execution.interruption_handled()
            return
    raise interruption


async def _abandon(execution: Execution, raised: BaseException) -> None:
    """Close what ``@around`` opened in an execution that has lost its context, and raise: no stage has a say."""
    for position, (generator, _) in execution.open_brackets():
        await _close(generator, execution.chain.steps[position - 1].name, execution.context, raised)
    raise raised


async def _close(generator: AsyncGenerator[None, None], name: str, context: Context, raised: BaseException) -> None:
    """Raise an exception at a generator's only yield, and log what else comes of that: the chain ends with the first.

    For a ``GeneratorExit`` that is closing it.
    """
    try:
        if isinstance(raised, GeneratorExit):
            await generator.aclose()
        else:
            await throw(generator, name, raised)
    except BaseException as error:  # noqa: BLE001  # as said
        if error is not raised:
            log.exception("around_not_closed", interceptor=name, execution_id=context.execution_id, exc_info=error)


async def _offer(execution: Execution) -> None:
    """Ask the ``error`` stages, inner ones first, until one returns."""
    for interceptor in execution.cursor or ():
        if interceptor.error is not None and execution.failure is not None:
            result = interceptor.error(execution.context, execution.failure)
            if result is not None:
                await _adopted(execution, result)
            if execution.alert:
                execution.attend()
            execution.handled()
            return
        execution.unbind(execution.position)


async def _adopted(execution: Execution, result: Any) -> Context:
    """Wait for what a stage returned and go on with the context that it names, if it names one."""
    if type(result) is CoroutineType or isawaitable(result):
        result = await result
    if execution.context._execution is not execution:
        execution.refuse_overlap()
    return execution.context if result is None else execution.adopt(result)


def _noted(execution: Execution) -> Exception:
    """Write on the exception that nobody handled where in the chain it was raised, once."""
    report = cast("Failure", execution.report)
    note = f"raised in interceptor {report.interceptor!r}, stage {report.stage}"
    if note not in getattr(report.exception, "__notes__", ()):
        report.exception.add_note(note)
    return report.exception
