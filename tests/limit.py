"""The limit of a test: how a test that hangs ends red, and what is printed about it.

pytest-timeout says when: ``timeout`` in pyproject.toml, ``--timeout``, or a test's mark. At the limit the stacks of all
tasks and threads are printed, and the test fails where it stands. Its teardown then has a limit again, and a test that
swallows its failure, or blocks where no signal is handled, ends the whole run with status 1.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import sys
import traceback

import psutil
import pytest
from pytest_timeout import is_debugging

AGAIN = 30.0  # seconds that a failed test has for its teardown, before it fails again
ATTEMPTS = 4  # failures of one test, after which the run ends
EXIT = 60.0  # seconds that the interpreter has to end after the last test

_stderr = pytest.StashKey[int]()
_attempts = pytest.StashKey[int]()
_runs = pytest.StashKey[bool]()  # and not pytest, which may take its time over a report


class Over(KeyboardInterrupt):
    """A test is over its limit. Of this kind alone, event loops and Hypothesis let through what is raised anywhere."""


def pytest_configure(config):
    config.stash[_stderr] = os.dup(sys.__stderr__.fileno())  # before a test's output is captured


@pytest.hookimpl(trylast=True)  # after pytest's own, which would disarm it
def pytest_unconfigure(config):
    faulthandler.dump_traceback_later(EXIT, exit=True, file=config.stash[_stderr])
    _note(config, None)


def pytest_timeout_set_timer(item, settings):
    if not hasattr(signal, "setitimer"):
        return None
    _note(item.config, item)
    item.stash[_attempts] = 0
    item.stash[_runs] = False
    signal.signal(signal.SIGALRM, lambda *_: _over(item, settings))
    _arm(item, settings.timeout)
    return True


def pytest_timeout_cancel_timer(item):
    if not hasattr(signal, "setitimer"):
        return None
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    return True


@pytest.hookimpl(trylast=True)  # pytest and pytest-timeout disarm theirs here, and what follows could hang
def pytest_exception_interact(node):
    if hasattr(signal, "setitimer") and _attempts in node.stash and not node.config.option.usepdb:
        _arm(node, AGAIN)


def _failing(item):
    """Make a failure of the test, which pytest reports, of what would end the run."""
    item.stash[_runs] = True
    try:
        return (yield)
    except Over as over:
        item.stash[_runs] = False
        pytest.fail(str(over))
    finally:
        item.stash[_runs] = False


pytest_runtest_setup = pytest.hookimpl(_failing, wrapper=True)
pytest_runtest_call = pytest.hookimpl(_failing, wrapper=True)
pytest_runtest_teardown = pytest.hookimpl(_failing, wrapper=True)


def _note(config, item):
    """Leave the name of the test that runs in a file, to be read when the process was killed."""
    noted = config.rootpath / ".pytest_cache" / "running"
    if item is None:
        noted.unlink(missing_ok=True)
    else:
        noted.parent.mkdir(exist_ok=True)
        noted.write_text(f"{item.nodeid}\n")


def _arm(item, seconds):
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # Where no signal is handled: this one needs neither the interpreter nor its lock.
    faulthandler.dump_traceback_later(seconds + ATTEMPTS * AGAIN, exit=True, file=item.config.stash[_stderr])


def _over(item, settings):
    if is_debugging() and not settings.disable_debugger_detection:
        return
    item.stash[_attempts] += 1
    message = f"{item.nodeid} is over its limit of {settings.timeout:g} s"
    with os.fdopen(os.dup(item.config.stash[_stderr]), "w") as stderr:
        again = f", for the {item.stash[_attempts]}. time" if item.stash[_attempts] > 1 else ""
        print(f"\n\n{message}{again}", file=stderr)
        print_tasks(stderr)
        stderr.flush()
        faulthandler.dump_traceback(file=stderr)
        if item.stash[_attempts] > ATTEMPTS:
            print(f"{message}, and does not end: the run ends here", file=stderr, flush=True)
            _exit()
    _arm(item, AGAIN)
    if item.stash[_runs]:
        raise Over(message)


def _exit():
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
    os._exit(1)


def print_tasks(file):
    """Print the tasks of all event loops, each with its stack from the outermost coroutine to what it waits for."""
    for loop in [each for each in gc.get_objects() if isinstance(each, asyncio.AbstractEventLoop)]:
        if loop.is_closed():
            continue
        for task in asyncio.all_tasks(loop):
            print(f"\nTask {task.get_name()} of {loop!r}, {task!r}:", file=file)
            awaited = task.get_coro()
            while (frame := _frame(awaited)) is not None:
                traceback.print_stack(frame, limit=1, file=file)
                awaited = _awaited(awaited)


def _frame(awaited):
    """Return the frame of a coroutine, a generator or an asynchronous generator; ``None`` for all else."""
    return next((frame for kind in _KINDS if (frame := getattr(awaited, f"{kind}_frame", None)) is not None), None)


def _awaited(awaited):
    return next(each for name in _AWAITS if (each := getattr(awaited, name, _NOTHING)) is not _NOTHING)


_KINDS = ("cr", "gi", "ag")
_AWAITS = ("cr_await", "gi_yieldfrom", "ag_await")
_NOTHING = object()
